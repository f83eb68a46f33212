# The developer's commands; `make help` lists them. They need cargo, Python >= 3.10 and a C compiler.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 2
APP ?= examples.hello:app
ARGS ?=
SOAK_ROUNDS ?= 100
MODES ?= off app fork forkserver
SHARE ?=
CHAOS_SECONDS ?= 60
FUZZ_SECONDS ?= 600

BIN := .venv/bin
PY := $(BIN)/python
RUST := Cargo.toml Cargo.lock $(shell find src -name '*.rs')
PURE := $(shell find python -name '*.py' -o -name '*.pyi' -o -name '*.html' -o -name '*.css' -o -name '*.js')

# The stamps. A .venv belongs to one PYTHON: another one makes it anew.
VENV := .venv/of-$(subst /,-,$(PYTHON))
DEPS := .venv/deps
NATIVE := .venv/native
WHEEL := dist/wheel
RUST_TESTED := target/tested
FUZZER := .cache/tools/bin/cargo-fuzz
LIMIT := target/limit/_limit.abi3.so
PEERS := .venvs/peers/installed
# A third of the time of the tests is waiting: three processes for two CPUs.
PARALLEL := -n $(shell echo $$(($$(nproc) * 3 / 2))) --maxprocesses=8 --dist=worksteal
SCHEMA := $(BIN)/check-jsonschema --quiet --builtin-schema

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYO3_PYTHON := $(CURDIR)/$(PY)

.PHONY: help run check test test-browser test-operations test-modes lint build dist test-sanic-lts test-pythons test-upstream test-libraries soak chaos model fuzz bench bench-quick bench-serving coverage clean
.DEFAULT_GOAL := help

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=python3.12 chooses the interpreter; ARGS="-k name -x" goes to pytest; WORKER_CORE=pure|native to the package.'

run: $(NATIVE) ## start the example: two workers, reloading, with an inspector
	@echo 'http://$(HOST):$(PORT)/ is $(APP). To try, from another terminal:'
	@printf '  %-40s %s\n' \
		'curl http://$(HOST):$(PORT)/' 'shows the worker that answers' \
		'$(BIN)/sanic-worker top' 'shows the workers live' \
		'$(BIN)/sanic-worker inspect scale 3' 'runs three workers instead of $(WORKERS)' \
		'$(BIN)/sanic-worker inspect reload' 'replaces all workers' \
		'edit examples/hello.py' 'reloads the workers'
	@echo 'Ctrl-C here stops the server.'
	@exec $(PY) scripts/foreground.py $(BIN)/sanic-worker $(APP) --host $(HOST) --port $(PORT) --workers $(WORKERS) --reload

check: $(NATIVE) $(RUST_TESTED) ## run the tests that start no server, in about half a minute
	$(PY) -m pytest $(PARALLEL) -m 'not slow and not soak and not chaos and not browser and not operations and not libraries' $(ARGS)

test: $(NATIVE) ## run the tests of both languages
	cargo test --quiet --locked --no-default-features
	@touch $(RUST_TESTED)
	$(PY) -m pytest $(PARALLEL) $(ARGS)

test-browser: $(NATIVE) ## run the tests of the page in Chromium, which is installed first if it can be
	$(PY) scripts/browser.py
	$(PY) -m pytest $(PARALLEL) -m browser $(ARGS)

test-operations: $(NATIVE) ## run the tests of hangs, leaks, upgrades, systemd (installed first if it can be) and containers
	$(PY) scripts/systemd.py
	$(PY) -m pytest $(PARALLEL) -m operations $(ARGS)

test-modes: $(NATIVE) ## run the tests of servers in each other mode of preloading and start method; SHARE=1: a quarter in each
	@for mode in $(MODES); do \
		echo "TEST_MODE=$$mode"; \
		TEST_MODE=$$mode TEST_SHARE=$(SHARE) $(PY) -m pytest $(PARALLEL) tests/integration $(ARGS) || exit; \
	done

lint: $(NATIVE) ## check style, types, the stub and the rules of the project
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PY) -m mypy.stubtest worker._native
	$(PY) scripts/import_rules.py
	$(PY) scripts/prose.py
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) custom.github-workflows-require-timeout .github/workflows/*.yml
	$(SCHEMA) vendor.compose-spec docs/deploy/compose.yaml
	$(BIN)/kubernetes-validate --quiet --strict docs/deploy/kubernetes.yaml
	$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA) vendor.github-issue-forms $(filter-out %/config.yml, $(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/zizmor --quiet --offline --min-severity=medium .github
	$(BIN)/pre-commit validate-config
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path benches/limit/Cargo.toml
	cargo check --quiet --locked --no-default-features
	cargo clippy --quiet --locked --all-targets -- -D warnings
	cargo clippy --quiet --locked --all-targets --no-default-features -- -D warnings

build: $(NATIVE) ## build the native core into .venv

dist: $(WHEEL) ## build wheel and sdist, check both, and try each in an empty environment
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	$(PY) scripts/smoke.py dist/*.whl
	$(PY) scripts/smoke.py dist/*.tar.gz

test-sanic-lts: $(WHEEL) ## run the integration tests on each supported Sanic
	$(PY) scripts/matrix.py sanic -- $(PARALLEL) $(ARGS)

test-pythons: $(WHEEL) ## run the tests, a few of the long ones, on every other CPython found here
	$(PY) scripts/matrix.py pythons -- $(PARALLEL) $(ARGS)

test-upstream: $(WHEEL) ## run the worker tests of each supported Sanic on this package
	$(PY) scripts/upstream.py -- $(ARGS)

test-libraries: $(WHEEL) ## run numpy, SQLAlchemy, gRPC and others in a preloaded application
	$(PY) scripts/matrix.py libraries -- $(PARALLEL) $(ARGS)

soak: $(NATIVE) ## repeat for minutes the tests that must never fail
	SOAK_ROUNDS=$(SOAK_ROUNDS) cargo test --quiet --locked --no-default-features at_any_moment
	SOAK_ROUNDS=$(SOAK_ROUNDS) $(PY) -m pytest -m soak $(ARGS)

chaos: $(NATIVE) ## kill, stop, reload, scale and break a server under load, at random, for CHAOS_SECONDS
	CHAOS_SECONDS=$(CHAOS_SECONDS) $(PY) -m pytest -m chaos -s $(ARGS)

model: ## try every order of events in the shared table that the memory model allows
	RUSTFLAGS='--cfg loom' cargo test --quiet --locked --no-default-features --target-dir target/model orders

fuzz: $(FUZZER) ## feed noise to the framer, the decoder and the table, for FUZZ_SECONDS each
	@for target in framer decoder table; do \
		corpus=target/fuzz/corpus/$$target; \
		mkdir -p $$corpus; \
		$(FUZZER) run -s none --target-dir target/fuzz $$target $$corpus fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -dict=fuzz/dictionary \
			-max_len=1000 -verbosity=0 -print_final_stats=1 || exit; \
	done

bench: $(NATIVE) $(LIMIT) $(PEERS) ## measure both cores beside Sanic's own manager, and other servers; write docs/benchmarks.md
	$(PY) -m pytest benches --benchmark-json=target/bench.json $(ARGS)
	$(PY) scripts/benchmarks.py target/bench.json docs/benchmarks.md

bench-quick: $(NATIVE) $(LIMIT) $(PEERS) ## the same in five minutes, only printed
	$(PY) -m pytest benches --quick --benchmark-json=target/bench-quick.json $(ARGS)
	$(PY) scripts/benchmarks.py target/bench-quick.json

bench-serving: $(NATIVE) ## measure the cost of counting requests, of the warning of slow steps and of observing TLS handshakes
	$(PY) benches/counting.py
	$(PY) benches/slow_loop.py
	$(PY) benches/handshakes.py

coverage: $(NATIVE) ## measure the tests: branches of python/, lines of src/
	$(PY) scripts/measure.py $(ARGS)

clean: ## remove all build products, environments and caches included
	rm -rf .venv .venvs .cache dist target htmlcov .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf fuzz/target fuzz/corpus fuzz/artifacts fuzz/coverage
	rm -f python/worker/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV):
	$(PYTHON) -m venv --clear .venv
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(DEPS): pyproject.toml $(VENV)
	$(PY) -m pip install --quiet --group dev
	@touch $@

$(NATIVE): $(DEPS) $(RUST)
	PIP_QUIET=1 $(BIN)/maturin develop --release --locked --quiet
	@touch $@

# What `make check` knows of the Rust tests: they have run since Rust was changed.
$(RUST_TESTED): $(RUST)
	cargo test --quiet --locked --no-default-features
	@touch $@

$(WHEEL): $(DEPS) $(RUST) $(PURE) README.md
	rm -rf dist
	$(BIN)/maturin build --release --locked --quiet --out dist
	$(BIN)/maturin sdist --out dist
	@touch $@

$(LIMIT): $(DEPS) $(wildcard benches/limit/Cargo.*) benches/limit/src/lib.rs
	PYO3_BUILD_EXTENSION_MODULE=1 cargo build --quiet --release --locked \
		--manifest-path benches/limit/Cargo.toml --target-dir target/limit
	@cp target/limit/release/lib_limit.so $@

# The other servers are skipped where they cannot be installed.
$(PEERS): pyproject.toml $(DEPS)
	$(PY) -m venv --clear $(@D)
	$(PY) -m pip --python $(@D)/bin/python install --quiet --group peers \
		|| echo 'The other servers are not measured: they could not be installed.'
	@touch $@

$(FUZZER):
	cargo install --quiet --locked --root .cache/tools cargo-fuzz@0.13.2

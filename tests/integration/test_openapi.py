"""The inspector never fails, whether a request follows its description or not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from .harness import Server
from .test_inspection import Inspected
from .tools import free_port, wait_until

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

pytestmark = pytest.mark.ours

PROBES = ("/livez", "/readyz")
# A scaling must not start many processes.
MAX_WORKERS = 3
EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.operations
@pytest.mark.timeout(300)
def test_no_request_makes_it_fail(tmp_path: Path) -> None:
    from schemathesis import GenerationMode, checks

    port = free_port()
    env = {"SANIC_INSPECTOR_PORT": str(port)}
    args = ("--max-workers", str(MAX_WORKERS))
    with Server.run("apps.inspected:app", *args, cwd=tmp_path, env=env) as server:
        server.wait_ready()
        inspected = Inspected(server, port)
        wait_until(inspected.listens, "the inspector")
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        asked = 0

        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            response = case.call(timeout=30)
            # A probe that fails answers 503.
            is_answer = case.operation.path in PROBES and response.status_code == 503
            assert response.status_code < 500 or is_answer, response.text
            case.validate_response(
                response,
                checks=[
                    checks.status_code_conformance,
                    checks.content_type_conformance,
                    checks.response_schema_conformance,
                ],
            )

        for found in schema.get_all_operations():
            operation = found.ok()
            # The first ends the server, below; the other leaves it to another main process.
            if operation.path not in ("/shutdown", "/upgrade"):
                EXAMPLES(given(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))(ask))()
            if operation.path != "/shutdown":
                # A request without parts cannot be wrong.
                with suppress(Unsatisfiable):
                    EXAMPLES(given(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))(ask))()
        assert asked > 100
        assert server.exit_code is None
        # The main process answers, too.
        answer = inspected.request("POST", "/scale", b'{"replicas": 2}', Prefer="wait=30")
        assert answer.json["result"]["status"] == "done"
        server.settled(2)
        assert inspected.request("POST", "/shutdown").status == 200
        assert server.wait() == 0

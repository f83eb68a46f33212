"""`install()` refuses some classes; the state process. (More: integration/test_install.py.)"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ports import hold_port
from support.running import python

from worker.integration import StateManager

pytestmark = pytest.mark.slow

INSTALL = """
import sys, warnings, sanic, worker

for version in sys.argv[1:]:
    sanic.__version__ = version
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            worker.install()
            print("installed")
        except RuntimeError as error:
            print(error)
        worker.uninstall()
    for one in found:
        print(one.category.__name__, one.message, one.filename == __file__)
"""
SUPPORTED = "23.12 to 25.12"


def install(tmp_path: Path, *versions: str, first: str = "") -> list[str]:
    """Return the results of an install under each of the releases, a line or two each."""
    ended = python(first + INSTALL, *versions, cwd=tmp_path)
    assert ended.stderr == ""
    return ended.stdout.splitlines()


class TestVersions:
    def test_supported_versions_are_installed(self, tmp_path: Path) -> None:
        versions = ["23.12.0", "23.12", "24.6.1", "24.12.0", "25.3.0", "25.12.9"]
        assert install(tmp_path, *versions) == ["installed"] * len(versions)

    def test_old_versions_are_refused(self, tmp_path: Path) -> None:
        versions = ["23.9.1", "22.12.0", "0.8.3"]
        assert install(tmp_path, *versions) == [
            f"Sanic {version} is too old; sanic-worker supports {SUPPORTED}" for version in versions
        ]

    def test_newer_versions_are_installed_with_a_warning(self, tmp_path: Path) -> None:
        warning = "RuntimeWarning Sanic {} is newer than what sanic-worker was tested with ({}) True"
        versions = ["26.3.0", "25.13.0.dev1"]
        assert install(tmp_path, *versions) == [
            line for version in versions for line in ("installed", warning.format(version, SUPPORTED))
        ]

    def test_unknown_versions_are_refused(self, tmp_path: Path) -> None:
        versions = ["", "25", "main", "25.x.1"]
        assert install(tmp_path, *versions) == [
            f"Sanic {version!r} is of no known release; sanic-worker supports {SUPPORTED}"
            for version in versions
        ]

    @pytest.mark.parametrize(
        ("module", "name"),
        [("sanic.worker.manager", "MonitorCycle"), ("sanic.mixins.startup", "WorkerManager")],
    )
    def test_versions_without_a_required_name_are_refused(
        self, module: str, name: str, tmp_path: Path
    ) -> None:
        first = f"import {module}\ndel {module}.{name}\n"
        refusal = (
            f"Sanic 26.3.0 has no {module}.{name}, which sanic-worker has to replace; "
            f"it supports Sanic {SUPPORTED}"
        )
        assert install(tmp_path, "26.3.0", first=first) == [refusal]


def test_existing_applications_use_the_replaced_classes(tmp_path: Path) -> None:
    """The stock classes are replaced, those of the user's own choice are not; and both are restored."""
    ended = python(
        """
        from sanic import Sanic
        import worker

        class Mine:
            pass

        plain, own = Sanic("plain"), Sanic("own")
        own.inspector_class = Mine
        stock = plain.certloader_class, plain.inspector_class
        worker.install()
        print((plain.certloader_class, plain.inspector_class) == (worker.CertLoader, worker.Inspector))
        print(own.inspector_class is Mine)
        worker.uninstall()
        print((plain.certloader_class, plain.inspector_class) == stock, own.inspector_class is Mine)
        """,
        cwd=tmp_path,
    )
    assert (ended.stdout.split(), ended.stderr) == (["True"] * 4, "")


class TestStateManager:
    @pytest.mark.native
    def test_the_state_is_in_shared_memory(self) -> None:
        manager = StateManager()
        state = manager.dict()
        state["a"] = {"b": 1}
        assert manager.dict() is state
        assert state.copy() == {"a": {"b": 1}}
        manager.shutdown()
        with pytest.raises(ValueError, match="the state of the workers is closed"):
            state["a"]

    def test_a_script_without_a_main_guard_fails(self, tmp_path: Path) -> None:
        code = """
            import sys

            import worker
            from sanic import Sanic

            worker.install()
            app = Sanic("unguarded")
            app.run(host="127.0.0.1", port=int(sys.argv[1]), workers=1, motd=False)
            """
        with hold_port() as held:
            ended = python(code, str(held.getsockname()[1]), cwd=tmp_path)
        assert ended.returncode == 1
        assert 'inside of\n\n    if __name__ == "__main__":\n' in ended.stderr + ended.stdout
        assert "EOFError" not in ended.stderr

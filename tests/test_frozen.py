"""A frozen program (PyInstaller, for example) has only the modules of static imports."""

from __future__ import annotations

from modulefinder import ModuleFinder
from pathlib import Path

import worker

PACKAGE = Path(worker.__file__).parent


def test_static_imports_reach_every_module(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import worker\nimport worker.cli\n")
    finder = ModuleFinder(path=[str(PACKAGE.parent)])
    finder.run_script(str(program))
    paths = {path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")}
    wanted = {".".join(path.parts).removesuffix(".__init__") for path in paths} - {"worker.__main__"}
    assert wanted - {*finder.modules} == set()
    # The extension is asked for, built or not.
    assert "worker._native" in {*finder.modules, *finder.badmodules}

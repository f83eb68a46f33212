"""Write modules whose import takes a given amount of memory, as the code of libraries does."""

from __future__ import annotations

import compileall
from pathlib import Path

PACKAGE = "large_imports"
MODULES, CLASSES, METHODS = 300, 10, 12

METHOD = '''
    def method_{number}(self, value, *others, scale={number}, **options):
        """Return the sum of value {number} and of all others, with the options that are given."""
        result = [value * scale + one for one in others if one is not None]
        for name, option in options.items():
            if name == "option_{number}" and isinstance(option, (int, float)):
                result.append(option / (scale or 1))
            elif not option:
                raise ValueError(f"option {{name}} of {module} has no value: {{option!r}}")
        self.last_{number} = {{"name": "value_{number}", "result": result, "text": "of {module}"}}
        return sum(result)
'''


def write(folder: Path) -> None:
    """Write a package of classes into a folder, and compile it."""
    package = folder / PACKAGE
    package.mkdir()
    names = [f"module_{number}" for number in range(MODULES)]
    for module in names:
        lines = [f'"""Classes of {module}."""']
        for number in range(CLASSES):
            methods = [METHOD.format(number=method, module=module) for method in range(METHODS)]
            lines.append(
                f'\n\nclass Class{number}:\n    """Class {number} of {module}."""\n{"".join(methods)}'
            )
        (package / f"{module}.py").write_text("\n".join(lines))
    (package / "__init__.py").write_text("".join(f"from {PACKAGE} import {name}\n" for name in names))
    compileall.compile_dir(str(package), quiet=1)

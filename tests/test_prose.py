"""``scripts/prose.py`` counts words in prose only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "prose.py"
PLANTED = "Nobody knows who did what."
PLAIN = "The supervisor restarts a worker that has exited."

MARKDOWN = f"""\
# Whatever: a heading

{PLAIN}

| who | what |
| --- | --- |
| nobody | whoever |

```python
what = who
```

{PLAIN} What is that? "Who knows?"
The key `what` and the page [of it](what.md) hold.
"""

PYTHON = f'''\
"""{PLAIN}

    {PLAIN}
"""

what = "who # nobody"  # {PLAIN}
'''

RUST = f"""\
//! # Whatever
//! {PLAIN}
/// ```
/// what(who);
/// ```
let what = "http://who";  // {PLAIN}
"""


def prose(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, root, *arguments], capture_output=True, text=True)


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [("docs/page.md", MARKDOWN), ("python/worker/code.py", PYTHON), ("src/code.rs", RUST)],
)
def test_headings_questions_tables_and_code_do_not_count(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, name, text)
    done = prose(tmp_path, "--max=0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nobody, what, whatever, who, whoever, whom: 0.0 in 1,000 words")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("README.md", f"# Title\n\n{PLAIN}\n\n{PLANTED}\n", 5),
        ("docs/page.md", f"- {PLAIN}\n- {PLANTED}\n", 2),
        ("python/worker/code.py", f'def f():\n    """{PLAIN}\n\n    {PLANTED}\n    """\n', 4),
        ("python/worker/code.py", f"x = 1\ny = 2  # {PLANTED}\n", 2),
        ("tests/test_code.py", f"# {PLAIN}\n\n# {PLANTED}\n", 3),
        ("src/code.rs", f"fn f() {{}}\n\n    /// {PLANTED}\n", 3),
        ("Makefile", f"all:\n\ttrue  # {PLANTED}\n", 2),
    ],
)
def test_a_paragraph_with_counted_words_is_listed(tmp_path: Path, name: str, text: str, line: int) -> None:
    write(tmp_path, name, text)
    done = prose(tmp_path)
    assert done.returncode == 1, done
    assert f"{name}:{line}: 3 in 5 words: " in done.stdout


def test_a_paragraph_ends_with_its_comment(tmp_path: Path) -> None:
    write(tmp_path, "scripts/code.py", f"# Nobody\n# knows\n\n# {PLAIN}\n")
    assert "scripts/code.py:1: 1 in 2 words: Nobody knows\n" in prose(tmp_path).stdout


def test_the_rate_is_computed_over_all_files(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "word " * 996 + "\n\nWhat's that, who, whom.\n")
    write(tmp_path, "docs/page.md", "word\n" * 1000)
    done = prose(tmp_path, "--max=1.5")
    assert "1.5 in 1,000 words, 1.5 allowed (docs 1.5, python 0.0," in done.stdout
    assert done.returncode == 0
    assert prose(tmp_path, "--max=1.4").returncode == 1

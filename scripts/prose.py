"""Count the pronouns that stand for a noun in the project's prose: ``what``, ``who`` and their kin.

Prose is Markdown, docstrings and comments, without headings, questions, tables and code. The script prints
the rate of these words per 1,000 words, in all and by part of the project, and the densest paragraphs. It
exits with 1 if the total rate is above ``--max``. A low rate does not make a text good; a high one makes it
hard to read.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COUNTED = {"what", "whatever", "who", "whoever", "whom", "nobody"}
MAX_RATE = 5.0
DENSEST = 10
# When paragraphs are ranked, a shorter one counts as one of this many words: one word in five says little.
SHORT = 25

TABLE_OR_HEADING = re.compile(r"\s*(\||#+ )")
LIST_ITEM = re.compile(r"\s*([-*]|\d+\.) ")
FENCE = re.compile(r"\s*(```|~~~)")
CODE = re.compile(r"(`+).+?\1|https?://\S+|\]\([^)]*\)", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*]*\s+")
QUESTION = re.compile(r"\?[\"')*]*$")
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
RUST_COMMENT = re.compile(r"(?:^|\s)//[/!]?(?:\s(.*)|$)")
HASH_COMMENT = re.compile(r"(?:^|\s)#+(?:\s(.*)|$)")

Line = tuple[int, str]
Reader = Callable[[str], Iterable[list[Line]]]


class Paragraph(NamedTuple):
    """One paragraph of prose, and the line on which it begins."""

    path: Path
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """The words outside of code and questions, in lower case, without a contracted verb."""
        sentences = SENTENCE_END.split(CODE.sub(" ", self.text))
        statements = " ".join(one for one in sentences if not QUESTION.search(one))
        return [re.split("['\u2019]", word)[0].lower() for word in WORD.findall(statements)]

    @property
    def hits(self) -> int:
        """How many of its words are counted ones."""
        return sum(word in COUNTED for word in self.words)

    @property
    def density(self) -> float:
        """The rate by which paragraphs are ranked."""
        return self.hits / max(len(self.words), SHORT)


def markdown(text: str) -> Iterator[list[Line]]:
    """Yield a whole page as one block."""
    yield list(enumerate(text.splitlines(), 1))


def python(text: str) -> Iterator[list[Line]]:
    """Yield each docstring, and each run of comments on lines that follow each other."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            first, last = docstring.lineno, docstring.end_lineno or docstring.lineno
            yield [(number, lines[number - 1].replace('"""', "")) for number in range(first, last + 1)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = (token for token in tokens if token.type == tokenize.COMMENT)
    yield from runs((token.start[0], token.string.lstrip("#: ")) for token in comments)


def by_pattern(comment: re.Pattern[str]) -> Reader:
    """Return a reader of comments that end with their line, by the pattern of one."""

    def comments(text: str) -> Iterator[list[Line]]:
        found = ((number, comment.search(line)) for number, line in enumerate(text.splitlines(), 1))
        yield from runs((number, match[1] or "") for number, match in found if match)

    return comments


def runs(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Join lines whose numbers follow each other."""
    block: list[Line] = []
    for line in lines:
        if block and line[0] != block[-1][0] + 1:
            yield block
            block = []
        block.append(line)
    yield block


def paragraphs(path: Path, block: list[Line]) -> Iterator[Paragraph]:
    """Split a block as Markdown is split, and pass over its headings, tables and blocks of code."""
    kept: list[Line] = []
    in_code = False
    for number, line in [*block, (0, "")]:
        fence = FENCE.match(line)
        is_prose = line.strip() and not (in_code or fence or TABLE_OR_HEADING.match(line))
        if kept and (not is_prose or LIST_ITEM.match(line)):
            yield Paragraph(path, kept[0][0], " ".join(text.strip() for _, text in kept))
            kept = []
        if is_prose:
            kept.append((number, line))
        in_code ^= bool(fence)


rust = by_pattern(RUST_COMMENT)
hashes = by_pattern(HASH_COMMENT)

# The parts of the project: where each part's prose stands, and how it is read.
PARTS: dict[str, dict[str, Reader]] = {
    "docs": {"*.md": markdown, "docs/**/*.md": markdown, ".github/**/*.md": markdown},
    "python": {"python/**/*.py": python, "python/**/*.pyi": python},
    "tests": {"tests/**/*.py": python},
    "tools": {
        **dict.fromkeys(("scripts/**/*.py", "benches/**/*.py", "examples/**/*.py"), python),
        **dict.fromkeys(("Makefile", "*.toml", "*.yaml", ".github/**/*.yml", ".ci/*"), hashes),
    },
    "rust": {"src/**/*.rs": rust, "benches/**/*.rs": rust, "fuzz/fuzz_targets/*.rs": rust},
}


def prose(root: Path, part: str) -> Iterator[Paragraph]:
    """Yield every paragraph of one part."""
    for pattern, read in PARTS[part].items():
        for path in sorted(root.glob(pattern)):
            for block in read(path.read_text()):
                yield from paragraphs(path.relative_to(root), block)


def rate(found: list[Paragraph]) -> float:
    """Return how many of 1,000 words are counted ones."""
    return 1000 * sum(one.hits for one in found) / max(1, sum(len(one.words) for one in found))


def main() -> int:
    """Print the rates and the densest paragraphs; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--max", type=float, default=MAX_RATE, help="how many of 1,000 words are allowed")
    arguments = parser.parse_args()
    parts = {part: list(prose(arguments.root, part)) for part in PARTS}
    found = [one for some in parts.values() for one in some]
    ranked = sorted(found, key=lambda one: one.density, reverse=True)
    for paragraph in (one for one in ranked[:DENSEST] if one.hits):
        text = textwrap.shorten(paragraph.text, 60, placeholder=" ...")
        print(f"{paragraph.path}:{paragraph.line}: {paragraph.hits} in {len(paragraph.words)} words: {text}")
    by_part = ", ".join(f"{part} {rate(some):.1f}" for part, some in parts.items())
    total = rate(found)
    print(f"{', '.join(sorted(COUNTED))}: {total:.1f} in 1,000 words, {arguments.max:g} allowed ({by_part})")
    return int(total > arguments.max)


if __name__ == "__main__":
    sys.exit(main())

"""The commands in README and docs, block by block, with the marker that says how each is tested.

A fenced `sh`, `console` or `python` block is run against a server (tests/live/test_docs.py), unless the line before it
is a marker:

    <!-- not run: REASON -->   its files, verbs and options are checked instead (tests/unit/test_docs.py)
    <!-- fails: STATUS -->     it is run, and the server answers with this status
    <!-- emulator -->          it is run against the local emulator, and its output is compared
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS]
NOT_RUN = {"CONTRIBUTING.md": "sets up and tests the repository itself"}  # all blocks of a page
CODE = ("sh", "console", "python")
OTHER = ("json", "text", "toml", "")  # data and output: nothing to run


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of its first line of code
    language: str
    text: str
    not_run: str  # the reason, where it is not run
    fails: int  # the status that the server answers with, where that is an error
    emulator: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    """Every fenced block with code, in the order of the pages."""
    return [block for page in PAGES for block in _of(page) if block.language in CODE]


def languages() -> set[str]:
    """The languages of all fences."""
    return {block.language for page in PAGES for block in _of(page)}


def _of(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = re.fullmatch(r"(\s*)```(\w*)", lines[number])
        if fence is None:
            number += 1
            continue
        before = lines[number - 1].strip() if number else ""
        end = lines.index(fence[1] + "```", number + 1)
        not_run, fails = re.fullmatch(r"<!-- not run: (.+) -->", before), re.fullmatch(r"<!-- fails: (\d+) -->", before)
        yield Block(
            page=str(page.relative_to(ROOT)),
            line=number + 2,
            language=fence[2],
            text="\n".join(line.removeprefix(fence[1]) for line in lines[number + 1 : end]),
            not_run=not_run[1] if not_run else NOT_RUN.get(page.name, ""),
            fails=int(fails[1]) if fails else 0,
            emulator=before == "<!-- emulator -->",
        )
        number = end + 1

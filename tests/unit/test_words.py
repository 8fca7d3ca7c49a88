"""Plain technical English: words that hide who does what, or that no search in a log would find, are not used.

A sentence has a subject, and it is a thing of the system: the runner, the request, the host. Processes do not speak.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve import errors
from tests.pages import PAGES, ROOT

# What is wrong -> what to write instead.
BANNED = {
    r"whoever|whomever|nobody|somebody|everybody|anybody": "name the thing: the caller, the process, no process",
    r"\b(he|she|his|him|himself)\b": "the caller, the process; or repeat the noun",
    r"\b(those|all|they|one|ones|anyone|everyone) who\b": "callers, requests, processes: name them",
    r"\bwho (has|have|had|is|are|was|may|waits?|wants?|asks?|asked|comes?|came|calls?|gets?)\b": "name the subject",
    r"\bmourn|\blast words\b|\bdies politely\b": "processes exit or crash",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\blest\b": "so that ... does not",
    r"\bfor ever\b": "indefinitely, without a limit; or say how long",
    r"\bwhat of it\b|\bwhat came of\b|\bcomes? of it\b": "name the result",
    r"\b(is|are|was|be|been|being) told\b|\btells? (of|what|why|how|that|it|him|us|them)\b": "reports, states, logs",
    r"\bspeaks?\b|\bspeaking\b|\bsays of\b|\bsaid of\b": "reports, supports; answers in",
    r"\bin the hands\b|\bin its hands\b": "in progress",
    r"\bleft alone\b": "is not retried for a while",
    r"\bcannot be meant\b|\bas (was|is) meant\b": "invalid",
    r"\bwhence\b|\bthence\b|\bhither\b|\bwont\b": "from which, therefore",
    r"\bof old\b|\bby trade\b": "earlier, usually",
}
# Comments, docstrings and strings of these are held to the list, too.
CODE = ("bench", "container", "deploy", "docs", "examples", "local_test", "serve", "tests/pages.py")


def found(text: str) -> list[str]:
    """Each banned phrase in a text, with the advice."""
    return [
        f"{match[0]!r}: {advice}"
        for pattern, advice in BANNED.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]


OTHER_PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "examples").rglob("*.md"))]


@pytest.mark.parametrize("page", sorted({*PAGES, *OTHER_PAGES}), ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_written_in_plain_english(page: Path) -> None:
    """README, documentation, examples, and the other pages at the top."""
    lines = page.read_text().splitlines()
    assert not [f"{number}: {each}" for number, line in enumerate(lines, 1) for each in found(line)]


def test_error_texts_are_written_in_plain_english() -> None:
    """Message and hint of each ServeError that the code raises."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {each}"
        for path in sorted((ROOT / "serve").rglob("*.py"))
        for line, text in _error_texts(path)
        for each in found(text)
    ]
    assert not wrong


def _code() -> list[Path]:
    paths = [ROOT / each for each in CODE]
    found = {file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])}
    made = {"models", ".cache"}  # by `make models`
    return sorted(file for file in found if file.relative_to(ROOT).parts[1] not in made)


def test_code_is_written_in_plain_english() -> None:
    """Comments, docstrings and strings of all code but the tests."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {each}"
        for path in _code()
        for line, text in _words(path)
        for each in found(text)
    ]
    assert not wrong


@pytest.mark.parametrize(
    "name", ["nginx.conf", "Makefile", "Dockerfile", "build_and_push.sh", ".ci/run", "pyproject.toml"]
)
def test_configuration_is_written_in_plain_english(name: str) -> None:
    """Comments, and the messages of scripts."""
    lines = (ROOT / name).read_text().replace("grep -hE", "grep").splitlines()
    assert not [f"{number}: {each}" for number, line in enumerate(lines, 1) for each in found(line)]


def _error_texts(path: Path) -> Iterator[tuple[int, str]]:
    names = {"ServeError", *(each.__name__ for each in _below(errors.ServeError))}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in names:
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


def _below(cls: type[errors.ServeError]) -> Iterator[type[errors.ServeError]]:
    for each in cls.__subclasses__():
        yield each
        yield from _below(each)


def _words(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.start[0], " ".join(token.string.split())

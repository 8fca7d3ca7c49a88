"""What is replaced in a notebook, and how its outcome is told."""

import json
import tomllib
from pathlib import Path

import pytest

from tests.notebooks.__main__ import HERE, TABLE, Notebook, Result, replaced, sources

NOTEBOOK = Notebook(title="t", repository="r", path="p", sdk=2)


@pytest.mark.parametrize(
    ("source", "clock_speed", "expected"),
    [
        ("!pip install -U sagemaker\nimport a", 1, "pass\nimport a"),
        ('!{sys.executable} -m pip install "sagemaker>=2"', 1, "pass"),
        ("%pip install a", 1, "pass"),
        ("while True:\n    time.sleep(45)", 1, "while True:\n    time.sleep(1)"),
        ("time.sleep(0.5)", 1, "time.sleep(0.5)"),
        ("time.sleep(60)", 30, "time.sleep(2)"),
        ("!mkdir pip\nsleep(5)", 1, "!mkdir pip\nsleep(5)"),
    ],
)
def test_packages_and_sleeps_are_replaced(source: str, clock_speed: float, expected: str) -> None:
    """The environment has the packages; a sleep is as short as the emulator's clock is fast."""
    notebook = Notebook(title="t", repository="r", path="p", sdk=2, clock_speed=clock_speed)

    assert replaced(notebook, source) == expected


def test_code_cells_are_run_and_empty_ones_are_not_counted() -> None:
    cells = [("markdown", "# A"), ("code", ["a = 1\n", "b = 2"]), ("code", "  \n")]
    text = json.dumps({"cells": [{"cell_type": kind, "source": source} for kind, source in cells]})

    assert sources(NOTEBOOK, text) == ["a = 1\nb = 2"]


def test_the_cause_is_the_first_failure_and_not_what_follows_from_it() -> None:
    errors = {2: "ClientError: a | b\nc", 3: "NameError: name 'client' is not defined", 4: "KeyError: 'x'"}
    result = Result(cells=5, errors=errors, seconds=1, sdk="2.0")

    assert result.passed == 2
    assert result.cause == "cell 2: ClientError: a \\| b c; cell 4: KeyError: 'x'"


def test_every_notebook_has_a_row() -> None:
    described = tomllib.loads((HERE / "notebooks.toml").read_text())
    titles = [Notebook(**each).title for each in described["notebook"]]
    rows = [line for line in Path(TABLE).read_text().splitlines() if line.startswith("| [")]

    assert [row.partition("](")[0].removeprefix("| [") for row in rows] == titles

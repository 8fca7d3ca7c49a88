"""A pipeline of one's own to start from: a folder with a definition, its scripts and sample data."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from deploy.errors import Failed, SpecError

TEMPLATE = Path(__file__).with_name("template")
ROWS, SEED = 300, 1


def write(directory: Path) -> Iterator[str]:
    """Writes the folder; yields the lines for its user. Raises SpecError if it exists, Failed if it cannot be made."""
    if directory.exists():
        raise SpecError(f"{directory} exists: give the name of a new directory")
    try:
        shutil.copytree(TEMPLATE, directory, ignore=shutil.ignore_patterns("__pycache__"))
        (directory / "data").mkdir()
        (directory / "data" / "rows.csv").write_text(rows())
    except OSError as error:
        raise Failed(f"{directory} could not be written: {error.strerror}") from error
    for path in sorted(each for each in directory.rglob("*") if each.is_file()):
        yield str(path)
    yield f"next: python -m deploy pipeline {directory / 'pipeline.py'} run --local"


def rows() -> str:
    """Sample rows, the label first: a function of three features, with noise."""
    draw = random.Random(SEED)
    lines = []
    for _ in range(ROWS):
        one, two, three = (round(draw.uniform(0, 10), 3) for _ in range(3))
        label = round(2 * one - two + 0.1 * three**2 + draw.gauss(0, 0.2), 3)
        lines.append(f"{label},{one},{two},{three}\n")
    return "".join(lines)

"""The small GPT-2 and BART whose weights are committed in local_test/weights; each has a README.md."""

import shutil
from pathlib import Path

from local_test.recipes.packages import CannotMake

WEIGHTS = Path(__file__).parents[1] / "weights"
NAMES = ("gpt2", "bart")


def copy(directory: Path, cache: Path, name: str) -> None:
    """Copies the committed directory with its file times."""
    if not (WEIGHTS / name / "model.safetensors").exists():
        raise CannotMake(f"{WEIGHTS / name} has no model.safetensors: is the checkout complete?")
    shutil.copytree(WEIGHTS / name, directory)


def ours(directory: Path) -> bool:
    """Whether a directory is a copy of the committed weights, by the title of its README.md."""
    card, committed = directory / "README.md", WEIGHTS / directory.name / "README.md"
    return committed.exists() and card.exists() and _title(card) == _title(committed)


def outdated(directory: Path) -> bool:
    """Whether a directory is a copy of older committed weights, by file sizes and times."""
    return ours(directory) and _stamps(WEIGHTS / directory.name) != _stamps(directory)


def _title(card: Path) -> str:
    return card.read_text().partition("\n")[0]


def _stamps(directory: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in directory.glob("*")}

"""The small GPT-2 and BART whose weights are committed beside this; see the README.md of each."""

import shutil
from pathlib import Path

from local_test.recipes.packages import CannotMake

WEIGHTS = Path(__file__).parents[1] / "weights"
NAMES = ("gpt2", "bart")


def copied(name: str, directory: Path) -> bool:
    """Whether the directory holds just the committed files, by size and time, so that new weights are noticed."""
    return directory.is_dir() and _stamps(WEIGHTS / name) == _stamps(directory)


def copy(directory: Path, cache: Path, name: str) -> None:
    """Copy the committed directory with its file times."""
    if not (WEIGHTS / name / "model.safetensors").exists():
        raise CannotMake(f"{WEIGHTS / name} has no model.safetensors: is the checkout complete?")
    shutil.copytree(WEIGHTS / name, directory)


def _stamps(directory: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in directory.glob("*")}

"""Walks through a model's directory, and the symbolic links in it. Links that the operator made are followed.

The Hugging Face cache consists of links. In archives, which come from elsewhere, links are refused (archive.py).
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

DEEPEST = 4  # levels below the model's directory: adapters/NAME/checkpoint-10
CODE = "code"
_CACHE = ("blobs", "snapshots")  # in each models--OWNER--NAME of the Hugging Face cache, beside refs


def walk(directory: Path, *, code: bool = True, levels: int = DEEPEST) -> Iterator[os.DirEntry[str]]:
    """The visible entries of a directory, sorted, then those of the directories below.

    Links to directories are followed, but not into a directory that is being walked. `code`: with the directory code/.
    """
    yield from _below(directory, code, levels, frozenset([_identity(directory)]))


def _below(directory: Path, code: bool, levels: int, above: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as found:
        entries = sorted((each for each in found if not each.name.startswith(".")), key=lambda each: each.name)
    yield from entries
    for entry in entries:
        if levels and entry.is_dir() and (code or entry.name != CODE):
            identity = _identity(Path(entry))
            if identity not in above:
                yield from _below(Path(entry), code, levels - 1, above | {identity})


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def broken_link(path: Path | os.DirEntry[str]) -> str | None:
    """Why a symbolic link cannot be followed; None for a good link, and for a path that is none."""
    if not path.is_symlink():
        return None
    try:
        Path(path).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a loop of symbolic links"
        target = ascii(str(Path(path).readlink()))[1:-1]
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"a symbolic link to {target}, which does not exist"
        return f"a symbolic link to {target}: {error.strerror}"
    return None


def broken_below(directory: Path) -> str | None:
    """The first link in a directory or below that cannot be followed, with the reason."""
    for entry in walk(directory):
        if problem := broken_link(entry):
            name = ascii(str(Path(entry).relative_to(directory)))[1:-1]
            return f"{name}: {problem}; copy a model with the files that its links name: cp -rL"
    return None


def snapshot(directory: Path) -> Path | None:
    """The model in a models--OWNER--NAME of the Hugging Face cache: the snapshot of `main`, else the only one."""
    if not all((directory / name).is_dir() for name in _CACHE):
        return None
    snapshots = directory / "snapshots"
    try:
        main = snapshots / (directory / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        main = None
    if main is not None and main.parent == snapshots and main.is_dir():
        return main
    every = [each for each in snapshots.iterdir() if each.is_dir()]
    return every[0] if len(every) == 1 else None


def hub_id(name: str) -> str | None:
    """OWNER/NAME of a directory of the Hugging Face cache, from its name."""
    kind, *parts = name.split("--")
    return "/".join(parts) if kind == "models" and parts and all(parts) else None

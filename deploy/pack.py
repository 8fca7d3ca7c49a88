"""A directory of one model, or of several, as NAME.tar.gz: equal files make equal bytes, whoever packs them when."""

import argparse
import gzip
import hashlib
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from deploy import contents
from deploy.contents import Contents, Refused, Source

SUFFIX = ".tar.gz"
# zlib's fastest: weights hardly become smaller at any level, and every instance that loads them waits for this one.
LEVEL = 1

Count = Callable[[int], object]  # called with the number of bytes that were done since it was last called


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    path: Path
    size: int
    sha256: str


def pack(files: tuple[Source, ...], to: Path, count: Count = lambda _: None) -> Packed:
    """Write the archive, whole or not at all; one that is there is replaced. Raises Refused for a file that changes."""
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=to.parent) as beside:
        fresh = Path(beside, to.name)
        with fresh.open("xb") as raw:
            hashing = _Hashing(raw)
            # Neither name nor time in gzip's header; in tar's neither times, owners nor permissions.
            with (
                gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=hashing, mtime=0) as plain,
                tarfile.TarFile(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for each in files:
                    _add(tar, each, count)
        fresh.replace(to)
    return Packed(path=to, size=to.stat().st_size, sha256=hashing.digest.hexdigest())


@contextmanager
def bar(what: str, total: int) -> Iterator[Count]:
    """Bytes done, on a terminal; nothing where standard error is none."""
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False) as shown:
        yield shown.update


def sized(size: int) -> str:
    return f"{tqdm.format_sizeof(size)}B"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="a model's directory, or one that holds several")
    parser.add_argument("name", metavar="NAME", nargs="?", help="what it is to be called; else as the directory is")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path(), help="where NAME.tar.gz goes; else here")


def run(arguments: argparse.Namespace) -> int:
    """Standard output is the archive's path; what was found is told on standard error."""
    directory: Path = arguments.directory
    name = arguments.name or directory.resolve().name
    to: Path = arguments.out / (name + SUFFIX)
    try:
        found = contents.of_directory(directory, name)
        if arguments.out.resolve().is_relative_to(directory.resolve()):
            raise Refused(f"{to} would lie in what is packed; name another place with --out")
        arguments.out.mkdir(parents=True, exist_ok=True)
        with bar(f"pack {name}", found.size) as count:
            packed = pack(found.files, to, count)
    except Refused as error:
        print(f"pack: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"pack: {error.filename or to}: {error.strerror}", file=sys.stderr)
        return 1
    tell(name, found, packed)
    print(packed.path)
    return 0


def tell(name: str, found: Contents, packed: Packed) -> None:
    """What was packed, for a person."""
    sizes = f"{len(found.files)} files, {sized(found.size)} -> {sized(packed.size)}, sha256 {packed.sha256[:8]}"
    lines = [f"{name}: {found.kinds}; {sizes}"]
    if found.left_out:
        lines.append(f"  left out: {', '.join(found.left_out[:8])}{' ...' * (len(found.left_out) > 8)}")
    if found.bundle:
        lines.append("  several models: for a single-model endpoint, where each request names its model")
    print("\n".join(lines), file=sys.stderr)


def _add(tar: tarfile.TarFile, source: Source, count: Count) -> None:
    """One file, that is still the one which was checked."""
    member = tarfile.TarInfo(source.name)  # mode 0644, owner 0, time 0
    member.size = source.size
    try:
        opened = os.open(source.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Refused(f"{source.name}: {error.strerror}") from error
    with open(opened, "rb") as file:  # noqa: PTH123 - a descriptor
        try:
            tar.addfile(member, _Counting(file, count))
        except OSError as error:
            if error.errno is not None:
                raise
            raise Refused(f"{source.name}: it became shorter while it was packed") from error
        if file.read(1):
            raise Refused(f"{source.name}: it became longer while it was packed")
    tar.members = []  # type: ignore[attr-defined]  # tarfile keeps them all


class _Counting:
    def __init__(self, file: BinaryIO, count: Count) -> None:
        self._file, self._count = file, count

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._count(len(data))
        return data


class _Hashing:
    """A file to write to, and the SHA-256 of what has been written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

"""A directory of models as NAME.tar.gz: checked by the container's own code, then packed reproducibly.

Errors use the container's words. Equal files make equal bytes, on any machine and at any time.
"""

import argparse
import gzip
import hashlib
import os
import stat
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from deploy.errors import Failed
from deploy.models.upload import Count
from deploy.progress import counted, sized
from serve.catalog import archive
from serve.catalog.model_config import ModelConfig
from serve.catalog.recognition import JUNK, is_pickle, pickled, shown, xgboost_files
from serve.catalog.scan import describe, scan
from serve.errors import DoesNotFit, ModelUnusable
from serve.http.addresses import PLAIN

SUFFIX = ".tar.gz"
# zlib's fastest level: weights shrink little at any level, and every instance that loads them waits for decompression.
LEVEL = 1
# No part of a model, and some differ at each run: Python's caches contain times.
LEFT_OUT = JUNK | {".DS_Store", ".cache", ".git", ".gitattributes", ".gitignore", ".ipynb_checkpoints"}
LONGEST_PATH = 900  # bytes; a key in S3 has at most 1,024


@dataclass(frozen=True, slots=True)
class Source:
    name: str  # in the archive: relative, with /
    path: Path
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A directory or archive that the container can serve."""

    files: tuple[Source, ...]  # sorted by name
    left_out: tuple[str, ...]
    models: tuple[ModelConfig[Any], ...]
    bundle: bool  # several models: a multi-model endpoint loads one model from an archive, and cannot serve them

    @property
    def size(self) -> int:
        return sum(each.size for each in self.files)

    @property
    def kinds(self) -> str:
        """The models' handlers; with several models also their names."""
        return ", ".join(f"{each.name} ({each.handler})" if self.bundle else each.handler for each in self.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    path: Path
    size: int
    sha256: str


def run(given: argparse.Namespace) -> int:
    """The verb `pack`: print the archive's path on stdout and its contents on stderr. Raises Failed."""
    directory: Path = given.directory
    name = given.name or directory.resolve().name
    to: Path = given.out / (name + SUFFIX)
    try:
        found = of_directory(directory, name)
        if given.out.resolve().is_relative_to(directory.resolve()):
            raise Failed(f"{to} would be inside the packed directory; give another directory with --out")
        given.out.mkdir(parents=True, exist_ok=True)
        with counted(f"pack {name}", found.size) as count:
            packed = pack(found.files, to, count)
    except OSError as error:
        raise Failed(f"{error.filename or to}: {error.strerror}") from error
    summarise(name, found, packed)
    print(packed.path)
    return 0


def summarise(name: str, found: Contents, packed: Packed) -> None:
    """Print the packed contents on stderr."""
    sizes = f"{len(found.files)} files, {sized(found.size)} -> {sized(packed.size)}, sha256 {packed.sha256[:8]}"
    lines = [f"{name}: {found.kinds}; {sizes}"]
    if found.left_out:
        lines.append(f"  left out: {', '.join(found.left_out[:8])}{' ...' * (len(found.left_out) > 8)}")
    if found.bundle:
        lines.append("  several models: for a single-model endpoint, where each request names its model")
    print("\n".join(lines), file=sys.stderr)


# Checking


def of_directory(directory: Path, name: str) -> Contents:
    """The contents of a model's directory. Raises Failed if a file cannot be packed, or a model cannot load."""
    if not PLAIN.fullmatch(name):
        raise Failed(f"invalid model name {name!r}: it must be 1 to 64 letters, digits, dots, hyphens and underscores")
    if not directory.is_dir():
        raise Failed(f"{directory}: directory not found")
    try:
        files, left_out = _sources(directory)
        if not files:
            raise Failed(f"{directory}: the directory contains no file")
        if len(files) > archive.MOST_MEMBERS:
            raise Failed(f"{directory}: {len(files):,} files; the container accepts {archive.MOST_MEMBERS:,}")
        models, bundle = _models(directory, name)
    except OSError as error:
        raise Failed(f"{error.filename or directory}: {error.strerror}") from error
    return Contents(files=files, left_out=left_out, models=models, bundle=bundle)


def of_archive(packed: Path, name: str) -> Contents:
    """The contents of an archive, which is unpacked into a temporary directory."""
    with _unpacked(packed) as directory:
        found = of_directory(directory, name)
    return Contents(
        files=(Source(packed.name, packed, packed.stat().st_size),),
        left_out=(),
        models=found.models,
        bundle=found.bundle,
    )


def _sources(directory: Path) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """All files below, in an order that does not depend on the disk, and the names left out."""
    files: list[Source] = []
    left_out: list[str] = []
    waiting = [(directory, "")]
    while waiting:
        at, prefix = waiting.pop()
        with os.scandir(at) as entries:
            for entry in entries:
                name = prefix + entry.name
                found = entry.stat(follow_symlinks=False)
                if entry.name in LEFT_OUT or entry.name.startswith("._"):  # macOS stores attributes in ._*
                    left_out.append(shown(name))
                elif stat.S_ISDIR(found.st_mode):
                    waiting.append((Path(entry), name + "/"))
                else:
                    _refuse_odd(name, Path(entry), found.st_mode)
                    files.append(Source(name, Path(entry), found.st_size))
    return tuple(sorted(files, key=lambda each: each.name)), tuple(sorted(left_out))


def _refuse_odd(name: str, path: Path, mode: int) -> None:
    printable = shown(name)
    if not name.isprintable():
        raise Failed(f"{printable}: the name contains characters that cannot be printed; rename the file")
    if len(name.encode()) > LONGEST_PATH:
        raise Failed(f"{printable[:80]}...: the path has {len(name.encode())} bytes; the limit is {LONGEST_PATH}")
    if stat.S_ISLNK(mode):
        to = shown(str(path.readlink()))
        raise Failed(f"{printable}: a symbolic link to {to} is not supported; pack a copy: cp -rL DIR COPY")
    if not stat.S_ISREG(mode):
        kind = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(mode), "a device")
        raise Failed(f"{printable}: {kind} is not supported; only files can be packed")


def _models(directory: Path, name: str) -> tuple[tuple[ModelConfig[Any], ...], bool]:
    """The models that the container would find here. Raises Failed with all its complaints."""
    try:  # one model in the directory, as a multi-model endpoint loads it
        alone = describe(name, directory)
    except ModelUnusable as error:
        bundle = True
        specs, problems = _bundle(directory)
        if not specs and not problems:
            problems = [error.message]
    else:
        bundle = False
        specs, problems = [alone], list(_pickles(alone))
    if problems:
        raise Failed(f"{directory}: " + "\n  ".join(problems))
    return tuple(specs), bundle


def _bundle(directory: Path) -> tuple[list[ModelConfig[Any]], list[str]]:
    """The models in a directory of several, and their problems."""
    specs, problems = [], []
    for entry in scan(directory).entries.values():
        where = "" if entry.path == directory else f"{entry.name}: "
        if entry.problem:
            problems.append(where + entry.problem)
        elif entry.config:
            specs.append(entry.config)
            problems += [where + each for each in _pickles(entry.config)]
        else:
            with _unpacked(entry.path) as inner:
                specs.append(describe(entry.name, inner))
                problems += [where + each for each in _pickles(specs[-1])]
    return specs, problems


def _pickles(spec: ModelConfig[Any]) -> Iterator[str]:
    """The pickles that the handler would refuse. A model with own code, or with `allow_pickle`, may contain pickles."""
    if spec.handler == "custom" or getattr(spec.options, "allow_pickle", False):
        return
    boosters = [each for each in xgboost_files(spec.directory) if is_pickle(_first_byte(each))]
    for found in (*pickled(spec.directory), *boosters):
        yield (
            f"{found.name}: a pickle runs code when it is loaded: remove it. If it is the model, save the model as "
            f"safetensors or skops; for XGBoost: `python -m serve convert {found.name} model.ubj`"
        )


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


@contextmanager
def _unpacked(packed: Path) -> Iterator[Path]:
    """An archive's content, unpacked as the container does it. Raises Failed for an archive that it would refuse."""
    with tempfile.TemporaryDirectory(prefix="checking-") as beside:
        try:
            yield archive.unpack(packed, Path(beside, "model"), limit_bytes=archive.disk(Path(beside))[0])
        except (ModelUnusable, DoesNotFit) as error:
            raise Failed(f"{error.message}\n  {error.hint}") from error


# Packing


def pack(files: tuple[Source, ...], to: Path, count: Count = lambda _: None) -> Packed:
    """Write the archive atomically; an existing one is replaced. Raises Failed for a file that changes meanwhile."""
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=to.parent) as beside:
        fresh = Path(beside, to.name)
        with fresh.open("xb") as raw:
            hashing = _Hashing(raw)
            # No name and no time in gzip's header; no times, owners and permissions in tar's.
            with (
                gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=hashing, mtime=0) as plain,
                tarfile.TarFile(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for each in files:
                    _add(tar, each, count)
        fresh.replace(to)
    return Packed(path=to, size=to.stat().st_size, sha256=hashing.digest.hexdigest())


def _add(tar: tarfile.TarFile, source: Source, count: Count) -> None:
    """Add one file. Raises Failed if it is no longer the file that was checked."""
    member = tarfile.TarInfo(source.name)  # mode 0644, owner 0, time 0
    member.size = source.size
    try:
        opened = os.open(source.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Failed(f"{source.name}: {error.strerror}") from error
    with open(opened, "rb") as file:  # noqa: PTH123 - a descriptor
        try:
            tar.addfile(member, _Counting(file, count))
        except OSError as error:
            if error.errno is not None:
                raise
            raise Failed(f"{source.name}: the file became shorter during packing") from error
        if file.read(1):
            raise Failed(f"{source.name}: the file became longer during packing")
    tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every member in memory


class _Counting:
    def __init__(self, file: BinaryIO, count: Count) -> None:
        self._file, self._count = file, count

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._count(len(data))
        return data


class _Hashing:
    """A file to write to, with the SHA-256 of the bytes written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

"""What there is to pack, judged by the container's own code: what is wrong is said in the words of the endpoint."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve.catalog import archive, catalog
from serve.catalog.catalog import Spec, describe
from serve.catalog.recognition import JUNK, pickled, shown, xgboost_files
from serve.errors import DoesNotFit, ModelUnusable
from serve.http.addresses import PLAIN

# No model is made of these, and some differ at each run: Python's caches hold times.
LEFT_OUT = JUNK | {".DS_Store", ".cache", ".git", ".gitattributes", ".gitignore", ".ipynb_checkpoints"}
LONGEST_PATH = 900  # bytes; an object's key in S3 has 1,024
READ_PICKLES = ("sklearn", "xgboost")  # the handlers that know `allow_pickle`


class Refused(Exception):
    """What cannot be packed or put; the message names the file, and says what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    name: str  # in the archive: relative, with /
    path: Path
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A directory or archive in which the container finds nothing wrong."""

    files: tuple[Source, ...]  # by name
    left_out: tuple[str, ...]
    models: tuple[Spec, ...]
    bundle: bool  # several models, which a multi-model endpoint takes one by one only

    @property
    def size(self) -> int:
        return sum(each.size for each in self.files)

    @property
    def kinds(self) -> str:
        """Of which handlers, by the models' names where there are several."""
        return ", ".join(f"{each.name} ({each.handler})" if self.bundle else each.handler for each in self.models)


def of_directory(directory: Path, name: str) -> Contents:
    """Raises Refused for files that no archive may hold, and for models that nobody could load."""
    if not PLAIN.fullmatch(name):
        raise Refused(f"a model cannot be called {name!r}: 1 to 64 letters, digits, dots, hyphens and underscores")
    if not directory.is_dir():
        raise Refused(f"{directory}: there is no such directory")
    try:
        files, left_out = _sources(directory)
        if not files:
            raise Refused(f"{directory}: no file is in it")
        if len(files) > archive.MOST_MEMBERS:
            raise Refused(f"{directory}: {len(files):,} files; the container takes {archive.MOST_MEMBERS:,}")
        models, bundle = _models(directory, name)
    except OSError as error:
        raise Refused(f"{error.filename or directory}: {error.strerror}") from error
    return Contents(files=files, left_out=left_out, models=models, bundle=bundle)


def of_archive(packed: Path, name: str) -> Contents:
    """The same for an archive, whoever made it: it is unpacked, and removed again."""
    with _unpacked(packed) as directory:
        found = of_directory(directory, name)
    return Contents(
        files=(Source(packed.name, packed, packed.stat().st_size),),
        left_out=(),
        models=found.models,
        bundle=found.bundle,
    )


def _sources(directory: Path) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """All files below, in an order that does not depend on the disk, and what stays behind."""
    files: list[Source] = []
    left_out: list[str] = []
    waiting = [(directory, "")]
    while waiting:
        at, prefix = waiting.pop()
        with os.scandir(at) as entries:
            for entry in entries:
                name = prefix + entry.name
                found = entry.stat(follow_symlinks=False)
                if entry.name in LEFT_OUT or entry.name.startswith("._"):  # macOS keeps attributes in ._*
                    left_out.append(shown(name))
                elif stat.S_ISDIR(found.st_mode):
                    waiting.append((Path(entry), name + "/"))
                else:
                    _refuse_odd(name, Path(entry), found.st_mode)
                    files.append(Source(name, Path(entry), found.st_size))
    return tuple(sorted(files, key=lambda each: each.name)), tuple(sorted(left_out))


def _refuse_odd(name: str, path: Path, mode: int) -> None:
    said = shown(name)
    if not name.isprintable():
        raise Refused(f"{said}: a name with characters that cannot be printed; rename it")
    if len(name.encode()) > LONGEST_PATH:
        raise Refused(f"{said[:80]}...: a path of {len(name.encode())} bytes; {LONGEST_PATH} are the most")
    if stat.S_ISLNK(mode):
        to = shown(str(path.readlink()))
        raise Refused(f"{said}: a link, to {to}; pack a copy in which files are files: cp -rL DIR COPY")
    if not stat.S_ISREG(mode):
        kind = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(mode), "a device")
        raise Refused(f"{said}: {kind}; only files can be packed")


def _models(directory: Path, name: str) -> tuple[tuple[Spec, ...], bool]:
    """What the container would find here. Raises Refused with all that it would complain of."""
    try:  # as a multi-model endpoint does, which loads one model from one archive
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
        raise Refused(f"{directory}: " + "\n  ".join(problems))
    return tuple(specs), bundle


def _bundle(directory: Path) -> tuple[list[Spec], list[str]]:
    """The models in a directory of several, and what is wrong with them."""
    specs, problems = [], []
    for entry in catalog.scan(directory).entries.values():
        where = "" if entry.path == directory else f"{entry.name}: "
        if entry.problem:
            problems.append(where + entry.problem)
        elif entry.spec:
            specs.append(entry.spec)
            problems += [where + each for each in _pickles(entry.spec)]
        else:
            with _unpacked(entry.path) as inner:
                specs.append(describe(entry.name, inner))
                problems += [where + each for each in _pickles(specs[-1])]
    return specs, problems


def _pickles(spec: Spec) -> Iterator[str]:
    """What its handler would refuse. Where a model's own code loads it, or its card allows it, a pickle may stay."""
    opted_in = spec.handler in READ_PICKLES and spec.options.get("allow_pickle") is True
    if spec.handler == "custom" or opted_in:
        return
    boosters = [each for each in xgboost_files(spec.directory) if _opens_as_pickle(each)]
    for found in (*pickled(spec.directory), *boosters):
        yield (
            f"{found.name}: a pickle runs code when it is loaded: take it out. Where it is the model, save that as "
            f"safetensors or skops; XGBoost's is made data by `python -m serve convert {found.name} model.ubj`"
        )


def _opens_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) in (b"\x80", b"c", b"(")


@contextmanager
def _unpacked(packed: Path) -> Iterator[Path]:
    """An archive's content as the container would have it. Raises Refused for what it would not take."""
    with tempfile.TemporaryDirectory(prefix="checking-") as beside:
        try:
            yield archive.unpack(packed, Path(beside, "model"), limit_bytes=archive.disk(Path(beside))[0])
        except (ModelUnusable, DoesNotFit) as error:
            raise Refused(f"{error.message}\n  {error.hint}") from error

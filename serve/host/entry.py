"""What lies under a model directory, each thing as an entry: what its files and its card say of it, or its problem."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve.errors import ModelUnusable
from serve.host import card, estimate, files, recognition
from serve.host.card import Example

log = logging.getLogger(__name__)

ONLY = "model"  # the name of a model that is the model directory itself and does not say another
ARCHIVES = (".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a model's directory and its model.toml say."""

    name: str
    directory: Path
    handler: str  # a key of serve.handlers.HANDLERS
    task: str | None
    aliases: tuple[str, ...]
    model_type: str | None  # Hugging Face's, from config.json: gpt2, bart...
    copies: int = 1
    threads: int | None = None
    pin: bool = False
    preload: bool = False
    max_batch: int | None = None
    options: Mapping[str, Any]
    example: Example | None
    bytes: int  # estimate of the memory one copy will take


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing found under the model directory."""

    name: str
    path: Path  # a directory, or an archive
    archive: bool
    spec: Spec | None  # None for an archive, unknown until it is unpacked, and when there is a problem
    problem: str | None  # why it cannot be served, for whoever asks for it


def entries(model_dir: Path, hf_task: str = "", program: str = "") -> list[Entry]:
    """What is under a model directory, which may be absent or empty. Raises OSError when it cannot be read.

    `hf_task`, `program`: as for `recognition.recognise`.
    """
    if not model_dir.exists():
        return []
    if recognition.marked(model_dir, program):
        return [_root(model_dir, hf_task, program)]
    # Later ones win: a directory over the archive it was unpacked from.
    found = {}
    for path in sorted(files.visible(model_dir), key=lambda each: each.is_dir()):
        broken = path.is_symlink() and not path.exists()
        if (path.is_dir() and path.name != files.CODE) or broken or _is_archive(path):
            name = path.name if path.is_dir() else stem(path.name)
            if not _sayable(name):
                log.warning("skipped a name with control characters", extra={"path": ascii(str(path))})
                continue
            found[name] = _entry(name, path, model_dir, hf_task, program)
    if not found and files.visible(model_dir):
        return [_root(model_dir, hf_task, program)]
    return _without_clashes(found.values())


def describe(name: str, directory: Path, hf_task: str = "", program: str = "") -> Spec:
    """What this directory is as a model. Raises ModelUnusable, naming the file at fault and the cause."""
    try:
        inner = files.top(directory)
        said = card.read(inner)
        found = recognition.recognise(inner, said, hf_task, program)
        needs = estimate.memory_bytes(inner, found.handler, said.options)
    except ModelUnusable as error:
        error.model = name
        raise
    except OSError as error:
        at = files.shown(Path(error.filename or directory).name)
        raise ModelUnusable(f"{at}: {error.strerror}", model=name) from error
    # The file system names a model; what its card calls it is one more way to ask for it.
    also = (said.name,) if said.name not in (None, name) else ()
    return Spec(
        name=name,
        directory=inner,
        handler=found.handler,
        task=found.task,
        aliases=tuple(dict.fromkeys(each for each in (*also, *said.aliases) if each)),
        model_type=found.model_type,
        copies=said.copies,
        threads=said.threads,
        pin=said.pin,
        preload=said.preload,
        max_batch=said.max_batch,
        options=said.options | ({"program": found.program} if found.program else {}),
        example=said.example,
        bytes=needs,
    )


def _root(model_dir: Path, hf_task: str, program: str) -> Entry:
    try:
        name = card.read(model_dir).name or ONLY
    except (ModelUnusable, OSError):
        name = ONLY  # `describe` says what is wrong with the card
    return _entry(name, model_dir, model_dir, hf_task, program)


def _entry(name: str, path: Path, model_dir: Path, hf_task: str, program: str) -> Entry:
    archive = _is_archive(path)
    spec, problem = None, None
    if not path.exists():
        problem = f"{files.shown(path.name)}: a link to nothing"
    elif path != model_dir and path.is_symlink() and not path.resolve().is_relative_to(model_dir.resolve()):
        problem = f"{files.shown(path.name)}: a link that leaves the model directory"
    elif not archive:
        try:
            spec = describe(name, path, hf_task, program)
        except ModelUnusable as error:
            problem = error.message
    return Entry(name=name, path=path, archive=archive, spec=spec, problem=problem)


def _without_clashes(entries: Iterable[Entry]) -> list[Entry]:
    """The entries, by name; one that claims an alias another has claimed before gets a problem that names the other."""
    owners: dict[str, str] = {}
    settled = []
    for entry in by_name(entries):
        aliases = entry.spec.aliases if entry.spec else ()
        taken = next((alias for alias in aliases if alias in owners), None)
        if taken is not None:
            problem = f"model.toml: aliases: {taken!r} is taken by the model {owners[taken]!r}"
            entry = replace(entry, spec=None, problem=problem)
        else:
            owners |= dict.fromkeys(aliases, entry.name)
        settled.append(entry)
    return settled


def by_name(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda each: each.name)


def _is_archive(path: Path) -> bool:
    return path.name.endswith(ARCHIVES) and path.is_file()


def stem(name: str) -> str:
    for suffix in ARCHIVES:
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix)
    return name


def _sayable(name: str) -> bool:
    """No control characters, and writable as UTF-8 (a name of other bytes cannot be asked for)."""
    return not any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in name)

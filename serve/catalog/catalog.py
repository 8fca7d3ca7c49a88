"""Which model a caller means: names, aliases and Hugging Face types of the models there are; no weights."""

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from serve.catalog import estimate, model_toml, recognition
from serve.catalog.model_toml import Example
from serve.errors import BadRequest, ModelNotFound, ModelUnusable

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
    for path in sorted(recognition.visible(model_dir), key=lambda each: each.is_dir()):
        broken = path.is_symlink() and not path.exists()
        if (path.is_dir() and path.name != recognition.CODE) or broken or _is_archive(path):
            name = path.name if path.is_dir() else stem(path.name)
            if not _sayable(name):
                log.warning("skipped a name with control characters", extra={"path": ascii(str(path))})
                continue
            found[name] = _entry(name, path, model_dir, hf_task, program)
    if not found and recognition.visible(model_dir):
        return [_root(model_dir, hf_task, program)]
    return _without_clashes(found.values())


def describe(name: str, directory: Path, hf_task: str = "", program: str = "") -> Spec:
    """What this directory is as a model. Raises ModelUnusable, naming the file at fault and the cause."""
    try:
        inner = recognition.top(directory)
        said = model_toml.read(inner)
        found = recognition.recognise(inner, said, hf_task, program)
        needs = estimate.memory_bytes(inner, found.handler, said.options)
    except ModelUnusable as error:
        error.model = name
        raise
    except OSError as error:
        at = recognition.shown(Path(error.filename or directory).name)
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
        name = model_toml.read(model_dir).name or ONLY
    except (ModelUnusable, OSError):
        name = ONLY  # `describe` says what is wrong with the card
    return _entry(name, model_dir, model_dir, hf_task, program)


def _entry(name: str, path: Path, model_dir: Path, hf_task: str, program: str) -> Entry:
    archive = _is_archive(path)
    spec, problem = None, None
    if not path.exists():
        problem = f"{recognition.shown(path.name)}: a link to nothing"
    elif path != model_dir and path.is_symlink() and not path.resolve().is_relative_to(model_dir.resolve()):
        problem = f"{recognition.shown(path.name)}: a link that leaves the model directory"
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


LISTED = 600  # characters of names in a message; InvokeEndpoint shows its caller 2,048 of the whole
ASKED = 120
COMPARED = 40  # a comparison costs the square of the length, and anybody may ask: 900 names took 2.3 s at 120


class Catalog:
    """Models by name, and by what else a caller may call them: names win over aliases over Hugging Face types."""

    def __init__(self, found: Iterable[Entry]) -> None:
        self.entries: Mapping[str, Entry] = MappingProxyType({each.name: each for each in by_name(found)})
        specs = [each.spec for each in self.entries.values() if each.spec]
        self._types: dict[str, list[str]] = {}
        for spec in specs:
            if spec.model_type:
                self._types.setdefault(spec.model_type, []).append(spec.name)
        types = {each: names[0] for each, names in self._types.items() if len(names) == 1}
        aliases = {alias: spec.name for spec in reversed(specs) for alias in spec.aliases}
        self._known = types | aliases | {name: name for name in self.entries}

    def resolve(self, asked: str) -> str:
        """The model called so, with or without .tar.gz. Raises ModelNotFound, naming those there are."""
        found = self._known.get(asked) or self._known.get(stem(asked))
        if found is None:
            raise ModelNotFound(self._none_such(asked), hint=self._advice(asked))
        return found

    def default(self, preferred: str = "") -> str | None:
        """The model for requests that name none: the preferred one, else the only one, else None."""
        if preferred:
            return self.resolve(preferred)
        return next(iter(self.entries)) if len(self.entries) == 1 else None

    def some(self) -> list[str]:
        """A few of the names there are."""
        return [_cut(name) for name in islice(self.entries, 20)]

    def _none_such(self, asked: str) -> str:
        if not self.entries:
            return f"no model named {_cut(asked)!r}: there are no models here"
        names = [_cut(name) for name in self.entries]
        listed = [name for name, end in zip(names, accumulate(len(name) + 2 for name in names)) if end <= LISTED]
        rest = f" and {len(names) - len(listed)} more" if len(listed) < len(names) else ""
        return f"no model named {_cut(asked)!r}; there are: {', '.join(listed)}{rest}"

    def _advice(self, asked: str) -> str:
        base = stem(asked)
        if base in self._types:
            return f"{_cut(base)!r} is the type of several: {_cut(', '.join(self._types[base]))}; ask for one by name"
        by_lower = {known[:COMPARED].lower(): known for known in self._known}
        close = difflib.get_close_matches(base[:COMPARED].lower(), by_lower, n=1)
        return f"did you mean {_cut(by_lower[close[0]])!r}?" if close else "GET /models shows what each of them is"


def scan(model_dir: Path, hf_task: str = "", program: str = "") -> Catalog:
    """The models under a model directory; `hf_task`, `program`: as for `recognition.recognise`. Raises OSError."""
    return Catalog(entries(model_dir, hf_task, program))


def _cut(text: str) -> str:
    text = text.encode(errors="replace").decode()
    return text if len(text) <= ASKED else text[:ASKED] + "…"


def real(url: Path, roots: Sequence[Path]) -> Path:
    """Where a url leads, links followed. Raises BadRequest for what is no path, or leads out of the roots."""
    try:
        path = url.resolve()
        inside = url.is_absolute() and any(path.is_relative_to(root.resolve()) for root in roots)
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a surrogate, a loop of links
        raise BadRequest(f"url {_cut(str(url))!r} is not a path: {error}") from error
    if not inside:
        allowed = " or ".join(str(root) for root in roots)
        raise BadRequest(f"url {_cut(str(url))!r} is not under {allowed}", hint="SERVE_MODEL_ROOTS names the roots")
    return path

"""The configuration of a model: `model.toml`, checked key by key, and the one record that all processes pass on.

`ModelToml` has the keys that an owner may write. `ModelConfig` adds what recognition found and the settings that a
handler needs. The host makes it, the catalog file and the channel to the runner carry it, and the handler gets it.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

import msgspec

from serve.catalog.kinds import ALIASES, HANDLERS, options_of, task_names
from serve.errors import ModelUnusable
from serve.settings import Settings

FILE = "model.toml"
LONGEST = 1 << 20
MOST_COPIES = 64
# Own code may have options of its own. An unknown one this similar (of 1) to an option of the server is a mistake.
MISSPELT = 0.85

Options_co = TypeVar("Options_co", covariant=True)


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A request that the model is known to answer."""

    content_type: str
    body: str


class Allow(msgspec.Struct, frozen=True, kw_only=True):
    """What the code of a model may do beside computing, reading its own files, and writing temporary ones."""

    network: bool = False
    subprocess: bool = False
    credentials: bool = False
    environment: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What callers may ask of the model, of all its copies together; None: no limit."""

    concurrency: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None  # requests at work
    queue: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None  # requests that wait
    requests_per_second: Annotated[float, msgspec.Meta(ge=0.001, le=1e6)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None  # requests at once, within that rate
    tokens_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] | None = None


class ModelToml(msgspec.Struct, Generic[Options_co], frozen=True, kw_only=True):
    """The keys of model.toml. A new key is one line here."""

    name: str | None = None
    handler: str | None = None
    task: str | None = None
    aliases: tuple[str, ...] = ()
    copies: Annotated[int, msgspec.Meta(ge=1, le=MOST_COPIES)] = 1
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    device: Annotated[str, msgspec.Meta(pattern=r"^(cpu|cuda(:\d{1,2})?)$")] | None = None  # None: a GPU where one is
    pin: bool = False
    preload: bool = False
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    limits: Limits | None = None
    memory_limit_mb: Annotated[int, msgspec.Meta(ge=1)] | None = None  # of one process
    options: Options_co
    allow: Allow = Allow()
    example: Example | None = None


class ModelConfig(ModelToml[Options_co], Generic[Options_co], frozen=True, kw_only=True):
    """One model: the keys of its model.toml, what recognition found, and the settings that a handler needs."""

    name: str
    handler: str  # a key of serve.catalog.kinds.HANDLERS
    threads: int = 1  # of the framework's own pool, in each process
    max_batch: int = 32  # requests (for generation, sequences) in one batch

    # Found.
    directory: Path
    submitted: Path | None = None  # the code of SAGEMAKER_SUBMIT_DIRECTORY, in place of the model's own code/
    model_type: str | None = None  # Hugging Face's, from config.json: gpt2, bart...
    bytes: int = 0  # estimated memory of one copy, on a machine without GPUs
    device_bytes: int = 0  # estimated memory of one copy on a GPU; 0: its handler uses none
    taken: frozenset[str] = frozenset()  # names and aliases of other models: never this one, as type or task either

    # Copied from the setting of the same name. A new one is one line here.
    remote_code: bool = False
    model_field: str = "model_type"
    default_accept: str = ""
    batch_transform: bool = False
    multi_model: bool = False
    inference_output: str = ""
    ensemble: bool = True
    run_dir: Path | None = None

    @property
    def code(self) -> Path:
        """The directory of the model's code."""
        return self.submitted or self.directory / "code"

    def names(self) -> list[str]:
        """The names by which a request may call the model."""
        kinds = [each for each in (self.model_type, *self.tasks()) if each and each not in self.taken]
        return list(dict.fromkeys((self.name, f"{self.name}.tar.gz", *self.aliases, *kinds)))

    def tasks(self) -> tuple[str, ...]:
        """All names of its task."""
        return task_names(self.task) if self.task else ()


_FROM_SETTINGS = [
    each.name
    for each in fields(Settings)
    if each.name in ModelConfig.__struct_fields__ and each.name not in ModelToml.__struct_fields__
]


def configured(
    said: ModelToml[Any], settings: Settings, *, name: str, handler: str, directory: Path, **found: Any
) -> ModelConfig[Any]:
    """The record of a model: `said` in its model.toml, `found` in its files, and the settings where neither decides."""
    values = msgspec.structs.asdict(said) | {each: getattr(settings, each) for each in _FROM_SETTINGS}
    values["threads"] = said.threads or settings.threads or 1
    values["max_batch"] = said.max_batch or settings.max_batch
    for each in Allow.__struct_fields__:
        if getattr(said.allow, each) and each not in settings.allow and "*" not in settings.allow:
            hint = "the operator lists what models may allow themselves in SERVE_ALLOW"
            raise ModelUnusable(f"{FILE}: allow: {each} is refused by this server", hint=hint)
    return ModelConfig(**values | {"name": name, "handler": handler, "directory": directory} | found)


# Reading model.toml.


def read(directory: Path) -> ModelToml[dict[str, Any]]:
    """The model.toml of `directory`, or its defaults where there is none. Raises ModelUnusable, naming the key."""
    path = directory / FILE
    if not path.is_file():
        return ModelToml(options={})
    if path.stat().st_size > LONGEST:
        raise ModelUnusable(f"{FILE}: larger than {LONGEST >> 20} MB")
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as bad:
        raise ModelUnusable(f"{FILE}: invalid TOML: {bad}") from None
    return parse(table)


def requires(directory: Path) -> bool:
    """Whether the model.toml of a model that cannot be served asks for a preload or a pin, if it can be parsed."""
    path = directory / FILE
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:
            return False
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return table.get("preload") is True or table.get("pin") is True


def parse(table: dict[str, Any]) -> ModelToml[dict[str, Any]]:
    """A parsed model.toml, whose options are not checked yet. Raises ModelUnusable, naming the key."""
    _refuse_unknown(table, ModelToml.__struct_fields__, "key")
    if isinstance(table.get("example"), dict):
        _refuse_unknown(table["example"], Example.__struct_fields__, "key of [example]")
    if isinstance(table.get("allow"), dict):
        _refuse_unknown(table["allow"], Allow.__struct_fields__, "key of [allow]")
    if isinstance(table.get("limits"), dict):
        _refuse_unknown(table["limits"], Limits.__struct_fields__, "key of [limits]")
        if "burst" in table["limits"] and "requests_per_second" not in table["limits"]:
            raise ModelUnusable(f"{FILE}: limits.burst is of a rate; set requests_per_second too")
    said: ModelToml[dict[str, Any]] = _converted({"options": {}, **table}, ModelToml[dict[str, Any]])
    if (handler := said.handler) is not None:
        handler = ALIASES.get(handler, handler)
        _refuse_unknown([handler], HANDLERS, "handler")
        said = msgspec.structs.replace(said, handler=handler)
    for key, names in (("name", [said.name] if said.name is not None else []), ("aliases", said.aliases)):
        for name in names:
            if not name.strip() or "/" in name or not name.isprintable():
                raise ModelUnusable(
                    f"{FILE}: {key}: invalid name {name!r}: it is empty, or contains / or a control character"
                )
    for path in (*said.allow.read, *said.allow.write):
        if not path.startswith("/") or "\0" in path:
            raise ModelUnusable(f"{FILE}: allow: {path!r} is not an absolute path")
    return said


def checked_options(handler: str, table: dict[str, Any]) -> Any:
    """The `[options]` of a model as its handler's struct. Raises ModelUnusable, naming the option."""
    kind = options_of(handler)
    names = [each for each in kind.__struct_fields__ if each != "others"]
    known = {name: value for name, value in table.items() if name in names}
    others = {name: value for name, value in table.items() if name not in names}
    if "others" in kind.__struct_fields__:  # for the model's own code
        _refuse_unknown(_misspelt(others, [name for name in names if name not in known]), names, "option")
        known["others"] = _portable(others)
    else:
        _refuse_unknown(others, names, f"option of {handler}")
    return _converted(known, kind, "options.")


def _portable(table: dict[str, Any]) -> Any:
    """Values that can travel between processes: dates and times as text."""
    try:
        msgspec.msgpack.encode(table)
    except OverflowError:
        raise ModelUnusable(f"{FILE}: options: an integer does not fit 64 bits") from None
    return msgspec.to_builtins(table)


def _misspelt(given: Iterable[str], names: list[str]) -> list[str]:
    return [name for name in given if difflib.get_close_matches(name.lower(), names, n=1, cutoff=MISSPELT)]


def _converted(table: dict[str, Any], kind: Any, inside: str = "") -> Any:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as bad:
        says, _, where = str(bad).partition(" - at `$.")
        where = where.rstrip("`")
        if says.startswith("Invalid enum value"):
            known = next(each.type for each in msgspec.structs.fields(kind) if each.name == where)
            says = f"unsupported value {table[where]!r}; use one of: {', '.join(_choices(known))}"
        raise ModelUnusable(f"{FILE}: {inside}{where}: {says}" if where else f"{FILE}: {says}") from None


def _choices(annotation: Any) -> list[str]:
    """The values of the Literal in an annotation."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in _choices(part)]


def _refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
            advice = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ModelUnusable(f"{FILE}: no {what} named {name!r}; {advice}")


# From process to process. msgpack, because JSON has neither bytes (of paths that are not UTF-8) nor infinity.


class _Head(msgspec.Struct):
    handler: str


_HEAD = msgspec.msgpack.Decoder(_Head)


def encoded(config: ModelConfig[Any]) -> bytes:
    """A model's record as bytes."""
    return msgspec.msgpack.encode(config, enc_hook=to_bytes)


def decoded(raw: bytes) -> ModelConfig[Any]:
    """The record that `encoded` wrote, its options in their handler's struct."""
    return decoder(_HEAD.decode(raw).handler).decode(raw)


@cache
def decoder(handler: str) -> msgspec.msgpack.Decoder[ModelConfig[Any]]:
    """The decoder of a handler's records. Made before a fork, it costs the children no memory."""
    kind: Any = ModelConfig
    return msgspec.msgpack.Decoder(kind[options_of(handler)], dec_hook=from_bytes)


def to_bytes(path: Any) -> bytes:
    """For msgspec's `enc_hook`: a path as the file system has it."""
    if isinstance(path, Path):
        return os.fsencode(path)
    raise NotImplementedError(type(path))


def from_bytes(kind: type, raw: Any) -> Path:
    """For msgspec's `dec_hook`."""
    return Path(os.fsdecode(raw))

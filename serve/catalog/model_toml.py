"""`model.toml`, what a model's owner may say about it: read, checked key by key, and never guessed at."""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from serve.catalog.kinds import HANDLERS
from serve.errors import ModelUnusable

FILE = "model.toml"
LONGEST = 1 << 20


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A request the model is known to answer."""

    content_type: str
    body: str


class ModelToml(msgspec.Struct, frozen=True, kw_only=True):
    """All that a model.toml may say."""

    name: str | None = None
    handler: str | None = None
    task: str | None = None
    aliases: tuple[str, ...] = ()
    copies: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    pin: bool = False
    preload: bool = False
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    options: dict[str, Any] = {}
    example: Example | None = None


def read(directory: Path) -> ModelToml:
    """The card in `directory`, an empty one when there is none. Raises ModelUnusable, naming the key at fault."""
    path = directory / FILE
    if not path.is_file():
        return ModelToml()
    if path.stat().st_size > LONGEST:
        raise ModelUnusable(f"{FILE}: longer than {LONGEST >> 20} MB")
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as bad:
        raise ModelUnusable(f"{FILE}: not valid TOML: {bad}") from None
    return parse(table)


def parse(table: dict[str, Any]) -> ModelToml:
    """The card that a parsed model.toml means. Raises ModelUnusable, naming the key at fault."""
    _refuse_unknown(table, ModelToml.__struct_fields__, "key")
    if isinstance(table.get("example"), dict):
        _refuse_unknown(table["example"], Example.__struct_fields__, "key of [example]")
    try:
        card = msgspec.convert(table, ModelToml)
    except msgspec.ValidationError as bad:
        said, _, where = str(bad).partition(" - at `$.")
        raise ModelUnusable(f"{FILE}: {where.rstrip('`')}: {said}" if where else f"{FILE}: {said}") from None
    if card.handler is not None:
        _refuse_unknown([card.handler], tuple(HANDLERS), "handler")
    for key, names in (("name", [card.name] if card.name is not None else []), ("aliases", card.aliases)):
        for name in names:
            if not name.strip() or "/" in name or not name.isprintable():
                raise ModelUnusable(f"{FILE}: {key}: {name!r} is empty, or has a / or a control character")
    return card


def _refuse_unknown(given: Any, known: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
            advice = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ModelUnusable(f"{FILE}: no {what} named {name!r}; {advice}")

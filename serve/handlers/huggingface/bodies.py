"""Requests and replies as transformers' pipelines, and AWS's toolkit around them, have them.

A request is `{"inputs": ..., "parameters": {...}}`, or the input alone; as CSV its header names the columns. What is
wrong with it is a 400 that names the place.
"""

import codecs
import csv
import difflib
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from serve.handlers.base import Reply, Request
from serve.http import media

JSON, CSV, TEXT, NPY = "application/json", "text/csv", "text/plain", "application/x-npy"

# What Python can decode and no client sends: the first two take a time that grows with the square of the body, the
# others give halves of surrogate pairs, which are no text to a tokenizer.
NO_CHARSETS = ("idna", "punycode", "utf-7", "unicode_escape", "raw_unicode_escape")

P = TypeVar("P", bound=msgspec.Struct)

csv.field_size_limit(1 << 27)  # the default refuses cells over 128 kB; a body's size is limited before it comes here


def accepted(request: Request, model: ModelConfig[Any], offers: tuple[str, ...]) -> str:
    """The media type of the reply."""
    return media.choose(request.accept, offers, model.default_accept if model.default_accept in offers else JSON)


def parse(
    request: Request,
    model_field: str,
    kind: type[P],
    *,
    bare: tuple[str, ...] = (),
    table: bool = True,
    known: Sequence[str] = (),
) -> tuple[Any, P]:
    """What `inputs` is, unchecked, and the parameters, checked.

    `bare`: the keys of an object that may be sent without "inputs" around it. `table`: whether CSV says anything here.
    `known`: the parameters to tell of, where one is unknown; all by default.
    """
    said = request.content_type or (JSON if request.body.lstrip()[:1] in (b"{", b"[", b'"') else TEXT)
    if said == TEXT:
        return text(request), kind()
    if said == CSV and table:
        return rows(request), kind()
    if said != JSON:
        takes = ", ".join([JSON, *[CSV] * table, TEXT])
        raise UnsupportedMediaType(
            f"Content-Type {said[:100]!r} is not read by this model", hint=f"send one of: {takes}"
        )
    try:
        body = msgspec.json.decode(utf8(request))
    except (msgspec.DecodeError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise BadRequest(f"the body is not {said}: {error}", hint='send {"inputs": "a text"}') from error
    except RecursionError as error:
        raise BadRequest("the JSON is nested too deeply") from error
    if not isinstance(body, dict):
        return body, kind()
    body.pop(model_field, None)
    body.pop("options", None)  # the inference API's: use_cache, wait_for_model
    given = body.pop("parameters", None)
    inputs = body.pop("inputs") if "inputs" in body else None
    if inputs is None and body.keys() & set(bare):
        inputs = {key: body.pop(key) for key in bare if key in body}
    if body:
        raise BadRequest(f"unknown key {min(body)[:100]!r}", hint=near(min(body), ["inputs", "parameters", *bare]))
    if inputs is None:
        raise BadRequest("inputs is missing", hint='send {"inputs": ..., "parameters": {...}}')
    return inputs, convert("parameters", kind, given, known) if given is not None else kind()


def convert(name: str, kind: Any, value: Any, known: Sequence[str] = ()) -> Any:
    """A part of a body as the type it must have. Raises BadRequest, saying where it has not."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = str(error).replace("`$", f"`{name}")
        if " - at " not in message:
            message = f"{message} - at `{name}`"
        unknown = re.search(r"unknown field `([^`]*)`", message)
        raise BadRequest(message, hint=near(unknown[1], known or kind.__struct_fields__) if unknown else "") from error


def near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:100], names, n=1)
    return (f"did you mean {close[0]}? " if close else "") + "known are: " + ", ".join(names)


def texts(inputs: Any) -> list[str]:
    """One text, or several, as a list. Raises BadRequest."""
    if inputs == []:
        raise BadRequest("inputs is an empty list", hint='send {"inputs": "a text"}')
    made: list[str] = convert("inputs", list[str], [inputs] if isinstance(inputs, str) else inputs)
    return made


def text(request: Request) -> str:
    """The body as text. Raises BadRequest."""
    try:
        charset = codecs.lookup(request.charset).name
        if charset in NO_CHARSETS:
            raise LookupError
        return request.body.decode(charset)
    except LookupError as error:
        raise BadRequest(f"the charset {request.charset[:40]!r} is unknown", hint="send UTF-8") from error
    except ValueError as error:
        raise BadRequest(f"the body is not {request.charset[:40]}: {error}") from error


def utf8(request: Request) -> bytes:
    """The body as JSON is read; the parser itself says where it is not UTF-8. Raises BadRequest."""
    plain = request.charset.lower() in ("utf-8", "utf8", "us-ascii", "ascii")
    return request.body if plain else text(request).encode()


def rows(request: Request) -> list[Any]:
    """Of a CSV: the texts of its column `inputs`, or an object a row. Raises BadRequest with the number of the row."""
    try:
        lines = csv.reader(io.StringIO(text(request), newline=""), strict=True)
        header, *cells = [line for line in lines if line] or [[]]
    except csv.Error as error:
        raise BadRequest(f"the body is not CSV: {error}") from error
    names = [name.strip().removeprefix("\ufeff").lower() for name in header]
    if not {"inputs", "question", "context"} & set(names):
        raise BadRequest(
            f"the first row of the CSV is {','.join(names)[:100]!r}, which is no header",
            hint="the first row names the columns: inputs, or question,context",
        )
    for number, row in enumerate(cells, 2):
        if len(row) != len(names):
            raise BadRequest(f"row {number} of the CSV has {len(row)} cells, the header {len(names)}")
    if "inputs" in names:
        return [row[names.index("inputs")] for row in cells]
    return [dict(zip(names, row, strict=True)) for row in cells]


def reply(answer: Any, content_type: str) -> Reply:
    """`answer` is what a pipeline would have returned: numbers, strings, lists and dicts; for npy an array will do."""
    if content_type == CSV:
        return Reply(body=_table(answer), content_type=CSV)
    if content_type == NPY:
        file = io.BytesIO()
        np.save(file, _array(answer), allow_pickle=False)
        return Reply(body=file.getvalue(), content_type=NPY)
    return Reply(body=msgspec.json.encode(answer), content_type=content_type)


def _table(answer: Any) -> bytes:
    """A header and a row an entry; where each entry is a list of one, it stands for itself."""
    entries = answer if isinstance(answer, list) else [answer]
    rows = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in entries]
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise NotAcceptable("the answer is nested and no table", hint=f"ask for {JSON}")
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys() if rows else ())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _array(answer: Any) -> Any:
    try:
        return np.asarray(answer, np.float32)
    except ValueError as error:
        raise NotAcceptable(
            "the texts have different lengths, so their features are no array",
            hint=f"ask for {JSON}, or send one text",
        ) from error


def flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return [each for part in lists for each in part]

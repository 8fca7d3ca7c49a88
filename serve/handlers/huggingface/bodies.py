"""Requests and replies in the shapes of transformers' pipelines and of AWS's Hugging Face toolkit.

A request is `{"inputs": ..., "parameters": {...}}`, or the input alone; a CSV has a header that names its columns.
An invalid request is a 400 that names the field.
"""

import csv
import difflib
import io
import re
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, NotAcceptable, TooLate, UnsupportedMediaType
from serve.handlers.base import Reply, Request
from serve.http import body, extent, media

# No token of a vocabulary is longer, in characters. A text over 64 times the token limit is refused, or cut, before it
# is tokenized: 6 MB of text takes a tokenizer seconds, and the runner serves no other request meanwhile.
TOKEN_CHARACTERS = 64

P = TypeVar("P", bound=msgspec.Struct)


def accepted(request: Request, model: ModelConfig[Any], offers: tuple[str, ...]) -> str:
    """The media type of the reply. Raises NotAcceptable."""
    return media.choose(request.accept, offers, model.default_accept if model.default_accept in offers else media.JSON)


def parse(
    request: Request,
    model_field: str,
    kind: type[P],
    *,
    bare: tuple[str, ...] = (),
    table: bool = True,
    known: Sequence[str] = (),
    streams: bool = False,
) -> tuple[Any, P, bool]:
    """The value of `inputs`, unchecked, the parameters as `kind`, and whether a stream is asked for.

    Args:
        model_field: the key that chose the model; it is ignored.
        bare: keys of an input object that may be sent without "inputs" around it.
        table: whether CSV is supported.
        known: the parameters that the error for an unknown one lists; all of `kind` by default.
        streams: whether the key `stream` is known.
    """
    content_type = request.content_type or (
        media.JSON if request.body.lstrip()[:1] in (b"{", b"[", b'"') else media.TEXT
    )
    if content_type == media.TEXT:
        return body.decode_text(request.body, request.charset), kind(), False
    if content_type == media.CSV and table:
        return csv_inputs(body.decode_text(request.body, request.charset)), kind(), False
    if content_type != media.JSON:
        supported = ", ".join([media.JSON, *[media.CSV] * table, media.TEXT])
        raise UnsupportedMediaType(
            f"unsupported Content-Type: {content_type[:100]!r}", hint=f"send one of: {supported}"
        )
    fields = body.decode_json(request.body, request.charset)
    if not isinstance(fields, dict):
        return fields, kind(), False
    fields.pop(model_field, None)
    fields.pop("options", None)  # of Hugging Face's inference API: use_cache, wait_for_model
    parameters = fields.pop("parameters", None)
    inputs = fields.pop("inputs", None)
    stream = streams and bool(convert("stream", bool | None, fields.pop("stream", None)))
    if inputs is None and fields.keys() & set(bare):
        inputs = {key: fields.pop(key) for key in bare if key in fields}
    if fields:
        unknown = min(fields)
        raise BadRequest(
            f"unknown key {unknown[:100]!r}",
            hint=suggestion(unknown, ["inputs", "parameters", *["stream"] * streams, *bare]),
        )
    if inputs is None:
        raise BadRequest("inputs is missing", hint='send {"inputs": ..., "parameters": {...}}')
    checked = kind() if parameters is None else convert("parameters", kind, parameters, known)
    return inputs, checked, stream


def refused_by_generate(error: Exception) -> BadRequest:
    """The 400 for an exception of `generate`, of a model that generates without the parameters of the request."""
    return BadRequest(
        f"transformers does not generate with these parameters: {type(error).__name__}: {str(error)[:300]}",
        hint="change or omit the parameters",
    )


def convert(name: str, kind: Any, value: Any, known: Sequence[str] = ()) -> Any:
    """`value`, the part `name` of a body, as a `kind`. Raises BadRequest with the path of the wrong value."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = str(error).replace("`$", f"`{name}")
        if " - at " not in message:
            message = f"{message} - at `{name}`"
        unknown = re.search(r"unknown field `([^`]*)`", message)
        hint = suggestion(unknown[1], known or kind.__struct_fields__) if unknown else ""
        raise BadRequest(message, hint=hint) from error


def suggestion(name: str, known: Sequence[str]) -> str:
    """The hint for an unknown name: the most similar known name, and all known names."""
    close = difflib.get_close_matches(name[:100], known, n=1)
    return (f"did you mean {close[0]}? " if close else "") + "known are: " + ", ".join(known)


def texts(inputs: Any) -> list[str]:
    """One text or a list of texts, as a list. Raises BadRequest, or PayloadTooLarge for too many."""
    if inputs == []:
        raise no_inputs()
    if isinstance(inputs, list):
        extent.check(len(inputs))
    checked: list[str] = convert("inputs", list[str], [inputs] if isinstance(inputs, str) else inputs)
    return checked


def csv_inputs(text: str) -> list[Any]:
    """The cells of a CSV's column `inputs`, or without one an object for each row. Raises BadRequest."""
    names, rows = body.csv_records(text, ("inputs", "question", "context"))
    if "inputs" in names:
        return [row[names.index("inputs")] for row in rows]
    return [dict(zip(names, row, strict=True)) for row in rows]


def no_inputs(example: str = '{"inputs": "a text"}') -> BadRequest:
    return BadRequest("inputs is an empty list", hint=f"send {example}")


def no_tokens() -> BadRequest:
    return BadRequest("a text is empty, and the tokenizer adds no special token to it", hint="send a text")


def too_long(length: str, limit: int) -> BadRequest:
    """`length`, with its unit, is over the model's `limit` of tokens."""
    return BadRequest(
        f"inputs has {length}; the model reads {limit} tokens",
        hint='shorten the text, or set "parameters": {"truncation": true} to cut off its end',
    )


def check_deadline(deadline: float) -> None:
    """Raise TooLate once the deadline (time.monotonic()) has passed: the caller no longer waits."""
    if time.monotonic() >= deadline:
        raise TooLate("the deadline passed while the texts were tokenized", hint="send fewer or shorter texts")


def reply(answer: Any, content_type: str) -> Reply:
    """`answer` is the return value of a pipeline: numbers, strings, lists and dicts; for npy also an array."""
    if content_type == media.CSV:
        return Reply(body=_csv(answer), content_type=media.CSV)
    if content_type == media.NPY:
        file = io.BytesIO()
        np.save(file, _array(answer), allow_pickle=False)
        return Reply(body=file.getvalue(), content_type=media.NPY)
    return Reply(body=msgspec.json.encode(answer), content_type=content_type)


def _csv(answer: Any) -> bytes:
    """A header and one row for each entry. An entry that is a list of one element is that element."""
    entries = answer if isinstance(answer, list) else [answer]
    rows = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in entries]
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise NotAcceptable("the answer is nested and cannot be written as CSV", hint=f"set Accept: {media.JSON}")
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
            "the texts have different lengths, so their features cannot be written as one array",
            hint=f"set Accept: {media.JSON}, or send one text",
        ) from error

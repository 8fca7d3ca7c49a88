"""What a request may ask of an encoder-decoder model; whatever is wrong is a 400 that names the field."""

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serve.errors import BadRequest, UnsupportedMediaType
from serve.handlers.base import Request

Length = Annotated[int, Meta(ge=0, le=1_000_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000)]
Factor = Annotated[float, Meta(gt=0, le=1e4)]


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a request may ask of generation; what it leaves out is as the model's generation config has it."""

    max_length: Positive | None = None
    min_length: Length | None = None
    max_new_tokens: Positive | None = None
    min_new_tokens: Length | None = None
    num_beams: Annotated[int, Meta(ge=1, le=64)] | None = None
    num_return_sequences: Annotated[int, Meta(ge=1, le=64)] | None = None
    length_penalty: Annotated[float, Meta(ge=-1e4, le=1e4)] | None = None
    no_repeat_ngram_size: Length | None = None
    repetition_penalty: Factor | None = None
    early_stopping: bool | Literal["never"] | None = None
    do_sample: bool | None = None
    temperature: Factor | None = None
    top_k: Length | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    truncation: bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"] | None = None


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_INPUTS = msgspec.json.Decoder(str | list[str])
_PARAMETERS = msgspec.json.Decoder(Parameters | None)


def parse(request: Request, model_field: str) -> tuple[list[str], Parameters]:
    """The texts and what is asked for them, of `{"inputs": ..., "parameters": {...}}` or of a plain text."""
    kind = request.content_type or ("application/json" if request.body.lstrip()[:1] == b"{" else "text/plain")
    if kind not in ("application/json", "text/plain"):
        raise UnsupportedMediaType(
            f"Content-Type {kind[:100]!r} is not read by this model", hint="send application/json or text/plain"
        )
    try:
        if kind == "text/plain":
            return [request.body.decode(request.charset)], Parameters()
        keys = _OBJECT.decode(request.body)
        keys.pop(model_field, None)
        if unknown := keys.keys() - {"inputs", "parameters"}:
            raise BadRequest(f"unknown key {min(unknown)[:100]!r}", hint=_near(min(unknown), ["inputs", "parameters"]))
        if "inputs" not in keys:
            raise BadRequest("inputs is missing", hint='send {"inputs": "a text", "parameters": {...}}')
        inputs = _field("inputs", _INPUTS, keys["inputs"])
        parameters = _field("parameters", _PARAMETERS, keys.get("parameters", msgspec.Raw(b"null")))
    except (msgspec.DecodeError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise BadRequest(f"the body is not {kind}: {error}", hint='send {"inputs": "a text"}') from error
    except LookupError as error:
        raise BadRequest(f"the charset {request.charset[:40]!r} is unknown") from error
    except RecursionError as error:
        raise BadRequest("the JSON is nested too deeply") from error
    return [inputs] if isinstance(inputs, str) else inputs, parameters or Parameters()


def _field(name: str, decoder: msgspec.json.Decoder[Any], raw: msgspec.Raw) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        message = str(error).replace("`$", f"`{name}")
        if " - at " not in message:
            message = f"{message} - at `{name}`"
        unknown = re.search(r"unknown field `([^`]*)`", message)
        hint = _near(unknown[1], Parameters.__struct_fields__) if unknown else ""
        raise BadRequest(message, hint=hint) from error


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:100], names, n=1)
    return f"did you mean {near[0]}?" if near else "known are: " + ", ".join(names)

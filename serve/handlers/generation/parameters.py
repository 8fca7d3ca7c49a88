"""What the `parameters` of a request may say, checked: names, types and ranges here; lengths in `resolved`."""

import difflib
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from serve.errors import BadRequest
from serve.handlers.generation.fields import Chance, Count, Degree, Fields, Flag, Seed, Signed, Tokens, known, refuse

MOST_SEQUENCES = 1024  # of one request; more than fit into the batch take turns
Rows = Annotated[int, Meta(ge=1, le=MOST_SEQUENCES, description="a whole number from 1 to 1,024")]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Stops = Annotated[list[StopString], Meta(max_length=16)]
STOPS = "a string or up to 16 strings, each of 1 to 256 characters"
Stop = Annotated[StopString | Stops, Meta(description=STOPS)]


class Parameters(Fields, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The `parameters` object. null means not given, as clients write it."""

    max_new_tokens: Tokens | None = None
    min_new_tokens: Count | None = None
    max_length: Tokens | None = None
    guidance_scale: Signed | None = None
    do_sample: Flag | None = None
    temperature: Degree | None = None
    top_p: Chance | None = None
    top_k: Count | None = None  # 0 is off
    repetition_penalty: Degree | None = None
    presence_penalty: Signed | None = None
    frequency_penalty: Signed | None = None
    num_return_sequences: Rows | None = None
    num_beams: Rows | None = None
    stop: Stop | None = None
    stop_sequences: Stop | None = None  # another name of `stop`
    stop_strings: Stop | None = None  # as `generate` has it: the string is part of the text
    stop_sequence: Stop | None = None  # the pipelines' name of that
    seed: Seed | None = None
    return_full_text: Flag | None = None
    truncation: Flag | None = None
    truncate: Tokens | None = None  # text-generation-inference's: the last so many tokens of the prompt
    handle_long_generation: Annotated[Literal["hole"], Meta(description='"hole"')] | None = None
    add_special_tokens: Flag | None = None
    prefix: Annotated[str, Meta(description="a string")] | None = None  # text before the prompt that is not shown
    clean_up_tokenization_spaces: Flag | None = None  # the text is as the tokenizer's own settings have it
    decoder_start_token_id: Any = None  # encoder-decoder models begin with it


def too_many(prompts: int) -> BadRequest:
    return BadRequest(
        f"the request has {prompts} prompts and one may have {MOST_SEQUENCES}",
        hint="send several requests; they are batched together",
    )


def body_type(model_field: str) -> type[msgspec.Struct]:
    """The type of a JSON body; the key that chose the model and the client's `options` are not looked into."""
    ignored = {name for name in ("options", model_field) if name not in ("inputs", "parameters", "stream")}
    fields: list[tuple[str, Any, Any]] = [
        ("inputs", str | Annotated[list[str], Meta(min_length=1)], msgspec.field()),
        ("parameters", Parameters | None, None),
        ("stream", bool | None, None),
    ]
    raw = msgspec.Raw(b"null")
    fields += [(f"ignored_{i}", msgspec.Raw, msgspec.field(name=n, default=raw)) for i, n in enumerate(sorted(ignored))]
    return msgspec.defstruct("Body", fields, forbid_unknown_fields=True, kw_only=True)


def json_decoder(model_field: str) -> Callable[[bytes], Any]:
    """A function from the bytes of a JSON body to a `body_type`, raising BadRequest for all that is wrong with them."""
    decoder = msgspec.json.Decoder(body_type(model_field))

    def decode(body: bytes) -> Any:
        if not body.strip():
            raise BadRequest("the body is empty", hint='send {"inputs": "your prompt"}')
        try:
            fields: Any = decoder.decode(body)
        except msgspec.ValidationError as error:
            raise _wrong_value(str(error), body) from error
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is not JSON: {error} of {len(body)} bytes") from error
        except UnicodeDecodeError as error:
            raise BadRequest(f"the body is not UTF-8: {error.reason} in a string") from error
        except RecursionError as error:
            raise BadRequest("the body is nested too deeply") from error
        if fields.parameters is not None:
            refuse(fields.parameters)
        return fields

    return decode


def _wrong_value(message: str, body: bytes) -> BadRequest:
    """msgspec's message ("... - at `$.parameters.top_p`") in the caller's words, with the value and what is allowed."""
    what, _, at = message.partition(" - at ")
    path = at.strip("`").removeprefix("$.")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL)
    if unknown and not path.startswith("parameters."):
        inside = path == "parameters"
        names = known(Parameters) if inside else ["inputs", "parameters", "stream", "options"]
        near = difflib.get_close_matches(unknown[1], names, 1)
        name = f"parameters.{unknown[1]}" if inside else unknown[1]
        return BadRequest(
            f"unknown field {name[:100]}" + (f"; did you mean {near[0]}?" if near else ""),
            hint="known are: " + ", ".join(names),
        )
    name = re.split(r"[.\[]", path.removeprefix("parameters."))[0]
    if not path.startswith("parameters.") or name not in Parameters.__struct_fields__:
        return BadRequest(f"{path or 'the body'}: {what[:1].lower()}{what[1:]}", hint='send {"inputs": "your prompt"}')
    return BadRequest(f"parameters.{name} is {_shown(body, name)}: it must be {_allowed(name)}")


def _allowed(name: str) -> str:
    """The description in a field's type."""
    hint = get_type_hints(Parameters, include_extras=True)[name]
    described = [meta for part in hint.__args__ for meta in getattr(part, "__metadata__", ())]
    return next(meta.description for meta in described if meta.description)


def _shown(body: bytes, name: str) -> str:
    """A parameter as its sender wrote it, not too much of it; the rest of the body may still be no JSON at all."""
    try:
        written = msgspec.json.decode(body, type=dict[str, msgspec.Raw])["parameters"]
        text = bytes(msgspec.json.decode(written, type=dict[str, msgspec.Raw])[name]).decode(errors="replace")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return "not right"
    return text if len(text) <= 60 else text[:60] + "…"

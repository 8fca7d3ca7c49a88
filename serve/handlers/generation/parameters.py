"""What a request may say, checked: names, types and ranges here; lengths against the model in `resolve`."""

import difflib
import re
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta
from transformers import GenerationConfig

from serve.errors import BadRequest

MOST_TOKENS = 1_000_000  # for models that state no position limit
Tokens = Annotated[int, Meta(ge=1, le=MOST_TOKENS, description="a whole number from 1 to 1,000,000")]
Count = Annotated[int, Meta(ge=0, le=MOST_TOKENS, description="a whole number from 0 to 1,000,000")]
Chance = Annotated[float, Meta(gt=0, le=1, description="a number above 0, up to 1")]
Degree = Annotated[float, Meta(gt=0, le=100, description="a number above 0, up to 100")]
Rows = Annotated[int, Meta(ge=1, le=1024, description="a whole number from 1 to 1,024")]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Stops = Annotated[list[StopString], Meta(max_length=16)]
STOPS = "a string or up to 16 strings, each of 1 to 256 characters"
YES_OR_NO = "true or false"


class Parameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The `parameters` object. null means not given, as clients write it."""

    max_new_tokens: Tokens | None = None
    min_new_tokens: Count | None = None
    max_length: Tokens | None = None
    do_sample: Annotated[bool, Meta(description=YES_OR_NO)] | None = None
    temperature: Degree | None = None
    top_p: Chance | None = None
    top_k: Count | None = None  # 0 is off
    repetition_penalty: Degree | None = None
    num_return_sequences: Rows | None = None
    num_beams: Rows | None = None
    stop: Annotated[StopString | Stops, Meta(description=STOPS)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="a whole number from 0 to 2**63 - 1")] | None = None
    return_full_text: Annotated[bool, Meta(description=YES_OR_NO)] | None = None
    truncation: Annotated[bool, Meta(description=YES_OR_NO)] | None = None


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters with nothing left open, for one prompt's length."""

    most: int  # new tokens
    least: int
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    sequences: int
    beams: int
    stop: tuple[str, ...]
    seed: int | None
    full_text: bool
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    likeliest: int | None = None  # so many of the likeliest tokens are told beside each; None: no likelihoods


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
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            raise _wrong_value(str(error), body) from error
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is not JSON: {error} of {len(body)} bytes") from error
        except UnicodeDecodeError as error:
            raise BadRequest(f"the body is not UTF-8: {error.reason} in a string") from error
        except RecursionError as error:
            raise BadRequest("the body is nested too deeply") from error

    return decode


def _wrong_value(message: str, body: bytes) -> BadRequest:
    """msgspec's message ("... - at `$.parameters.top_p`") in the caller's words, with the value and what is allowed."""
    what, _, at = message.partition(" - at ")
    path = at.strip("`").removeprefix("$.")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        inside = path == "parameters"
        known = list(Parameters.__struct_fields__) if inside else ["inputs", "parameters", "stream", "options"]
        near = difflib.get_close_matches(unknown[1], known, 1)
        name = f"parameters.{unknown[1]}" if inside else unknown[1]
        return BadRequest(
            f"unknown field {name[:100]}" + (f"; did you mean {near[0]}?" if near else ""),
            hint="known are: " + ", ".join(known),
        )
    name = path.removeprefix("parameters.").partition("[")[0]
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


def resolve(asked: Parameters, defaults: GenerationConfig, prompt: int, limit: int | None, max_batch: int) -> Resolved:
    """Fill in what was not asked for, and refuse what this model cannot do with a prompt of so many tokens."""
    most = new_tokens(asked, defaults, prompt, limit)
    least = _first(asked.min_new_tokens, defaults.min_new_tokens, 0)
    if asked.min_new_tokens is not None and least > most:
        raise BadRequest(f"parameters.min_new_tokens is {least}: it must be at most max_new_tokens, which is {most}")
    beams = _first(asked.num_beams, defaults.num_beams, 1)
    do_sample = _first(asked.do_sample, defaults.do_sample, False)
    sequences = _first(asked.num_return_sequences, None, 1)
    for name, rows in (("num_return_sequences", sequences), ("num_beams", beams)):
        if rows > max_batch:
            raise BadRequest(f"parameters.{name} is {rows}: it must be a whole number from 1 to {max_batch}")
    if beams > 1 and sequences > beams:
        raise BadRequest(f"parameters.num_return_sequences is {sequences}: it must be at most num_beams, {beams}")
    if beams == 1 and sequences > 1 and not do_sample:
        raise BadRequest(
            f"parameters.num_return_sequences is {sequences}: without sampling all would be the same",
            hint='set "do_sample": true, or num_beams to at least as many',
        )
    stop = [] if asked.stop is None else [asked.stop] if isinstance(asked.stop, str) else asked.stop
    return Resolved(
        most=most,
        least=min(least, most),
        do_sample=do_sample,
        temperature=_first(asked.temperature, defaults.temperature, 1.0),
        top_p=_first(asked.top_p, defaults.top_p, 1.0),
        top_k=_first(asked.top_k, defaults.top_k, 50),
        repetition_penalty=_first(asked.repetition_penalty, defaults.repetition_penalty, 1.0),
        sequences=sequences,
        beams=beams,
        stop=tuple(stop),
        seed=asked.seed,
        full_text=asked.return_full_text is not False,
    )


def new_tokens(asked: Parameters, defaults: GenerationConfig, prompt: int, limit: int | None) -> int:
    """How many tokens may be made: as asked, or else as the model says, or else 256, the pipelines' default."""
    room = MOST_TOKENS if limit is None else limit - prompt
    if room < 1:
        raise BadRequest(
            f"the prompt has {prompt} tokens and the model takes {limit}, at least one of them new",
            hint='shorten the prompt, or set "truncation": true',
        )
    if asked.max_new_tokens is not None:
        if asked.max_new_tokens > room:
            raise BadRequest(
                f"parameters.max_new_tokens is {asked.max_new_tokens}: it must be a whole number from 1 to {room}, "
                f"as the prompt has {prompt} tokens and the model takes {limit} in all"
            )
        return asked.max_new_tokens
    if asked.max_length is not None:
        if not prompt < asked.max_length <= room + prompt:
            raise BadRequest(
                f"parameters.max_length is {asked.max_length}: it must be a whole number from {prompt + 1} "
                f"to {room + prompt}, as it counts the {prompt} tokens of the prompt"
            )
        return asked.max_length - prompt
    default = defaults.max_new_tokens
    if default is None and defaults.max_length is not None and defaults.max_length > prompt:
        default = defaults.max_length - prompt
    return min(_first(default, None, 256), room)


def _first(asked: Any, model: Any, usual: Any) -> Any:
    return asked if asked is not None else model if model is not None else usual

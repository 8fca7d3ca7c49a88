"""What the `parameters` of a request may say, checked: names, types and ranges here; lengths in `resolved`."""

import difflib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta
from transformers import GenerationConfig, WatermarkingConfig

from serve.errors import BadRequest

MOST_TOKENS = 1_000_000  # for models that state no position limit
YES_OR_NO = "true or false"
Flag = Annotated[bool, Meta(description=YES_OR_NO)]
Tokens = Annotated[int, Meta(ge=1, le=MOST_TOKENS, description="a whole number from 1 to 1,000,000")]
Count = Annotated[int, Meta(ge=0, le=MOST_TOKENS, description="a whole number from 0 to 1,000,000")]
Chance = Annotated[float, Meta(gt=0, le=1, description="a number above 0, up to 1")]
Share = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
Cutoff = Annotated[float, Meta(ge=0, lt=1, description="a number from 0, below 1")]
Degree = Annotated[float, Meta(gt=0, le=100, description="a number above 0, up to 100")]
Signed = Annotated[float, Meta(ge=-100, le=100, description="a number from -100 to 100")]
Seconds = Annotated[float, Meta(gt=0, le=86_400, description="a number above 0, up to 86,400, in seconds")]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="a whole number from 0 to 2**63 - 1")]

Id = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TOKEN = "the number of a token, from 0"
TOKENS = "a list of 1 to 1,024 numbers of tokens, from 0"
ONE_OR_MORE = "the number of a token, from 0, or a list of 1 to 1,024 of them"
Ids = Annotated[tuple[Id, ...], Meta(min_length=1, max_length=1024)]
Words = Annotated[tuple[Ids, ...], Meta(min_length=1, max_length=1024)]
WORDS = "a list of 1 to 1,024 lists of numbers of tokens, from 0"
Bias = tuple[Ids, Annotated[float, Meta(ge=-1e4, le=1e4)]]
BIASES = "a list of pairs: a list of numbers of tokens, and a number from -10,000 to 10,000"
DECAY = "a pair: a whole number of tokens from 0, and a factor above 0, up to 100"
MARKS = 'an object as {"greenlist_ratio": 0.25, "bias": 2.0, "hashing_key": 15485863, "seeding_scheme": "lefthash"}'


class Watermark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """transformers' WatermarkingConfig."""

    greenlist_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.25
    bias: Annotated[float, Meta(ge=-100, le=100)] = 2.0
    hashing_key: Annotated[int, Meta(ge=1, le=2**31)] = 15_485_863
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: Annotated[int, Meta(ge=1, le=64)] = 1


NOTHING: tuple[Any, ...] = (False, 0, 0.0, "", [], {})
HUB = "transformers fetches the code for it from its hub, and nothing is fetched here"
TENSORS = "the answer is text"
ASSISTANT = "no second model is loaded to assist"
MEMORY = "how memory is used is the server's business"
# By name: values that ask for nothing, and why others are refused.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    name: (nothing, why)
    for names, nothing, why in (
        ("output_scores output_logits output_attentions output_hidden_states", NOTHING, TENSORS),
        ("return_dict_in_generate return_tensors return_type", NOTHING, TENSORS),
        ("return_text", (True,), TENSORS),
        ("skip_special_tokens", (True,), "special tokens are no text"),
        ("penalty_alpha dola_layers diversity_penalty constraints force_words_ids", NOTHING, HUB),
        ("num_beam_groups", (1, *NOTHING), HUB),
        ("assistant_model assistant_early_exit assistant_confidence_threshold", NOTHING, ASSISTANT),
        ("assistant_ensemble_weight num_assistant_tokens num_assistant_tokens_schedule", NOTHING, ASSISTANT),
        ("speculation_type prompt_lookup_num_tokens max_matching_ngram_size", NOTHING, ASSISTANT),
        ("is_assistant assistant_lookbehind target_lookbehind use_mtp", NOTHING, ASSISTANT),
        ("cache_implementation cache_config max_cache_len compile_config", NOTHING, MEMORY),
        ("continuous_batching_config", NOTHING, MEMORY),
        ("token_healing", NOTHING, "it rewrites the prompt"),
        ("streamer", NOTHING, 'set "stream": true beside inputs'),
        ("best_of", (1, *NOTHING), "set num_beams, or num_return_sequences and choose"),
        ("grammar", NOTHING, "answers are not bound to a grammar"),
        ("adapter_id", NOTHING, "there are no adapters; name another model"),
        ("tools documents continue_final_message", NOTHING, "send chats to /v1/chat/completions"),
        ("tokenizer_encode_kwargs", NOTHING, "add_special_tokens and truncation are parameters"),
    )
    for name in names.split()
}
if TYPE_CHECKING:

    class Unasked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
        """A field for each of them."""

else:
    Unasked = msgspec.defstruct(
        "Unasked", [(name, Any, None) for name in REFUSED], frozen=True, kw_only=True, omit_defaults=True
    )


class Ignored(Unasked, frozen=True, kw_only=True, omit_defaults=True):
    """What clients send by habit and what changes no text: how fast it is made, and what is told beside it."""

    use_cache: Any = None
    low_memory: Any = None
    disable_compile: Any = None
    prefill_chunk_size: Any = None
    batch_size: Any = None
    padding: Any = None
    details: Any = None
    decoder_input_details: Any = None
    top_n_tokens: Any = None


class Fields(Ignored, frozen=True, kw_only=True, omit_defaults=True):
    """Of causal and of encoder-decoder models alike; null means not given."""

    min_length: Count | None = None
    max_time: Seconds | None = None
    eos_token_id: Annotated[Id | Ids, Meta(description=ONE_OR_MORE)] | None = None
    pad_token_id: Annotated[Id, Meta(description=TOKEN)] | None = None
    bos_token_id: Annotated[Id, Meta(description=TOKEN)] | None = None
    forced_bos_token_id: Annotated[Id, Meta(description=TOKEN)] | None = None
    forced_eos_token_id: Annotated[Id | Ids, Meta(description=ONE_OR_MORE)] | None = None
    min_p: Share | None = None
    typical_p: Chance | None = None
    top_h: Chance | None = None
    epsilon_cutoff: Cutoff | None = None
    eta_cutoff: Cutoff | None = None
    no_repeat_ngram_size: Count | None = None
    encoder_no_repeat_ngram_size: Count | None = None
    encoder_repetition_penalty: Degree | None = None
    exponential_decay_length_penalty: (
        Annotated[tuple[Count, Annotated[float, Meta(gt=0, le=100)]], Meta(description=DECAY)] | None
    ) = None
    length_penalty: Signed | None = None
    early_stopping: Annotated[bool | Literal["never"], Meta(description='true, false or "never"')] | None = None
    bad_words_ids: Annotated[Words, Meta(description=WORDS)] | None = None
    suppress_tokens: Annotated[Ids, Meta(description=TOKENS)] | None = None
    begin_suppress_tokens: Annotated[Ids, Meta(description=TOKENS)] | None = None
    sequence_bias: Annotated[tuple[Bias, ...], Meta(min_length=1, max_length=1024), Meta(description=BIASES)] | None = (
        None
    )
    renormalize_logits: Flag | None = None
    remove_invalid_values: Flag | None = None
    watermarking_config: Annotated[Watermark, Meta(description=MARKS)] | None = None
    watermark: Flag | None = None  # text-generation-inference's; the default WatermarkingConfig


def refuse(parameters: msgspec.Struct) -> None:
    """Raise BadRequest for the first parameter that asks for what is not done here."""
    for name, (nothing, why) in REFUSED.items():
        value = getattr(parameters, name)
        if value is not None and not any(type(value) is type(each) and value == each for each in nothing):
            raise BadRequest(f"parameters.{name} is not supported: {why}", hint=f"leave {name} out")


def known(kind: type[msgspec.Struct]) -> list[str]:
    """The names worth telling of a struct of parameters: those that do something."""
    quiet = {*REFUSED, *Ignored.__struct_fields__}
    return [name for name in kind.__struct_fields__ if name not in quiet]


def check_tokens(parameters: Fields, words: int) -> None:
    """Raise BadRequest for the number of a token that a vocabulary of so many words has not."""
    for name in TOKEN_FIELDS:
        value = getattr(parameters, name)
        if value is not None and (worst := _greatest(value)) >= words:
            raise BadRequest(f"parameters.{name} has token {worst}: the model knows tokens 0 to {words - 1}")


TOKEN_FIELDS = (
    *("eos_token_id", "pad_token_id", "bos_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
)


def _greatest(value: Any) -> int:
    if isinstance(value, tuple):
        return max((_greatest(each) for each in value if not isinstance(each, float)), default=0)
    return int(value)


def argument(name: str, value: Any) -> Any:
    """A field's value as GenerationConfig takes it."""
    if name == "bad_words_ids":
        return [list(word) for word in value]
    if name == "sequence_bias":
        return dict(value)
    if name == "watermarking_config":
        return WatermarkingConfig(**msgspec.structs.asdict(value))
    return list(value) if isinstance(value, tuple) and name.endswith(("token_id", "tokens")) else value


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


# Parameters that only `generate` knows, by the value at which they do nothing.
ALWAYS = {
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "guidance_scale": 1.0,
    "remove_invalid_values": False,
    "watermarking_config": None,
}
SAMPLING = {"typical_p": 1.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
BEAMS = {"length_penalty": 1.0, "early_stopping": False, "renormalize_logits": False}


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
    min_p: float = 0.0
    ends: frozenset[int] | None = None  # end tokens; None: the model's
    suppressed: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    ngram: int = 0  # so many tokens in a row come once only; 0 is off
    max_time: float | None = None  # seconds
    keeps_stop: bool = False  # the stop string is part of the text
    passed: tuple[tuple[str, Any], ...] = ()  # what only `generate` knows, by its names

    @property
    def left(self) -> bool:
        """Whether transformers' own `generate` makes the text, and not the batch."""
        return self.beams > 1 or bool(self.passed)


def resolve(asked: Parameters, defaults: GenerationConfig, prompt: int, limit: int | None, max_batch: int) -> Resolved:
    """Fill in what was not asked for, and refuse what this model cannot do with a prompt of so many tokens."""
    most = new_tokens(asked, defaults, prompt, limit)
    least = _least(asked, defaults, prompt, most)
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
    stop, keeps_stop = _stop(asked)
    passed = _passed(asked, do_sample, beams)
    if (asked.presence_penalty or asked.frequency_penalty) and (passed or beams > 1):
        name = passed[0][0] if passed else "num_beams"
        raise BadRequest(f"parameters.{name} does not go with presence_penalty or frequency_penalty")
    ends = asked.eos_token_id
    return Resolved(
        most=most,
        least=least,
        do_sample=do_sample,
        temperature=_first(asked.temperature, defaults.temperature, 1.0),
        top_p=_first(asked.top_p, defaults.top_p, 1.0),
        top_k=_first(asked.top_k, defaults.top_k, 50),
        repetition_penalty=_first(asked.repetition_penalty, defaults.repetition_penalty, 1.0),
        sequences=sequences,
        beams=beams,
        stop=stop,
        seed=asked.seed,
        full_text=asked.return_full_text is not False,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        min_p=_first(asked.min_p, defaults.min_p, 0.0),
        ends=None if ends is None else frozenset([ends] if isinstance(ends, int) else ends),
        suppressed=tuple(_first(asked.suppress_tokens, defaults.suppress_tokens, ())),
        bad_words=tuple(tuple(word) for word in _first(asked.bad_words_ids, defaults.bad_words_ids, ())),
        ngram=_first(asked.no_repeat_ngram_size, defaults.no_repeat_ngram_size, 0),
        max_time=_first(asked.max_time, defaults.max_time, None),
        keeps_stop=keeps_stop,
        passed=passed,
    )


def _least(asked: Parameters, defaults: GenerationConfig, prompt: int, most: int) -> int:
    """Tokens before the first end."""
    if asked.min_new_tokens is not None:
        if asked.min_new_tokens > most:
            raise BadRequest(
                f"parameters.min_new_tokens is {asked.min_new_tokens}: it must be at most max_new_tokens, "
                f"which is {most}"
            )
        return asked.min_new_tokens
    if asked.min_length is not None:
        if asked.min_length > prompt + most:
            raise BadRequest(
                f"parameters.min_length is {asked.min_length}: it must be at most {prompt + most}, the {prompt} tokens "
                f"of the prompt and {most} new ones"
            )
        return max(0, asked.min_length - prompt)
    usual: int = _first(defaults.min_new_tokens, max(0, (defaults.min_length or 0) - prompt), 0)
    return min(usual, most)


def _stop(asked: Parameters) -> tuple[tuple[str, ...], bool]:
    """The strings that end the text, and whether it keeps them."""
    given = {
        name: value
        for name in ("stop", "stop_sequences", "stop_strings", "stop_sequence")
        if (value := getattr(asked, name)) is not None
    }
    if len(given) > 1:
        raise BadRequest(f"parameters.{list(given)[1]} is beside {next(iter(given))}: send one of them")
    for name, value in given.items():
        return tuple([value] if isinstance(value, str) else value), name in ("stop_strings", "stop_sequence")
    return (), False


def _passed(asked: Parameters, do_sample: bool, beams: int) -> tuple[tuple[str, Any], ...]:
    """The parameters that only `generate` knows, where they do something."""
    names = ALWAYS | (SAMPLING if do_sample else {}) | (BEAMS if beams > 1 else {})
    given = {name: value for name in names if (value := getattr(asked, name)) not in (None, names[name])}
    if asked.watermark:
        given.setdefault("watermarking_config", Watermark())
    return tuple(given.items())


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

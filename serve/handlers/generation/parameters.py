"""The `parameters` of a request: names, types and ranges, and the settings of a sequence that result from them.

Fields of the structs are checked by msgspec; `resolve` checks what depends on the model and on the prompt's length.
"""

import difflib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta
from transformers import GenerationConfig, WatermarkingConfig

from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.generation.lookup import NGRAM
from serve.http import body

MAX_TOKENS = 1_000_000  # for models without a position limit
MAX_SEQUENCES = 1024  # of one request; those beyond the rows of the batch wait for their turn

# The descriptions complete the error "it must be ...".
Flag = Annotated[bool, Meta(description="true or false")]
Text = Annotated[str, Meta(description="a string")]
Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS, description="a whole number from 1 to 1,000,000")]
Count = Annotated[int, Meta(ge=0, le=MAX_TOKENS, description="a whole number from 0 to 1,000,000")]
Guessed = Annotated[int, Meta(ge=0, le=1024, description="a whole number from 0 to 1,024")]
Rows = Annotated[int, Meta(ge=1, le=MAX_SEQUENCES, description="a whole number from 1 to 1,024")]
Probability = Annotated[float, Meta(gt=0, le=1, description="a number above 0, up to 1")]
Share = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
Cutoff = Annotated[float, Meta(ge=0, lt=1, description="a number from 0, below 1")]
Factor = Annotated[float, Meta(gt=0, le=100, description="a number above 0, up to 100")]
Signed = Annotated[float, Meta(ge=-100, le=100, description="a number from -100 to 100")]
Seconds = Annotated[float, Meta(gt=0, le=86_400, description="a number above 0, up to 86,400, in seconds")]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="a whole number from 0 to 2**63 - 1")]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
StopStrings = Annotated[list[StopString], Meta(max_length=16)]
Stop = Annotated[
    StopString | StopStrings, Meta(description="a string or up to 16 strings, each of 1 to 256 characters")
]

Id = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Ids = Annotated[tuple[Id, ...], Meta(min_length=1, max_length=1024)]
Words = Annotated[tuple[Ids, ...], Meta(min_length=1, max_length=1024)]
Bias = tuple[Ids, Annotated[float, Meta(ge=-1e4, le=1e4)]]
Token = Annotated[Id, Meta(description="the number of a token, from 0")]
TokenOrTokens = Annotated[
    Id | Ids, Meta(description="the number of a token, from 0, or a list of 1 to 1,024 numbers of tokens")
]
TokenList = Annotated[Ids, Meta(description="a list of 1 to 1,024 numbers of tokens, from 0")]
WordList = Annotated[Words, Meta(description="a list of 1 to 1,024 lists of numbers of tokens, from 0")]
Biases = Annotated[
    tuple[Bias, ...],
    Meta(min_length=1, max_length=1024),
    Meta(description="a list of pairs: a list of numbers of tokens, and a number from -10,000 to 10,000"),
]
Decay = Annotated[
    tuple[Count, Annotated[float, Meta(gt=0, le=100)]],
    Meta(description="a pair: a whole number of tokens from 0, and a factor above 0, up to 100"),
]
EarlyStopping = Annotated[bool | Literal["never"], Meta(description='true, false or "never"')]
WATERMARK = (
    'an object such as {"greenlist_ratio": 0.25, "bias": 2.0, "hashing_key": 15485863, "seeding_scheme": "lefthash"}'
)


class Watermark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """transformers' WatermarkingConfig."""

    greenlist_ratio: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    bias: Annotated[float, Meta(ge=-100, le=100)] = 2.0
    hashing_key: Annotated[int, Meta(ge=1, le=2**31)] = 15_485_863
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: Annotated[int, Meta(ge=1, le=64)] = 1


NEUTRAL: tuple[Any, ...] = (False, 0, 0.0, "", [], {})
HUB = "transformers downloads its code from the Hugging Face Hub, and this server downloads nothing"
TENSORS = "the response is text"
ASSISTANT = "a runner loads one model, and assisted generation needs a second one"
MEMORY = "the server manages the cache and the batch"
# By name: the values that have no effect and are accepted, and the reason why all others are refused.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    name: (accepted, reason)
    for names, accepted, reason in (
        ("output_scores output_logits output_attentions output_hidden_states", NEUTRAL, TENSORS),
        ("return_dict_in_generate return_tensors return_type", NEUTRAL, TENSORS),
        ("return_text", (True,), TENSORS),
        ("skip_special_tokens", (True,), "special tokens are never part of the text"),
        ("penalty_alpha dola_layers diversity_penalty constraints force_words_ids", NEUTRAL, HUB),
        ("num_beam_groups", (1, *NEUTRAL), HUB),
        ("assistant_model assistant_early_exit assistant_confidence_threshold", NEUTRAL, ASSISTANT),
        ("assistant_ensemble_weight num_assistant_tokens num_assistant_tokens_schedule", NEUTRAL, ASSISTANT),
        ("speculation_type", NEUTRAL, ASSISTANT),
        ("is_assistant assistant_lookbehind target_lookbehind use_mtp", NEUTRAL, ASSISTANT),
        ("cache_implementation cache_config max_cache_len compile_config", NEUTRAL, MEMORY),
        ("continuous_batching_config", NEUTRAL, MEMORY),
        ("token_healing", NEUTRAL, "it changes the prompt"),
        ("streamer", NEUTRAL, 'set "stream": true beside inputs'),
        ("best_of", (1, *NEUTRAL), "set num_beams, or num_return_sequences and choose"),
        ("grammar", NEUTRAL, "grammars are not implemented"),
        ("adapter_id", NEUTRAL, "a runner loads no adapters; send the request to another model"),
        ("tools documents continue_final_message", NEUTRAL, "send such chats to /v1/chat/completions"),
        ("tokenizer_encode_kwargs", NEUTRAL, "set the parameters add_special_tokens and truncation"),
    )
    for name in names.split()
}
# What to set in place of some of them.
INSTEAD = {
    "num_beam_groups": 'for texts that differ, set "do_sample": true and num_return_sequences',
    "diversity_penalty": 'for texts that differ, set "do_sample": true and num_return_sequences',
    "penalty_alpha": "against repetition, set repetition_penalty or no_repeat_ngram_size",
    "force_words_ids": "to favour tokens, set sequence_bias",
    "constraints": "to favour tokens, set sequence_bias",
}
if TYPE_CHECKING:

    class UnsupportedParameters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
        """One field for each name in UNSUPPORTED."""

else:
    UnsupportedParameters = msgspec.defstruct(
        "UnsupportedParameters",
        [(name, Any, None) for name in UNSUPPORTED],
        frozen=True,
        kw_only=True,
        omit_defaults=True,
    )


class IgnoredParameters(UnsupportedParameters, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters that clients send and that do not change the text: speed, and details beside the text."""

    use_cache: Any = None
    low_memory: Any = None
    disable_compile: Any = None
    prefill_chunk_size: Any = None
    batch_size: Any = None
    padding: Any = None
    details: Any = None
    decoder_input_details: Any = None
    top_n_tokens: Any = None


class SharedParameters(IgnoredParameters, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of causal and of encoder-decoder models alike; null means not given."""

    min_length: Count | None = None
    max_time: Seconds | None = None
    eos_token_id: TokenOrTokens | None = None
    pad_token_id: Token | None = None
    bos_token_id: Token | None = None
    forced_bos_token_id: Token | None = None
    forced_eos_token_id: TokenOrTokens | None = None
    min_p: Share | None = None
    typical_p: Probability | None = None
    top_h: Probability | None = None
    epsilon_cutoff: Cutoff | None = None
    eta_cutoff: Cutoff | None = None
    no_repeat_ngram_size: Count | None = None
    encoder_no_repeat_ngram_size: Count | None = None
    encoder_repetition_penalty: Factor | None = None
    exponential_decay_length_penalty: Decay | None = None
    length_penalty: Signed | None = None
    early_stopping: EarlyStopping | None = None
    bad_words_ids: WordList | None = None
    suppress_tokens: TokenList | None = None
    begin_suppress_tokens: TokenList | None = None
    sequence_bias: Biases | None = None
    renormalize_logits: Flag | None = None
    remove_invalid_values: Flag | None = None
    watermarking_config: Annotated[Watermark, Meta(description=WATERMARK)] | None = None
    prompt_lookup_num_tokens: Guessed | None = None
    max_matching_ngram_size: Guessed | None = None
    watermark: Flag | None = None  # of text-generation-inference: the default WatermarkingConfig


class GenerationParameters(SharedParameters, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The `parameters` object of /invocations. null means not given, as clients write it."""

    max_new_tokens: Tokens | None = None
    min_new_tokens: Count | None = None
    max_length: Tokens | None = None
    guidance_scale: Signed | None = None
    do_sample: Flag | None = None
    temperature: Factor | None = None
    top_p: Probability | None = None
    top_k: Count | None = None  # 0 is off
    repetition_penalty: Factor | None = None
    presence_penalty: Signed | None = None
    frequency_penalty: Signed | None = None
    num_return_sequences: Rows | None = None
    num_beams: Rows | None = None
    stop: Stop | None = None
    stop_sequences: Stop | None = None  # another name of `stop`
    stop_strings: Stop | None = None  # as in `generate`: the string is part of the text
    stop_sequence: Stop | None = None  # the pipelines' name of stop_strings
    seed: Seed | None = None
    return_full_text: Flag | None = None
    truncation: Flag | None = None
    truncate: Tokens | None = None  # of text-generation-inference: keep this many tokens at the end of the prompt
    handle_long_generation: Annotated[Literal["hole"], Meta(description='"hole"')] | None = None
    add_special_tokens: Flag | None = None
    prefix: Text | None = None  # text before the prompt that is not part of the answer
    clean_up_tokenization_spaces: Flag | None = None  # ignored: the tokenizer's own setting holds
    decoder_start_token_id: Any = None  # ignored: of encoder-decoder models


def refuse_unsupported(parameters: UnsupportedParameters) -> None:
    """Raise BadRequest for the first parameter in UNSUPPORTED that would have an effect."""
    for name, (accepted, reason) in UNSUPPORTED.items():
        value = getattr(parameters, name)
        if value is not None and not any(type(value) is type(each) and value == each for each in accepted):
            hint = f"leave {name} out" + (f"; {INSTEAD[name]}" if name in INSTEAD else "")
            raise BadRequest(f"parameters.{name} is not supported: {reason}", hint=hint)


def known_names(kind: type[SharedParameters]) -> list[str]:
    """The parameters that an error for an unknown name lists: those that have an effect."""
    hidden = {*UNSUPPORTED, *IgnoredParameters.__struct_fields__}
    return [name for name in kind.__struct_fields__ if name not in hidden]


TOKEN_FIELDS = (
    *("eos_token_id", "pad_token_id", "bos_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
)


def check_tokens(parameters: SharedParameters, vocabulary: int) -> None:
    """Raise BadRequest for the number of a token that is not in a vocabulary of this size."""
    for name in TOKEN_FIELDS:
        value = getattr(parameters, name)
        if value is not None and (worst := _greatest(value)) >= vocabulary:
            raise BadRequest(f"parameters.{name} has token {worst}: the model has tokens 0 to {vocabulary - 1}")


def _greatest(value: Any) -> int:
    if isinstance(value, tuple):
        return max((_greatest(each) for each in value if not isinstance(each, float)), default=0)
    return int(value)


def generate_argument(name: str, value: Any) -> Any:
    """The value of a field as transformers' GenerationConfig takes it."""
    if name == "bad_words_ids":
        return [list(word) for word in value]
    if name == "sequence_bias":
        return dict(value)
    if name == "watermarking_config":
        return WatermarkingConfig(**msgspec.structs.asdict(value))
    return list(value) if isinstance(value, tuple) and name.endswith(("token_id", "tokens")) else value


# Parameters that only transformers' own code implements, with the value at which they have no effect.
LIBRARY = {
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "guidance_scale": 1.0,
    "remove_invalid_values": False,
    "watermarking_config": None,
}
LIBRARY_SAMPLING = {"typical_p": 1.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


class GenerationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of one prompt with all defaults filled in."""

    max_new_tokens: int
    min_new_tokens: int
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int  # 0 is off
    repetition_penalty: float
    num_sequences: int
    num_beams: int
    stop: tuple[str, ...]
    seed: int | None
    return_full_text: bool
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None  # alternatives reported with the log probability of each token; None: neither
    min_p: float = 0.0
    end_tokens: frozenset[int] | None = None  # None: those of the model
    suppress_tokens: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    no_repeat_ngram: int = 0  # the length of n-grams that may occur once; 0 is off
    max_time: float | None = None  # seconds
    keep_stop: bool = False  # whether the stop string is part of the text
    logit_bias: tuple[tuple[int, float], ...] = ()  # tokens, and what is added to their scores
    allowed_tokens: tuple[int, ...] | None = None  # None: all
    lookup: int = 0  # tokens that are guessed from the text so far, and checked together
    lookup_ngram: int = NGRAM  # the longest end of the text that is searched for in it
    prompt_logprobs: bool = False  # whether the tokens of the prompt have log probabilities too
    length_penalty: float = 1.0  # of beam search, as the next two
    early_stopping: bool | Literal["never"] = False
    renormalize: bool = False
    forced_first: int | None = None  # the first token of a text whose prompt is one token
    forced_last: tuple[int, ...] = ()  # the tokens of which one is at the position `max_new_tokens`
    begin_suppress: tuple[int, ...] = ()  # tokens that are not the first
    library: tuple[tuple[str, Any], ...] = ()  # names and values of parameters that only transformers implements
    config_only: tuple[str, ...] = ()  # such values that the model's own generation config has; transformers reads them

    @property
    def needs_library(self) -> bool:
        """Whether transformers' own objects change the scores, and draw."""
        return bool(self.library or self.config_only) or (self.do_sample and self.num_beams > 1)

    @property
    def needs_generate(self) -> bool:
        """Whether transformers' `generate` makes the text, not the batch: guidance is a second pass of the model."""
        return "guidance_scale" in (*(name for name, _ in self.library), *self.config_only)

    @property
    def rows(self) -> int:
        """The rows of a batch that the prompt takes."""
        return max(self.num_sequences, self.num_beams)


class Prompt(msgspec.Struct, frozen=True):
    text: str  # as the request has it; the answer begins with it where `return_full_text` is set
    tokens: list[int]
    settings: GenerationSettings
    resumed: bool = False  # whether `text` lacks the end of the tokens' text that the next token may change
    chat: list[dict[str, Any]] | None = None  # the messages of a chat in `inputs`; the answer is a further one
    source: list[int] | None = None  # of an encoder-decoder model: what its encoder reads; `tokens` is the decoder's
    salt: str = ""  # only prompts with the same one share computed columns

    @property
    def read(self) -> list[int]:
        """The tokens of the request's text."""
        return self.tokens if self.source is None else self.source

    @property
    def space(self) -> str | None:
        """The prompts among which computed columns are shared; None for one that must be computed itself."""
        return None if self.settings.prompt_logprobs else self.salt


def resolve(
    asked: GenerationParameters, defaults: GenerationConfig, prompt: int, limit: int, max_batch: int
) -> GenerationSettings:
    """The settings of a prompt of `prompt` tokens. Raises BadRequest for what the model cannot do with it.

    Args:
        defaults: the model's own generation config.
        limit: the positions of the model, for prompt and new tokens together.
        max_batch: the rows of the batch.
    """
    max_new_tokens = _max_new_tokens(asked, defaults, prompt, limit)
    beams = first_given(asked.num_beams, defaults.num_beams, 1)
    do_sample = first_given(asked.do_sample, defaults.do_sample, False)
    sequences = first_given(asked.num_return_sequences, None, 1)
    for name, rows in (("num_return_sequences", sequences), ("num_beams", beams)):
        if rows > max_batch:
            raise BadRequest(f"parameters.{name} is {rows}: it must be a whole number from 1 to {max_batch}")
    if beams > 1 and sequences > beams:
        raise BadRequest(f"parameters.num_return_sequences is {sequences}: it must be at most num_beams, {beams}")
    if beams == 1 and sequences > 1 and not do_sample:
        raise BadRequest(
            f"parameters.num_return_sequences is {sequences}: without sampling all sequences would be the same",
            hint='set "do_sample": true, or num_beams to at least as many',
        )
    stop, keep_stop = _stop(asked, defaults)
    library, config_only = library_parameters(asked, defaults, do_sample)
    if (asked.presence_penalty or asked.frequency_penalty) and (library or config_only or beams > 1):
        name = f"parameters.{library[0][0]}" if library else "parameters.num_beams"
        if config_only:
            name = f"{config_only[0]} of the model's generation config"
        raise BadRequest(
            f"{name} cannot be combined with presence_penalty or frequency_penalty",
            hint="set repetition_penalty in place of them",
        )
    ends = asked.eos_token_id
    if asked.prompt_lookup_num_tokens and beams > 1:
        raise BadRequest(
            "parameters.prompt_lookup_num_tokens cannot be combined with num_beams", hint="leave one of them out"
        )
    return GenerationSettings(
        max_new_tokens=max_new_tokens,
        min_new_tokens=_min_new_tokens(asked, defaults, prompt, max_new_tokens),
        do_sample=do_sample,
        temperature=first_given(asked.temperature, defaults.temperature, 1.0),
        top_p=first_given(asked.top_p, defaults.top_p, 1.0),
        top_k=first_given(asked.top_k, defaults.top_k, 50),
        repetition_penalty=first_given(asked.repetition_penalty, defaults.repetition_penalty, 1.0),
        num_sequences=sequences,
        num_beams=beams,
        stop=stop,
        seed=asked.seed,
        return_full_text=asked.return_full_text is not False,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        min_p=first_given(asked.min_p, defaults.min_p, 0.0),
        end_tokens=None if ends is None else frozenset([ends] if isinstance(ends, int) else ends),
        suppress_tokens=tuple(first_given(asked.suppress_tokens, defaults.suppress_tokens, ())),
        bad_words=tuple(tuple(word) for word in first_given(asked.bad_words_ids, defaults.bad_words_ids, ())),
        no_repeat_ngram=first_given(asked.no_repeat_ngram_size, defaults.no_repeat_ngram_size, 0),
        max_time=first_given(asked.max_time, defaults.max_time, None),
        keep_stop=keep_stop,
        lookup=first_given(asked.prompt_lookup_num_tokens, defaults.prompt_lookup_num_tokens, 0),
        lookup_ngram=first_given(asked.max_matching_ngram_size, defaults.max_matching_ngram_size, 0) or NGRAM,
        library=library,
        config_only=config_only,
        **shared_settings(asked, defaults),
    )


def shared_settings(asked: SharedParameters, defaults: GenerationConfig) -> dict[str, Any]:
    """The settings that causal and encoder-decoder models read alike."""
    last = first_given(asked.forced_eos_token_id, defaults.forced_eos_token_id, ())
    return {
        "length_penalty": first_given(asked.length_penalty, defaults.length_penalty, 1.0),
        "early_stopping": first_given(asked.early_stopping, defaults.early_stopping, False),
        "renormalize": first_given(asked.renormalize_logits, defaults.renormalize_logits, False),
        "forced_first": first_given(asked.forced_bos_token_id, defaults.forced_bos_token_id, None),
        "forced_last": (last,) if isinstance(last, int) else tuple(last),
        "begin_suppress": tuple(first_given(asked.begin_suppress_tokens, defaults.begin_suppress_tokens, ())),
    }


def first_given(asked: Any, model: Any, default: Any) -> Any:
    """The request's value, else the model's own, else the default."""
    return asked if asked is not None else model if model is not None else default


def _max_new_tokens(asked: GenerationParameters, defaults: GenerationConfig, prompt: int, limit: int) -> int:
    """As asked, else the model's own default, else 256, the default of the pipelines."""
    room = limit - prompt
    if room < 1:
        raise BadRequest(
            f"the prompt has {prompt} tokens; the model takes {limit}, at least one of them new",
            hint='shorten the prompt, or set "truncation": true',
        )
    if asked.max_new_tokens is not None:
        if asked.max_new_tokens > room:
            raise BadRequest(
                f"parameters.max_new_tokens is {asked.max_new_tokens}: it must be a whole number from 1 to {room}, "
                f"because the prompt has {prompt} tokens and the model takes {limit} in all"
            )
        return asked.max_new_tokens
    if asked.max_length is not None:
        if not prompt < asked.max_length <= limit:
            raise BadRequest(
                f"parameters.max_length is {asked.max_length}: it must be a whole number from {prompt + 1} "
                f"to {limit}, because it counts the {prompt} tokens of the prompt"
            )
        return asked.max_length - prompt
    default = defaults.max_new_tokens
    if default is None and defaults.max_length is not None and defaults.max_length > prompt:
        default = defaults.max_length - prompt
    return min(first_given(default, None, 256), room)


def _min_new_tokens(asked: GenerationParameters, defaults: GenerationConfig, prompt: int, most: int) -> int:
    """Tokens before the first end token; at most `most`."""
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
                f"of the prompt and {most} new tokens"
            )
        return max(0, asked.min_length - prompt)
    default: int = first_given(defaults.min_new_tokens, max(0, (defaults.min_length or 0) - prompt), 0)
    return min(default, most)


def _stop(asked: GenerationParameters, defaults: GenerationConfig) -> tuple[tuple[str, ...], bool]:
    """The stop strings, and whether the text includes the one that ended it."""
    given = {
        name: value
        for name in ("stop", "stop_sequences", "stop_strings", "stop_sequence")
        if (value := getattr(asked, name)) is not None
    }
    if len(given) > 1:
        first, second, *_ = given
        raise BadRequest(f"parameters.{second} contradicts parameters.{first}", hint=f"send {first} or {second}")
    for name, value in given.items():
        return tuple([value] if isinstance(value, str) else value), name in ("stop_strings", "stop_sequence")
    own = defaults.stop_strings or ()
    return tuple([own] if isinstance(own, str) else own), bool(own)


def library_parameters(
    asked: SharedParameters, defaults: GenerationConfig, do_sample: bool
) -> tuple[tuple[tuple[str, Any], ...], tuple[str, ...]]:
    """The parameters that only transformers implements and that have an effect here: the request's, the model's own."""
    neutral = LIBRARY | (LIBRARY_SAMPLING if do_sample else {})
    config = [name for name in neutral if getattr(defaults, name, None) not in (None, neutral[name])]
    given = {
        name: value
        for name in neutral
        if (value := getattr(asked, name, None)) is not None and (value != neutral[name] or name in config)
    }
    if asked.watermark:
        given.setdefault("watermarking_config", Watermark())
    return tuple(given.items()), tuple(name for name in config if name not in given)


def too_many_prompts(prompts: int) -> BadRequest:
    return BadRequest(
        f"the request has {prompts} prompts; the limit is {MAX_SEQUENCES}",
        hint="send several requests; the server batches them",
    )


ChatMessage = dict[str, Any]
Chat = Annotated[list[ChatMessage], Meta(min_length=1)]


def body_type(model_field: str) -> type[msgspec.Struct]:
    """The type of a JSON body. `model_field`, the key that chose the model, and the clients' `options` are ignored."""
    ignored = {name for name in ("options", model_field) if name not in ("inputs", "parameters", "stream")}
    fields: list[tuple[str, Any, Any]] = [
        ("inputs", str | Annotated[list[str | Chat | ChatMessage], Meta(min_length=1)], msgspec.field()),
        ("parameters", GenerationParameters | None, None),
        ("stream", bool | None, None),
    ]
    raw = msgspec.Raw(b"null")
    fields += [(f"ignored_{i}", msgspec.Raw, msgspec.field(name=n, default=raw)) for i, n in enumerate(sorted(ignored))]
    return msgspec.defstruct("Body", fields, forbid_unknown_fields=True, kw_only=True)


def json_decoder(model_field: str) -> Callable[[Request], Any]:
    """A function from a request to its JSON body, a `body_type`. It raises BadRequest with the name of the field."""
    decoder = msgspec.json.Decoder(body_type(model_field))

    def decode(request: Request) -> Any:
        try:
            fields: Any = body.decode_json(request.body, request.charset, decoder)
        except msgspec.ValidationError as error:
            raise _wrong_value(str(error), body.to_utf8(request.body, request.charset)) from error
        if fields.parameters is not None:
            refuse_unsupported(fields.parameters)
        return fields

    return decode


def _wrong_value(message: str, raw: bytes) -> BadRequest:
    """The error for msgspec's message ("... - at `$.parameters.top_p`"), with the value and the values allowed."""
    problem, _, at = message.partition(" - at ")
    path = at.strip("`").removeprefix("$.")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL)
    if unknown and not path.startswith("parameters."):
        inside = path == "parameters"
        names = known_names(GenerationParameters) if inside else ["inputs", "parameters", "stream", "options"]
        close = difflib.get_close_matches(unknown[1], names, 1)
        name = f"parameters.{unknown[1]}" if inside else unknown[1]
        return BadRequest(
            f"unknown field {name[:100]}" + (f"; did you mean {close[0]}?" if close else ""),
            hint="known are: " + ", ".join(names),
        )
    name = re.split(r"[.\[]", path.removeprefix("parameters."))[0]
    if not path.startswith("parameters.") or name not in GenerationParameters.__struct_fields__:
        return BadRequest(
            f"{path or 'the body'}: {problem[:1].lower()}{problem[1:]}", hint='send {"inputs": "your prompt"}'
        )
    allowed = _allowed(name)
    what = f"it must be {allowed}" if allowed else problem[:1].lower() + problem[1:]
    return BadRequest(f"parameters.{name} is {_shown(raw, name)}: {what}")


def _allowed(name: str) -> str:
    """The description in the type of a field; "" without one, as of the fields that are not supported."""
    hint = get_type_hints(GenerationParameters, include_extras=True)[name]
    described = [meta for part in getattr(hint, "__args__", ()) for meta in getattr(part, "__metadata__", ())]
    return next((meta.description for meta in described if meta.description), "")


def _shown(raw: bytes, name: str) -> str:
    """At most 60 characters of a parameter as the request has it; the body behind it may not be JSON."""
    try:
        parameters = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])["parameters"]
        text = bytes(msgspec.json.decode(parameters, type=dict[str, msgspec.Raw])[name]).decode(errors="replace")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return "invalid"
    return text if len(text) <= 60 else text[:60] + "…"

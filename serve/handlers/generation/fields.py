"""What `generate` of transformers can be asked for by one request: names, types, ranges; and what it cannot, with why.

The fields are those of its GenerationConfig, the ranges those of its `validate` and of its logits processors.
Descriptions are read by people, in the 400 for a bad value.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta
from transformers import WatermarkingConfig

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

"""The request to an encoder-decoder model. An invalid one is a 400 that names the field."""

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta
from transformers import GenerationConfig

from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.generation.lookup import NGRAM
from serve.handlers.generation.parameters import (
    MAX_TOKENS,
    GenerationSettings,
    IgnoredParameters,
    SharedParameters,
    Watermark,
    check_tokens,
    first_given,
    generate_argument,
    known_names,
    library_parameters,
    refuse_unsupported,
    shared_settings,
)
from serve.handlers.generation.request import refuse_generate
from serve.handlers.huggingface import bodies

Length = Annotated[int, Meta(ge=0, le=1_000_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000)]
Factor = Annotated[float, Meta(gt=0, le=1e4)]
MAX_SEQUENCES = 1024  # of one request; those beyond one batch run in later batches


class Seq2SeqParameters(SharedParameters, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The `parameters` of a request; a missing one has its value from the model's generation config."""

    max_length: Positive | None = None
    max_new_tokens: Positive | None = None
    min_new_tokens: Length | None = None
    num_beams: Annotated[int, Meta(ge=1, le=64)] | None = None
    num_return_sequences: Annotated[int, Meta(ge=1, le=64)] | None = None
    repetition_penalty: Factor | None = None
    do_sample: bool | None = None
    temperature: Factor | None = None
    top_k: Length | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    decoder_start_token_id: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    truncation: bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"] | None = None
    src_lang: str | None = None  # a language code of the tokenizer, as the next
    tgt_lang: str | None = None
    clean_up_tokenization_spaces: bool | None = None

    @property
    def truncates(self) -> bool:
        return self.truncation not in (None, False, "do_not_truncate")


# Parameters that are no arguments of `generate`. The padding token is the handler's: it must show in no answer.
_NOT_PASSED = {
    "seed",
    "truncation",
    "src_lang",
    "tgt_lang",
    "clean_up_tokenization_spaces",
    "watermark",
    "pad_token_id",
}


class Asked(NamedTuple):
    """The body of a request."""

    texts: list[str]
    single: bool  # `inputs` was a text, and no list
    parameters: Seq2SeqParameters
    stream: bool


def parse(request: Request, model_field: str, vocabulary: int) -> Asked:
    """Raises BadRequest. `vocabulary`: the model's number of tokens."""
    inputs, parameters, stream = bodies.parse(
        request, model_field, Seq2SeqParameters, known=known_names(Seq2SeqParameters), streams=True
    )
    refuse_unsupported(parameters)
    # Ignored values may be of any type, also unhashable, and must not keep requests from sharing a batch.
    parameters = msgspec.structs.replace(parameters, **dict.fromkeys(IgnoredParameters.__struct_fields__))
    check_tokens(parameters, vocabulary)
    if (parameters.decoder_start_token_id or 0) >= vocabulary:
        raise BadRequest(
            f"parameters.decoder_start_token_id is {parameters.decoder_start_token_id}: the model has tokens 0 to "
            f"{vocabulary - 1}"
        )
    texts = bodies.texts(inputs)
    if len(texts) * (parameters.num_return_sequences or 1) > MAX_SEQUENCES:
        raise BadRequest(
            f"{len(texts)} texts times num_return_sequences are over the limit of {MAX_SEQUENCES} in one request",
            hint="send several requests; the server batches them",
        )
    return Asked(texts, isinstance(inputs, str), parameters, stream)


def check_stream(asked: Asked, settings: GenerationSettings) -> None:
    """Raise BadRequest for a stream of more than one sequence, or of one that is known at its end only."""
    if not asked.single or (settings.num_sequences > 1 and settings.num_beams == 1):
        raise BadRequest(
            "a stream has one sequence, and the request asks for more",
            hint="send one text as a string, without num_return_sequences; or do not stream",
        )
    if settings.num_beams > 1:
        origin = "parameters.num_beams" if asked.parameters.num_beams else "num_beams of the model's generation config"
        raise BadRequest(
            f"{origin} is {settings.num_beams}: which beam is the best is known at the end, so a stream has one beam",
            hint='set "num_beams": 1 in the parameters, or do not stream',
        )
    refuse_generate(settings)


def generate_arguments(parameters: Seq2SeqParameters) -> dict[str, Any]:
    """The parameters that the request sets, as transformers' GenerationConfig takes them."""
    asked = msgspec.structs.asdict(parameters)
    if parameters.watermark:
        asked["watermarking_config"] = parameters.watermarking_config or Watermark()
    return {
        name: generate_argument(name, value)
        for name, value in asked.items()
        if value is not None and name not in _NOT_PASSED
    }


def language_token(tokenizer: Any, name: str, language: str) -> int:
    """The token of a language code. Raises BadRequest that names the parameter `name`."""
    if not hasattr(tokenizer, "src_lang"):
        raise BadRequest(f"parameters.{name} is not supported: the model has no language codes", hint="leave it out")
    codes = getattr(tokenizer, "lang_code_to_token", None)  # of M2M100, which writes en as __en__
    word = language if codes is None else codes.get(language, "")
    token: int | None = tokenizer.convert_tokens_to_ids(word)
    # M2M100's own list counts: its codes are special tokens only if a file of the tokenizer says so.
    if token is None or not (word if codes else word in tokenizer.all_special_tokens):
        known = ", ".join(sorted(codes or tokenizer.all_special_tokens))
        raise BadRequest(f"parameters.{name}: unknown language code: {language[:50]!r}", hint=f"known: {known}")
    return token


def resolve(
    asked: Seq2SeqParameters, config: GenerationConfig, defaults: GenerationConfig, positions: int | None
) -> GenerationSettings:
    """The settings of a text. Raises BadRequest for lengths that contradict each other.

    Args:
        config: the model's own generation config, `defaults`, with the request's parameters.
        positions: of the decoder; None if there is no limit.
    """
    # max_length and min_length count the decoder's first token. Without a maximum, `generate` makes 20 new tokens.
    longest = first_given(config.max_new_tokens, None if config.max_length is None else config.max_length - 1, 20)
    shortest = first_given(config.min_new_tokens, max(0, (config.min_length or 0) - 1), 0)
    if shortest > longest and (asked.min_length is not None or asked.min_new_tokens is not None):
        told = (config.min_new_tokens, config.max_new_tokens)
        least, most = told if None not in told else (config.min_length, config.max_length)
        raise BadRequest(f"the minimum length, {least}, is over the maximum length, {most}")
    longest = min(longest, positions or MAX_TOKENS)
    if asked.prompt_lookup_num_tokens and (config.num_beams or 1) > 1:
        raise BadRequest(
            f"parameters.prompt_lookup_num_tokens cannot be combined with num_beams, which is {config.num_beams}",
            hint='set "num_beams": 1, or leave prompt_lookup_num_tokens out',
        )
    library, config_only = library_parameters(asked, defaults, bool(config.do_sample))
    stop = config.stop_strings or ()
    ends = config.eos_token_id
    return GenerationSettings(
        max_new_tokens=longest,
        min_new_tokens=min(shortest, longest),
        do_sample=bool(config.do_sample),
        temperature=first_given(config.temperature, None, 1.0),
        top_p=first_given(config.top_p, None, 1.0),
        top_k=first_given(config.top_k, None, 50),
        repetition_penalty=first_given(config.repetition_penalty, None, 1.0),
        num_sequences=config.num_return_sequences or 1,
        num_beams=config.num_beams or 1,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=asked.seed,
        return_full_text=False,
        min_p=first_given(config.min_p, None, 0.0),
        end_tokens=frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends),
        suppress_tokens=tuple(config.suppress_tokens or ()),
        bad_words=tuple(tuple(word) for word in config.bad_words_ids or ()),
        no_repeat_ngram=config.no_repeat_ngram_size or 0,
        max_time=config.max_time,
        lookup=config.prompt_lookup_num_tokens or 0,
        lookup_ngram=config.max_matching_ngram_size or NGRAM,
        keep_stop=True,
        library=library,
        config_only=config_only,
        **shared_settings(asked, config),
    )

"""What a request may ask of an encoder-decoder model; whatever is wrong is a 400 that names the field."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.generation.parameters import Fields, Ignored, Watermark, argument, check_tokens, known, refuse
from serve.handlers.huggingface import bodies


def code(tokenizer: Any, name: str, language: str) -> int:
    """The token that stands for a language. Raises BadRequest; `name`: of the parameter."""
    if not hasattr(tokenizer, "src_lang"):
        raise BadRequest(f"parameters.{name}: this model has no languages to choose from", hint="leave it out")
    token = language
    if hasattr(tokenizer, "lang_code_to_token"):  # M2M100 writes en as __en__
        token = tokenizer.lang_code_to_token.get(language, "")
    number: int | None = tokenizer.convert_tokens_to_ids(token)
    if number is None or token not in tokenizer.all_special_tokens:
        known = ", ".join(sorted(getattr(tokenizer, "lang_code_to_token", None) or tokenizer.all_special_tokens))
        raise BadRequest(f"parameters.{name}: {language[:50]!r} is no language of this model", hint=f"known: {known}")
    return number


Length = Annotated[int, Meta(ge=0, le=1_000_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000)]
Factor = Annotated[float, Meta(gt=0, le=1e4)]
MOST_TEXTS = 1024  # of one request, times the sequences of each; more than fit into a batch take turns


class Parameters(Fields, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a request may ask of generation; what it leaves out is as the model's generation config has it."""

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
    src_lang: str | None = None  # for models of many languages, by their tokenizer's codes
    tgt_lang: str | None = None
    clean_up_tokenization_spaces: bool | None = None


# What is not for `generate`; a text's padding must show in no answer, whoever is beside it.
_OURS = {"seed", "truncation", "src_lang", "tgt_lang", "clean_up_tokenization_spaces", "watermark", "pad_token_id"}


def parse(request: Request, model_field: str, words: int) -> tuple[list[str], bool, Parameters]:
    """The texts, whether it was one alone, and what is asked for them, of a model that knows so many tokens."""
    inputs, parameters = bodies.parse(request, model_field, Parameters, known=known(Parameters))
    refuse(parameters)
    # Of any type, a list too: they must neither part those who could share a batch nor be hashed with the rest.
    parameters = msgspec.structs.replace(parameters, **dict.fromkeys(Ignored.__struct_fields__))
    check_tokens(parameters, words)
    if (parameters.decoder_start_token_id or 0) >= words:
        raise BadRequest(
            f"parameters.decoder_start_token_id is {parameters.decoder_start_token_id}: the model knows tokens 0 to "
            f"{words - 1}"
        )
    texts = bodies.texts(inputs)
    if len(texts) * (parameters.num_return_sequences or 1) > MOST_TEXTS:
        raise BadRequest(
            f"{len(texts)} texts times num_return_sequences are over {MOST_TEXTS}, as many as one request may ask for",
            hint="send several requests; they are batched together",
        )
    return texts, isinstance(inputs, str), parameters


def arguments(parameters: Parameters) -> dict[str, Any]:
    """What was asked of `generate`, as its GenerationConfig takes it."""
    asked = msgspec.structs.asdict(parameters)
    if parameters.watermark:
        asked["watermarking_config"] = parameters.watermarking_config or Watermark()
    return {name: argument(name, value) for name, value in asked.items() if value is not None and name not in _OURS}

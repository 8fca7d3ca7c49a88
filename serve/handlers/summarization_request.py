"""What a request may ask of an encoder-decoder model; whatever is wrong is a 400 that names the field."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serve.handlers import pipeline
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
    src_lang: str | None = None  # for models of many languages, by their tokenizer's codes
    tgt_lang: str | None = None
    clean_up_tokenization_spaces: bool | None = None
    batch_size: int | None = None  # how a pipeline batches, which is our business


def parse(request: Request, model_field: str) -> tuple[list[str], bool, Parameters]:
    """The texts, whether it was one alone, and what is asked for them."""
    inputs, parameters = pipeline.parse(request, model_field, Parameters)
    return pipeline.texts(inputs), isinstance(inputs, str), parameters

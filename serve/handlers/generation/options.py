"""The options of text generation."""

from typing import Annotated

from msgspec import Meta

from serve.handlers.huggingface.options import HuggingFaceOptions


class TextGenerationOptions(HuggingFaceOptions, frozen=True, kw_only=True):
    pack: Annotated[
        bool,
        Meta(
            description="`false`: float32 weights stay mapped from their file. They take no private memory, but from 4"
            " sequences on a step takes half as long again"
        ),
    ] = True
    prefix_cache_mb: Annotated[
        int,
        Meta(
            ge=0,
            description="memory for keys and values of earlier texts, so that a prompt which begins as one of them is"
            " computed from there on; 0: none",
        ),
    ] = 256

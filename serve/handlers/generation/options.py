"""The options of text generation."""

from typing import Annotated

from msgspec import Meta

from serve.handlers.huggingface.options import HuggingFaceOptions


class TextGenerationOptions(HuggingFaceOptions, frozen=True, kw_only=True):
    prefix_cache_mb: Annotated[
        int,
        Meta(
            ge=0,
            description="memory for keys and values of earlier texts, so that a prompt which begins as one of them is"
            " computed from there on; 0: none",
        ),
    ] = 256

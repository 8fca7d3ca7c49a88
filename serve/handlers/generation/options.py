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

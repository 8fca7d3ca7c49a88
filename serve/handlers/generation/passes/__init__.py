"""The forward passes of causal models: those of families, and transformers' own modules for all others."""

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from serve.handlers.generation.cache import RowCache
from serve.handlers.generation.passes import gpt2, llama
from serve.handlers.generation.passes.modules import ModulesPass


class Pass(Protocol):
    """One forward pass of a causal model over new tokens of each row."""

    device: torch.device
    ragged: bool  # whether rows of one pass may have tokens at different columns, several in each row

    def cache(self) -> RowCache:
        """An empty cache of the model's layers."""

    def __call__(
        self, tokens: Tensor, columns: Tensor, cache: RowCache, selected: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Write the keys and values of the tokens, and compute logits.

        Args:
            tokens: [rows, count].
            columns: those of the tokens, which are their positions in the text too, [rows or 1, count].
            cache: its `write_at` or `write_at_each` has been called for these columns.
            selected: the rows and the indices in `tokens` whose logits are returned, [selected, vocabulary]; None for
                all, [rows, count, vocabulary].
        """


def merge_products(model: PreTrainedModel) -> None:
    """Let the linear layers of a family that read one input share a product. Copies their weights."""
    if original(model) and llama.fits(model):
        llama.merge_products(model)


def pass_of(model: PreTrainedModel) -> Pass:
    """The fastest pass of a model that is proven to be independent of its batch."""
    if original(model):
        if gpt2.fits(model):
            return gpt2.GPT2Pass(model)
        if llama.fits(model):
            return llama.LlamaPass(model)
    return ModulesPass(model)


def original(model: PreTrainedModel) -> bool:
    """Whether all modules of a model are transformers' own, or replaced by ours."""
    return all(
        type(module).__module__.split(".")[0] in ("torch", "transformers", "serve") for module in model.modules()
    )

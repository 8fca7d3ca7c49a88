"""The forward pass by transformers' own modules, for any architecture whose rows may join and leave a batch."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from serve.handlers.generation import masks
from serve.handlers.generation.cache import RowCache


def windows(config: Any) -> list[tuple[str, int]]:
    """The kind of attention of each layer, and the size of its window or chunk."""
    kinds, sizes = get_layer_types_and_kwargs(config)
    return [(kind, size.get("sliding_window", 0)) for kind, size in zip(kinds, sizes, strict=True)]


class ModulesPass:
    """The Pass of any proven model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.device = model.device
        config = model.config.get_text_config(decoder=True)
        self._windows = windows(config)
        self._positions = "position_ids" in inspect.signature(model.forward).parameters
        # BLOOM, MPT and some Falcons take no positions: they compute a bias from a 2-D mask (ALiBi).
        self._alibi = bool(getattr(config, "alibi", False)) or not self._positions
        self.ragged = not self._alibi  # the 2-D mask has one column for all tokens of a row
        self._selected: tuple[Tensor, Tensor] | None = None
        # A hook, because not all architectures take logits_to_keep, and none takes one position for each row.
        model.get_output_embeddings().register_forward_pre_hook(self._select)

    def cache(self) -> RowCache:
        return RowCache(len(self._windows))

    def __call__(
        self, tokens: Tensor, columns: Tensor, cache: RowCache, selected: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        positions: dict[str, Any] = {"position_ids": columns.expand(tokens.shape)} if self._positions else {}
        self._selected = selected
        try:
            output = self._model(
                input_ids=tokens,
                attention_mask=self._mask(columns, cache),
                past_key_values=cache,
                use_cache=True,
                **positions,
            )
        finally:
            self._selected = None
        logits: Tensor = output.logits
        return logits if selected is None else logits[:, 0]

    def _mask(self, columns: Tensor, cache: RowCache) -> Tensor | dict[str, Tensor] | None:
        """The columns that each query attends to, computed once for all layers: transformers passes on a 4-D mask."""
        width = cache.extent.width
        if self._alibi:
            return masks.seen(columns[:, -1:], width)[:, 0, 0].expand(cache.extent.rows, -1).long()
        kinds = set(self._windows)
        if columns.shape[1] == width > 1 and kinds == {(masks.FULL, 0)}:
            return None  # a whole prompt: plain causal attention has the fastest kernel
        by_kind = {kind: masks.bias(masks.seen(columns, width, kind, size), self._model.dtype) for kind, size in kinds}
        return by_kind if len(by_kind) > 1 else next(iter(by_kind.values()))

    def _select(self, head: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Reduce the input of the head to selected positions: logits of all positions would take gigabytes."""
        if self._selected is None:
            return None
        hidden, *rest = arguments
        return (hidden[self._selected][:, None], *rest)

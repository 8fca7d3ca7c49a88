"""A causal language model over a batch of rows: prompts are prefilled apart, each step adds a token to each row."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from serve.handlers.generation.cache import RowCache
from serve.handlers.huggingface import independence

KINDS = {"full_attention", "sliding_attention", "chunked_attention"}  # of layers that a RowCache can hold


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a text, by the model's generation config."""
    ends = model.generation_config.eos_token_id
    return frozenset([] if ends is None else ends if isinstance(ends, list) else [ends])


def add_end_token(model: PreTrainedModel, token: int | None) -> None:
    """Let a text end at this token too, the tokenizer's own end token.

    A fine-tuned base model often names the end of a turn in its tokenizer only. vLLM stops there as well:
    https://docs.vllm.ai/en/latest/api/vllm/sampling_params/ (update_from_generation_config)
    """
    ends = model.generation_config.eos_token_id
    named = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if token is not None and token not in named:
        model.generation_config.eos_token_id = [*named, token]


def obstacle(model: PreTrainedModel) -> str | None:
    """Why the rows of a model may not join and leave a running batch; None if they may."""
    if reason := independence.obstacle(model, independence.CONTINUOUS):
        return reason
    # State-space and convolutional layers, and layers without a cache of their own, keep more than keys and values.
    others = {kind for kind, _ in _windows(model.config.get_text_config(decoder=True))} - KINDS
    return f"layers of type {', '.join(sorted(others))}" if others else None


class TokenSteps(Protocol):
    """What a handler needs of a decoder: prompts are prefilled apart, then join as rows, and each step adds a token.

    Rows are numbered from 0. When a row leaves, the last row takes its number.
    """

    def begin(self, prompts: Sequence[Sequence[int]]) -> Any: ...

    def advance(self, prefill: Any, most: int) -> Tensor | None:
        """Compute about `most` columns; returns the logits [rows, vocabulary] if the prefill is complete."""

    def join(self, prefill: Any) -> None: ...

    def step(self, tokens: Sequence[int]) -> Tensor: ...

    def leave(self, row: int) -> None: ...

    def reset(self) -> None: ...

    def forget(self) -> None:
        """Undo what earlier passes left in the model, before a `generate`."""


class Prefill:
    """Prompts that will join the batch, in a cache of their own, so that the batch can step between two pieces."""

    def __init__(self, prompts: Sequence[Sequence[int]], layers: int, device: torch.device) -> None:
        self.lengths = [len(prompt) for prompt in prompts]
        self.done = 0
        # If set, it is called for each piece: with its first column, and its logits [rows, columns, vocabulary].
        self.score: Callable[[int, Tensor], None] | None = None
        self.cache = RowCache(layers)
        self.cache.extent.rows = len(prompts)
        longest = max(self.lengths)
        self.tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)

    @property
    def remaining(self) -> int:
        """Columns that are not computed yet."""
        return self.tokens.shape[1] - self.done


class Decoder:
    """The TokenSteps of a model that is proven to be independent of its batch."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        config = model.config.get_text_config(decoder=True)
        self._windows = _windows(config)
        self._positions = "position_ids" in inspect.signature(model.forward).parameters
        # BLOOM, MPT and some Falcons take no positions: they compute a bias from a 2-D mask (ALiBi).
        self._alibi = bool(getattr(config, "alibi", False)) or not self._positions
        self._selected: tuple[Tensor, Tensor] | None = None
        # A hook, because not all architectures take logits_to_keep, and none takes one position for each row.
        model.get_output_embeddings().register_forward_pre_hook(self._select)
        self.device = model.device
        self.cache = RowCache(len(self._windows))
        self.lengths: list[int] = []

    def begin(self, prompts: Sequence[Sequence[int]]) -> Prefill:
        return Prefill(prompts, len(self._windows), self.device)

    def advance(self, prefill: Prefill, most: int) -> Tensor | None:
        """Compute the next `most` columns; returns the logits [rows, vocabulary] after the last piece, else None.

        Shorter prompts are padded on the right; the mask hides what is computed there, and later tokens overwrite it.
        """
        start, count = prefill.done, min(most, prefill.remaining)
        rows = len(prefill.lengths)
        prefill.cache.write_at(start, count)
        positions = torch.arange(start, start + count, device=self.device)[None]
        last = start + count == prefill.tokens.shape[1]
        # All prompts end in the last piece: the scheduler combines prompts of similar lengths only.
        ends = [length - 1 - start if last else 0 for length in prefill.lengths]
        selected = torch.arange(rows, device=self.device), torch.tensor(ends, device=self.device)
        self._selected = selected if prefill.score is None else None
        try:
            logits = self._forward(
                prefill.tokens[:, start : start + count], positions.expand(rows, count), positions, prefill.cache
            )
        finally:
            self._selected = None
        prefill.done += count
        if prefill.score is not None:
            prefill.score(start, logits)
            logits = logits[selected][:, None]
        return logits[:, -1] if last else None

    def join(self, prefill: Prefill) -> None:
        """Append the prompts of a complete prefill to the batch, as its last rows."""
        if self.lengths:
            self.cache.adopt(prefill.cache, prefill.lengths)
        else:
            self.cache = prefill.cache  # the batch is empty, so nothing is copied
        self.lengths.extend(prefill.lengths)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """The logits [rows, vocabulary] after one more token in each row."""
        widest = max(self.lengths)
        columns = torch.tensor(self.lengths, device=self.device)
        if min(self.lengths) == widest:
            self.cache.write_at(widest, 1)
        else:
            self.cache.write_at_each(columns, widest)
        positions = columns[:, None]
        logits = self._forward(torch.tensor(tokens, device=self.device)[:, None], positions, positions, self.cache)
        self.lengths = [length + 1 for length in self.lengths]
        return logits[:, -1]

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        self.cache.drop(row, self.lengths[-1])
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()
        if not self.lengths:
            self.reset()

    def forget(self) -> None:
        """Nothing: proven models keep nothing."""

    def reset(self) -> None:
        """Remove all rows and free their memory."""
        self.cache = RowCache(len(self._windows))
        self.lengths = []

    def _forward(self, tokens: Tensor, positions: Tensor, queries: Tensor, cache: RowCache) -> Tensor:
        arguments: dict[str, Any] = {"position_ids": positions} if self._positions else {}
        output = self._model(
            input_ids=tokens,
            attention_mask=self._mask(queries, cache),
            past_key_values=cache,
            use_cache=True,
            **arguments,
        )
        logits: Tensor = output.logits
        return logits

    def _mask(self, queries: Tensor, cache: RowCache) -> Tensor | dict[str, Tensor] | None:
        """The columns that each query attends to, computed once for all layers: transformers passes on a 4-D mask.

        `queries`: the columns of the queries, [rows or 1, count].
        """
        width = cache.extent.width
        columns = torch.arange(width, device=self.device)
        if self._alibi:
            return (columns <= queries[:, -1:]).expand(cache.extent.rows, -1).long()
        kinds = set(self._windows)
        if queries.shape[1] == width > 1 and kinds == {("full_attention", 0)}:
            return None  # a whole prompt: plain causal attention has the fastest kernel
        masks = {kind: self._bias(queries, columns, kind, size) for kind, size in kinds}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _bias(self, queries: Tensor, columns: Tensor, kind: str, size: int) -> Tensor:
        at = queries[:, None, :, None]
        seen = columns <= at
        if kind == "sliding_attention":
            seen = seen & (columns > at - size)
        elif kind == "chunked_attention":
            seen = seen & (columns // size == at // size)
        dtype = self._model.dtype
        # The lowest number and not -inf, which would give NaN for a padded query that attends to nothing.
        return torch.zeros((), dtype=dtype, device=self.device).where(seen, torch.finfo(dtype).min)

    def _select(self, head: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Reduce the input of the head to one position of each row: logits of all positions would take gigabytes."""
        if self._selected is None:
            return None
        hidden, *rest = arguments
        return (hidden[self._selected][:, None], *rest)


def _windows(config: Any) -> list[tuple[str, int]]:
    """The kind of attention of each layer, and the size of its window or chunk."""
    kinds, sizes = get_layer_types_and_kwargs(config)
    return [(kind, size.get("sliding_window", 0)) for kind, size in zip(kinds, sizes, strict=True)]

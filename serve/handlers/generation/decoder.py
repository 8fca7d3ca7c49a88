"""A causal language model over a batch of rows: prompts are prefilled apart, each step adds a token to each row."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from serve.handlers.generation import masks
from serve.handlers.generation.cache import Move, RowCache
from serve.handlers.generation.passes import Pass
from serve.handlers.generation.passes.modules import windows
from serve.handlers.huggingface import independence


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
    others = {kind for kind, _ in windows(model.config.get_text_config(decoder=True))} - masks.KINDS
    return f"layers of type {', '.join(sorted(others))}" if others else None


class TokenSteps(Protocol):
    """What a handler needs of a decoder: prompts are prefilled apart, then join as rows, and each step adds a token.

    Rows are numbered from 0. When a row leaves, the last row takes its number.
    """

    def begin(self, prompts: Sequence[Any]) -> Any: ...

    def advance(self, prefill: Any, most: int) -> Tensor | None:
        """Compute about `most` columns; returns the logits [rows, vocabulary] if the prefill is complete."""

    def join(self, prefill: Any) -> None: ...

    def step(self, tokens: Sequence[int]) -> Tensor: ...

    def leave(self, row: int) -> None: ...

    def reset(self) -> None: ...

    def forget(self) -> None:
        """Undo what earlier passes left in the model, before a `generate`."""


@runtime_checkable
class ForkingSteps(TokenSteps, Protocol):
    """TokenSteps of a decoder whose rows can be copied, for beam search."""

    def fork(self, row: int, copies: int) -> None:
        """Append copies of a row, as the last rows."""

    def rearrange(self, moves: Sequence[Move]) -> None:
        """Give rows the content of other rows. No target is the source of another move."""


class Prefill:
    """Prompts that will join the batch, in a cache of their own, so that the batch can step between two pieces."""

    def __init__(self, prompts: Sequence[Sequence[int]], cache: RowCache, device: torch.device) -> None:
        self.lengths = [len(prompt) for prompt in prompts]
        self.done = 0
        # If set, it is called for each piece: with its first column, and its logits [rows, columns, vocabulary].
        self.score: Callable[[int, Tensor], None] | None = None
        self.cache = cache
        self.cache.extent.rows = len(prompts)
        longest = max(self.lengths)
        self.tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)

    @property
    def remaining(self) -> int:
        """Columns that are not computed yet."""
        return self.tokens.shape[1] - self.done


class Decoder:
    """The TokenSteps of a model that is proven to be independent of its batch."""

    def __init__(self, forward: Pass) -> None:
        self._forward = forward
        self.device = forward.device
        self.cache = forward.cache()
        self.lengths: list[int] = []

    def begin(self, prompts: Sequence[Sequence[int]]) -> Prefill:
        return Prefill(prompts, self._forward.cache(), self.device)

    def advance(self, prefill: Prefill, most: int) -> Tensor | None:
        """Compute the next `most` columns; returns the logits [rows, vocabulary] after the last piece, else None.

        Shorter prompts are padded on the right; the mask hides what is computed there, and later tokens overwrite it.
        """
        start, count = prefill.done, min(most, prefill.remaining)
        prefill.cache.write_at(start, count)
        columns = torch.arange(start, start + count, device=self.device)[None]
        last = start + count == prefill.tokens.shape[1]
        # All prompts end in the last piece: the scheduler combines prompts of similar lengths only.
        ends = [length - 1 - start if last else 0 for length in prefill.lengths]
        selected = torch.arange(len(ends), device=self.device), torch.tensor(ends, device=self.device)
        logits = self._forward(
            prefill.tokens[:, start : start + count],
            columns,
            prefill.cache,
            selected if prefill.score is None else None,
        )
        prefill.done += count
        if prefill.score is not None:
            prefill.score(start, logits)
            logits = logits[selected]
        return logits if last else None

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
        columns = torch.tensor(self.lengths, device=self.device)[:, None]
        if min(self.lengths) == widest:
            self.cache.write_at(widest, 1)
        else:
            self.cache.write_at_each(columns, widest)
        logits = self._forward(torch.tensor(tokens, device=self.device)[:, None], columns, self.cache, None)
        self.lengths = [length + 1 for length in self.lengths]
        return logits[:, -1]

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        self.cache.drop(row, self.lengths[-1])
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()
        if not self.lengths:
            self.reset()

    def fork(self, row: int, copies: int) -> None:
        """Append copies of a row, as the last rows."""
        self.cache.fork(row, copies, self.lengths[row])
        self.lengths += [self.lengths[row]] * copies

    def rearrange(self, moves: Sequence[Move]) -> None:
        """Give rows the content of other rows. No target is the source of another move."""
        self.cache.rearrange(moves, self.lengths)
        for target, source, _ in moves:
            self.lengths[target] = self.lengths[source]

    def forget(self) -> None:
        """Nothing: proven models keep nothing."""

    def reset(self) -> None:
        """Remove all rows and free their memory."""
        self.cache = self._forward.cache()
        self.lengths = []

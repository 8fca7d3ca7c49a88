"""A causal language model over a batch of rows: prompts are prefilled apart, each step adds a token to each row."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from serve.failures import exhausted
from serve.handlers.generation import masks
from serve.handlers.generation.cache import FIRST_COLUMNS, Move, RowCache
from serve.handlers.generation.passes import Pass
from serve.handlers.generation.passes.modules import windows
from serve.handlers.generation.prefix_cache import LEAST, PrefixCache, common
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


@runtime_checkable
class ReusingSteps(TokenSteps, Protocol):
    """TokenSteps of a decoder that does not compute again what running rows and earlier texts have computed.

    Texts are found in their own space only; those without a space neither find nor are found.
    """

    def reusable(self, prompt: Sequence[int], space: str | None) -> int:
        """The number of first tokens of a prompt that need not be computed."""

    def begin_in(self, prompts: Sequence[Sequence[int]], spaces: Sequence[str | None]) -> Any:
        """As `begin`, for prompts in spaces. The attribute `reused` of what it returns: first tokens of all prompts."""

    def forget_texts(self) -> None:
        """Free the memory of earlier texts."""


@runtime_checkable
class ExtendingSteps(TokenSteps, Protocol):
    """TokenSteps of a decoder that takes several tokens of a row at once, and can forget the last ones."""

    lengths: list[int]  # the tokens of each row

    @property
    def extends(self) -> bool:
        """Whether the model can do that."""

    def extend(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """The logits [rows, most, vocabulary] after each further token of each row; at least one for each row.

        Behind the tokens of a row that has fewer than `most` they have no meaning.
        """

    def cut(self, row: int, length: int) -> None:
        """Forget the tokens of a row from this length on."""


def extension(tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Further tokens of rows of these lengths, and their columns, both [rows, most].

    A row with fewer tokens computes its last one again, at the same column.
    """
    most = max(map(len, tokens))
    padded = [[*each, *[each[-1]] * (most - len(each))] for each in tokens]
    columns = [
        [length + min(i, len(each) - 1) for i in range(most)] for length, each in zip(lengths, tokens, strict=True)
    ]
    return torch.tensor(padded), torch.tensor(columns)


class Prefill:
    """Prompts that will join the batch, in a cache of their own, so that the batch can step between two pieces."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        spaces: Sequence[str | None],
        cache: RowCache,
        device: torch.device,
        reused: int = 0,
    ) -> None:
        self.prompts = prompts
        self.spaces = spaces
        self.lengths = [len(prompt) for prompt in prompts]
        self.done = self.reused = reused
        self.ends: dict[int, Tensor] = {}  # the logits behind the last token of each prompt that is computed
        # If set, it is called for each piece: with its first column, and its logits [rows, columns, vocabulary].
        self.score: Callable[[int, Tensor], None] | None = None
        self.cache = cache
        self.cache.extent.rows = len(prompts)
        longest = max(self.lengths)
        self.cache.extent.expected = longest + FIRST_COLUMNS
        self.tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)

    @property
    def remaining(self) -> int:
        """Columns that are not computed yet."""
        return self.tokens.shape[1] - self.done


class Decoder:
    """The TokenSteps of a model that is proven to be independent of its batch."""

    def __init__(self, forward: Pass, prefixes: PrefixCache | None = None) -> None:
        self._forward = forward
        self.device = forward.device
        self.extends = forward.ragged
        self.cache = forward.cache()
        self.lengths: list[int] = []
        self.prefixes = PrefixCache(0) if prefixes is None else prefixes
        self._texts: list[list[int]] = []  # the tokens of each row
        self._spaces: list[str | None] = []  # of each row

    def begin(self, prompts: Sequence[Sequence[int]]) -> Prefill:
        return self.begin_in(prompts, [None] * len(prompts))

    def reusable(self, prompt: Sequence[int], space: str | None) -> int:
        """The number of first tokens of a prompt whose columns a running row or an earlier text has."""
        count = max(self._found(prompt, space)[0], self._held(prompt, space))
        return count if count >= LEAST else 0

    def begin_in(self, prompts: Sequence[Sequence[int]], spaces: Sequence[str | None]) -> Prefill:
        reused = min(self.reusable(prompt, space) for prompt, space in zip(prompts, spaces, strict=True))
        prefill = Prefill(prompts, spaces, self._forward.cache(), self.device, reused)
        for number, (prompt, space) in enumerate(zip(prompts, spaces, strict=True) if reused else ()):
            held, row = self._found(prompt, space)
            if held >= reused:
                prefill.cache.put(number, 0, self.cache.read(row, 0, reused))
            else:
                for start, columns in self.prefixes.columns(prompt[:reused], space or ""):
                    prefill.cache.put(number, start, columns)
        return prefill

    def forget_texts(self) -> None:
        self.prefixes.free()

    def _found(self, prompt: Sequence[int], space: str | None) -> tuple[int, int]:
        """The longest beginning of a prompt that a running row has, and the row. One token is left to compute."""
        if space is None or not self.prefixes.limit:
            return 0, 0
        rows = [i for i, each in enumerate(self._spaces) if each == space]
        return max(((common(prompt[:-1], self._texts[i]), i) for i in rows), default=(0, 0))

    def _held(self, prompt: Sequence[int], space: str | None) -> int:
        """The longest beginning of a prompt that an earlier text has. One token is left to compute."""
        return 0 if space is None else self.prefixes.longest(prompt[:-1], space)

    def advance(self, prefill: Prefill, most: int) -> Tensor | None:
        """Compute the next `most` columns; returns the logits [rows, vocabulary] after the last piece, else None.

        Shorter prompts are padded on the right; the mask hides what is computed there, and later tokens overwrite it.
        """
        start, count, rows = prefill.done, min(most, prefill.remaining), len(prefill.lengths)
        prefill.cache.write_at(start, count)
        columns = torch.arange(start, start + count, device=self.device)[None]
        ends = {row: length - 1 - start for row, length in enumerate(prefill.lengths) if 0 < length - start <= count}
        selected = torch.tensor([list(ends), list(ends.values())], dtype=torch.int64, device=self.device).unbind()
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
        prefill.ends |= zip(ends, logits, strict=True)
        if prefill.remaining:
            return None
        return logits if len(ends) == len(prefill.lengths) else torch.stack([prefill.ends[row] for row in range(rows)])

    def join(self, prefill: Prefill) -> None:
        """Append the prompts of a complete prefill to the batch, as its last rows."""
        if self.lengths:
            self.cache.adopt(prefill.cache, prefill.lengths)
        else:
            self.cache = prefill.cache  # the batch is empty, so nothing is copied
        self.lengths.extend(prefill.lengths)
        self._texts.extend(list(prompt) for prompt in prefill.prompts)
        self._spaces.extend(prefill.spaces)

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
        for text, token in zip(self._texts, tokens, strict=True):
            text.append(token)
        return logits[:, -1]

    def extend(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """The logits [rows, most, vocabulary] after each further token of each row; at least one for each row."""
        padded, columns = (each.to(self.device) for each in extension(tokens, self.lengths))
        self.cache.write_at_each(columns, int(columns.max()))
        logits = self._forward(padded, columns, self.cache, None)
        for row, each in enumerate(tokens):
            self.lengths[row] += len(each)
            self._texts[row].extend(each)
        return logits

    def cut(self, row: int, length: int) -> None:
        """Forget the tokens of a row from this length on."""
        self.lengths[row] = length
        del self._texts[row][length:]

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        self._keep(row)
        self.cache.drop(row, self.lengths[-1])
        of_rows: list[list[Any]] = [self.lengths, self._texts, self._spaces]
        for each in of_rows:
            each[row] = each[-1]
            each.pop()
        if not self.lengths:
            self.reset()

    def _keep(self, row: int) -> None:
        """Keep the columns of a row for later prompts, unless there is no memory for them."""
        space = self._spaces[row]
        if space is None:
            return
        try:
            self.prefixes.keep(self._texts[row], partial(self.cache.read, row), space)
        except Exception as error:
            if not exhausted(error):
                raise
            self.prefixes.free()

    def fork(self, row: int, copies: int) -> None:
        """Append copies of a row, as the last rows."""
        self.cache.fork(row, copies, self.lengths[row])
        self.lengths += [self.lengths[row]] * copies
        self._texts += [list(self._texts[row]) for _ in range(copies)]
        self._spaces += [self._spaces[row]] * copies

    def rearrange(self, moves: Sequence[Move]) -> None:
        """Give rows the content of other rows. No target is the source of another move."""
        self.cache.rearrange(moves, self.lengths)
        for target, source, _ in moves:
            self.lengths[target] = self.lengths[source]
            self._texts[target] = list(self._texts[source])
            self._spaces[target] = self._spaces[source]

    def forget(self) -> None:
        """Nothing: proven models keep nothing."""

    def reset(self) -> None:
        """Remove all rows and free their memory."""
        self.cache = self._forward.cache()
        self.lengths, self._texts, self._spaces = [], [], []

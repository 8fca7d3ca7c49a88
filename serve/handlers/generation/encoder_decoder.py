"""Encoder-decoder models over a batch of rows that join and leave between tokens.

The source of a prompt is encoded once. Its keys and values of the cross-attention serve all rows that begin with it.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from serve.handlers.generation.cache import Move, RowCache
from serve.handlers.generation.decoder import ForkingSteps, extension
from serve.handlers.generation.passes import bart, original, t5
from serve.handlers.generation.sources import Keys, Sources
from serve.handlers.huggingface import independence


@dataclass(frozen=True, slots=True)
class EncoderDecoderPrompt:
    """The tokens of a source, and the decoder's first token."""

    source: Sequence[int]
    start: int


def obstacle(model: PreTrainedModel) -> str | None:
    """Why the rows of a model may not join and leave a running batch; None if they may."""
    return independence.obstacle(model, independence.PADDED_GENERATE)


class EncoderDecoderPass(Protocol):
    """The encoder and the decoder of a family."""

    device: torch.device
    parts: int  # of the encoder, of about equal cost: its layers, and the keys that the decoder reads

    def cache(self) -> RowCache:
        """An empty cache of the decoder's layers."""

    def encode(self, tokens: Tensor, lengths: list[int]) -> Generator[float, None, Keys]:
        """Encode sources, [sources, columns] of these lengths. It stops often, with the number of parts done."""

    def __call__(self, tokens: Tensor, columns: Tensor, cache: RowCache, sources: Sources) -> Tensor:
        """The logits [rows * count, vocabulary] after each of the tokens.

        Args:
            tokens: [rows, count].
            columns: those of the tokens, which are their positions in the text too, [rows or 1, count].
            cache: its `write_at` or `write_at_each` has been called for these columns.
            sources: what the rows read.
        """


def merge_products(model: PreTrainedModel) -> None:
    """Let the linear layers of a family that read one input share a product. Copies their weights."""
    if not original(model):
        return
    if bart.fits(model):
        bart.merge_products(model)
    elif t5.fits(model):
        t5.merge_products(model)


def steps_of(model: PreTrainedModel) -> ForkingSteps:
    """The TokenSteps of a model without an obstacle. Its prompts are EncoderDecoderPrompts."""
    if original(model):
        if bart.fits(model):
            return EncoderDecoder(bart.BartPass(model))
        if t5.fits(model):
            return EncoderDecoder(t5.T5Pass(model))
    return Cohorts(model)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens padded on the right, and the mask of those that are text, both [rows, longest]."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return tokens, mask


class Prefill:
    """Prompts that will join the batch: their sources are encoded, then their first tokens are computed."""

    def __init__(self, prompts: Sequence[EncoderDecoderPrompt], forward: EncoderDecoderPass) -> None:
        self.tokens, _ = padded([prompt.source for prompt in prompts], forward.device)
        self.starts = torch.tensor([[prompt.start] for prompt in prompts], device=forward.device)
        self.lengths = [len(prompt.source) for prompt in prompts]
        self.encoder = forward.encode(self.tokens, self.lengths)
        self.parts = forward.parts
        self.done = 0.0  # parts of the encoder
        self.cache = forward.cache()
        self.cache.extent.rows = len(prompts)
        self.sources: Sources

    @property
    def remaining(self) -> int:
        """What is not computed yet, as a number of columns."""
        columns = self.tokens.shape[1]
        return columns - int(columns * self.done / self.parts)


class EncoderDecoder:
    """The TokenSteps of a family's own pass: all rows are one batch, of any lengths."""

    extends = True

    def __init__(self, forward: EncoderDecoderPass) -> None:
        self._forward = forward
        self.lengths: list[int] = []  # the number of the decoder's tokens in each row
        self._cache = forward.cache()
        self._sources: Sources | None = None  # None if there are no rows

    def begin(self, prompts: Sequence[EncoderDecoderPrompt]) -> Prefill:
        return Prefill(prompts, self._forward)

    def advance(self, prefill: Prefill, most: int) -> Tensor | None:
        """Compute a part of the encoder that costs about as much as `most` columns of a whole pass.

        Returns the logits [rows, vocabulary] after the first tokens if the prefill is complete, else None.
        """
        columns = prefill.tokens.shape[1]
        until = prefill.done + most * prefill.parts / columns
        try:
            while prefill.done < until:
                prefill.done = next(prefill.encoder)
            return None
        except StopIteration as end:
            prefill.sources = Sources(end.value, prefill.lengths)
            prefill.done = prefill.parts
        prefill.cache.write_at(0, 1)
        column = torch.zeros(1, 1, dtype=torch.long, device=self._forward.device)
        return self._forward(prefill.starts, column, prefill.cache, prefill.sources)

    def join(self, prefill: Prefill) -> None:
        """Append the prompts of a complete prefill to the batch, as its last rows."""
        if self._sources is None:  # nothing is copied
            self._cache, self._sources = prefill.cache, prefill.sources
        else:
            self._cache.adopt(prefill.cache, [1] * len(prefill.lengths))
            self._sources.join(prefill.sources)
        self.lengths += [1] * len(prefill.lengths)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """The logits [rows, vocabulary] after one more token in each row."""
        assert self._sources is not None
        device, widest = self._forward.device, max(self.lengths)
        if min(self.lengths) == widest:
            columns = torch.full((1, 1), widest, device=device)
            self._cache.write_at(widest, 1)
        else:
            columns = torch.tensor(self.lengths, device=device)[:, None]
            self._cache.write_at_each(columns, widest)
        logits = self._forward(torch.tensor(tokens, device=device)[:, None], columns, self._cache, self._sources)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def extend(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """The logits [rows, most, vocabulary] after each further token of each row; at least one for each row."""
        assert self._sources is not None
        padded, columns = (each.to(self._forward.device) for each in extension(tokens, self.lengths))
        self._cache.write_at_each(columns, int(columns.max()))
        logits = self._forward(padded, columns, self._cache, self._sources)
        self.lengths = [length + len(each) for length, each in zip(self.lengths, tokens, strict=True)]
        return logits.view(*padded.shape, -1)

    def cut(self, row: int, length: int) -> None:
        """Forget the tokens of a row from this length on."""
        self.lengths[row] = length

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        if len(self.lengths) == 1:
            self.reset()
            return
        assert self._sources is not None
        self._cache.drop(row, self.lengths[-1])
        self._sources.leave(row)
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()

    def fork(self, row: int, copies: int) -> None:
        """Append copies of a row as the last rows. They read the same source."""
        assert self._sources is not None
        self._cache.fork(row, copies, self.lengths[row])
        self._sources.fork(row, copies)
        self.lengths += [self.lengths[row]] * copies

    def rearrange(self, moves: Sequence[Move]) -> None:
        """Give rows the content of other rows of equal length that read the same source, all at once."""
        self._cache.rearrange(moves, self.lengths)

    def forget(self) -> None:
        """Nothing: proven models keep nothing."""

    def reset(self) -> None:
        """Remove all rows and free their memory."""
        self._cache, self._sources, self.lengths = self._forward.cache(), None, []


class Cohort:
    """Prompts that were begun together and have equally many tokens since: transformers' modules need no mask then."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[EncoderDecoderPrompt]) -> None:
        self._model = model
        self._tokens, self._mask = padded([prompt.source for prompt in prompts], model.device)
        self._starts = torch.tensor([prompt.start for prompt in prompts], device=model.device)
        self._sources = list(range(len(prompts)))  # of each row
        self.encoded = False
        self._output: type[Any]  # of the encoder: some models read fields of their own
        self._hidden: Tensor
        self._cross: list[tuple[Tensor, Tensor]]  # keys and values of each layer: [sources, heads, columns, size]
        self._cache: Any = None  # the model's own, an EncoderDecoderCache
        self.length = 0

    @property
    def rows(self) -> int:
        return len(self._sources)

    @property
    def remaining(self) -> int:
        """The columns of the sources that are not computed yet."""
        return 0 if self.encoded else self._tokens.shape[1]

    def encode(self) -> None:
        output = self._model.get_encoder()(input_ids=self._tokens, attention_mask=self._mask, return_dict=True)
        self._output, self._hidden = type(output), output.last_hidden_state
        self.encoded = True

    def begin(self) -> Tensor:
        """The logits [rows, vocabulary] after the first tokens."""
        logits = self.step(self._starts)
        self._cross = [(layer.keys, layer.values) for layer in self._cache.cross_attention_cache.layers]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """The logits [rows, vocabulary] after one more token in each row."""
        self.length += 1
        return self._forward(tokens[:, None])

    def select(self, rows: Sequence[int]) -> None:
        """Replace the rows by these of them, which may repeat."""
        self._cache.self_attention_cache.batch_select_indices(torch.tensor(rows, device=self._model.device))
        sources = [self._sources[row] for row in rows]
        if sources == self._sources:
            return
        used = sorted(set(sources))
        if len(used) < len(self._mask):  # a source without rows
            kept = torch.tensor(used, device=self._model.device)
            self._mask, self._hidden = self._mask[kept], self._hidden[kept]
            self._cross = [(keys[kept], values[kept]) for keys, values in self._cross]
        self._sources = [used.index(source) for source in sources]
        for layer, (keys, values) in zip(self._cache.cross_attention_cache.layers, self._cross, strict=True):
            layer.keys, layer.values = self._of_rows(keys), self._of_rows(values)

    def _forward(self, tokens: Tensor) -> Tensor:
        output = self._model(
            encoder_outputs=self._output(last_hidden_state=self._of_rows(self._hidden)),
            attention_mask=self._of_rows(self._mask),
            decoder_input_ids=tokens,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits

    def _of_rows(self, values: Tensor) -> Tensor:
        """What belongs to each row's source. It is a view, except where several sources have several rows each."""
        if self._sources == list(range(len(values))):
            return values
        if len(values) == 1:
            return values.expand(len(self._sources), *values.shape[1:])
        return values[torch.tensor(self._sources, device=values.device)]


class Cohorts:
    """The TokenSteps of any proven encoder-decoder model, by transformers' own modules: one pass for each cohort."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._rows: list[tuple[Cohort, int]] = []  # the cohort of each row, and its row there

    @property
    def lengths(self) -> list[int]:
        """The number of the decoder's tokens in each row."""
        return [cohort.length for cohort, _ in self._rows]

    def begin(self, prompts: Sequence[EncoderDecoderPrompt]) -> Cohort:
        return Cohort(self._model, prompts)

    def advance(self, prefill: Cohort, _most: int) -> Tensor | None:
        """Encode the sources, then compute the first tokens, which completes the prefill: logits [rows, vocabulary]."""
        if not prefill.encoded:
            prefill.encode()
            return None
        return prefill.begin()

    def join(self, prefill: Cohort) -> None:
        """Append the prompts of a complete prefill to the batch, as its last rows."""
        self._rows += [(prefill, row) for row in range(prefill.rows)]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """The logits [rows, vocabulary] after one more token in each row."""
        given = torch.tensor(tokens, device=self._model.device)
        logits, order = [], []
        for cohort, members in self._cohorts().items():
            numbers = torch.tensor([members[row] for row in range(len(members))], device=given.device)
            logits.append(cohort.step(given[numbers]))
            order.append(numbers)
        return torch.cat(logits)[torch.cat(order).argsort()]

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        cohort, gone = self._rows[row]
        self._rows[row] = self._rows[-1]
        self._rows.pop()
        remaining = [at for each, at in self._rows if each is cohort]
        if remaining:
            cohort.select(sorted(remaining))
        self._rows = [(each, at - (each is cohort and at > gone)) for each, at in self._rows]

    def fork(self, row: int, copies: int) -> None:
        """Append copies of a row as the last rows."""
        cohort, at = self._rows[row]
        count = cohort.rows
        cohort.select([*range(count), *[at] * copies])
        self._rows += [(cohort, count + copy) for copy in range(copies)]

    def rearrange(self, moves: Sequence[Move]) -> None:
        """Give rows the content of other rows of their cohort, all at once."""
        orders: dict[Cohort, list[int]] = {}
        for target, source, _ in moves:
            cohort, at = self._rows[target]
            other, origin = self._rows[source]
            assert cohort is other, "rows of one prompt are in one cohort"
            order = orders.setdefault(cohort, list(range(cohort.rows)))
            order[at] = origin
        for cohort, order in orders.items():
            cohort.select(order)

    def forget(self) -> None:
        """Nothing: proven models keep nothing."""

    def reset(self) -> None:
        """Remove all rows and free their memory."""
        self._rows = []

    def _cohorts(self) -> dict[Cohort, dict[int, int]]:
        """The rows of each cohort: the number in the batch, by the number in the cohort."""
        members: dict[Cohort, dict[int, int]] = {}
        for number, (cohort, at) in enumerate(self._rows):
            members.setdefault(cohort, {})[at] = number
        return members

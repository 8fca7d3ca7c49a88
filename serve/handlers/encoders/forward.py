"""One pass of the model over rows of tokens, whoever they belong to: padded, masked, and cut apart again.

A row's result does not depend on its neighbours, but for the last bits of a float.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serve.catalog.model_config import ModelConfig
from serve.errors import DoesNotFit
from serve.handlers.huggingface import pretrained
from serve.handlers.huggingface.options import HuggingFaceOptions

MOST_TOKENS = 16_384  # in one pass, padding with them: 32 rows of 512; activations grow with it
SLACK = 64  # tokens of padding that cost less than a pass of their own
CHARACTERS = 64  # no token is longer; what is past so many for each token we may read is not worth tokenizing


class Row:
    """Tokens of one pass through the model, and what came of it: nothing when it was too late.

    `wanted`: what its task must know to take that from the model's output.
    """

    __slots__ = ("deadline", "ids", "outputs", "types", "wanted")

    def __init__(self, encoding: Mapping[str, Any], deadline: float, wanted: Any = None) -> None:
        self.ids: list[int] = list(encoding["input_ids"])
        self.types: list[int] | None = encoding.get("token_type_ids")
        self.deadline = deadline
        self.wanted = wanted
        self.outputs: list[npt.NDArray[Any]] = []


# From the model's output, what is wanted of one row: its number, and where its tokens are among the padding.
Take = Callable[[Any, int, slice, Row], Sequence[Tensor]]


class Encoder:
    """`limit`: the most tokens the model reads, also what its tokenizer truncates to."""

    def __init__(self, model: ModelConfig[HuggingFaceOptions], auto_class: Any, unused: tuple[str, ...] = ()) -> None:
        self.network, self.tokenizer = pretrained.load(model, auto_class, unused)
        self.config = self.network.config
        self.limit = min(self._positions(), self.tokenizer.model_max_length)
        self.tokenizer.model_max_length = self.limit
        names = inspect.signature(self.network.forward).parameters
        self._takes = {name for name in self.tokenizer.model_input_names if name in names} | {"input_ids"}
        self._also = {"use_cache": False} if "use_cache" in names and not self.config.is_encoder_decoder else {}
        self._pad = self.tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self.config.pad_token_id
        self._left = self.tokenizer.padding_side == "left"
        # Decoders used as classifiers look for the last token that is no padding, and must be told what padding is.
        if getattr(self.config, "pad_token_id", None) is None and self._pad is not None:
            self.config.pad_token_id = self._pad
        self._most_rows = max(1, model.max_batch) if self._pad is not None else 1

    @property
    def longest(self) -> int:
        """Characters of the longest text the model could read."""
        return CHARACTERS * self.limit

    def shortened(self, text: str) -> str:
        """Not more of a text than the model could read: tokenizing 6 MB takes seconds, while everybody waits."""
        return text[: self.longest]

    def run(self, rows: Sequence[Row], take: Take) -> None:
        """Fill in the outputs of `rows` with what `take` takes of each; numbers with a point as float32."""
        waiting = self.by_length(rows)
        while waiting:
            batch = self._next(waiting)
            del waiting[: len(batch)]
            now = time.monotonic()
            if batch := [row for row in batch if row.deadline > now]:
                self._pass(batch, take)

    def by_length(self, rows: Sequence[Row]) -> list[Row]:
        """In an order in which neighbours go well together."""
        return sorted(rows, key=lambda row: (self._ends(row), len(row.ids)))

    def _next(self, rows: Sequence[Row]) -> list[Row]:
        """The first of `rows` that go well together; they come sorted by length."""
        batch: list[Row] = []
        tokens = 0
        for row in rows[: self._most_rows]:
            tokens += len(row.ids)
            padded = len(row.ids) * (len(batch) + 1)
            if batch and (
                padded > MOST_TOKENS or padded > 1.5 * tokens + SLACK or self._ends(row) != self._ends(batch[0])
            ):
                break
            batch.append(row)
        return batch

    def _ends(self, row: Row) -> int:
        """BART's classifiers want as many end tokens in each row of a pass."""
        return row.ids.count(self.config.eos_token_id) if self.config.is_encoder_decoder else 0

    def _pass(self, batch: Sequence[Row], take: Take) -> None:
        width = max(len(row.ids) for row in batch)
        inputs = {
            "input_ids": self._padded([row.ids for row in batch], width, self._pad or 0),
            "attention_mask": self._padded([[1] * len(row.ids) for row in batch], width, 0),
        }
        if batch[0].types is not None:
            kinds = [row.types or [0] * len(row.ids) for row in batch]
            inputs["token_type_ids"] = self._padded(kinds, width, self.tokenizer.pad_token_type_id)
        try:
            with torch.inference_mode():
                output = self.network(**{name: inputs[name] for name in inputs if name in self._takes}, **self._also)
                for number, row in enumerate(batch):
                    kept = slice(width - len(row.ids), width) if self._left else slice(0, len(row.ids))
                    taken = take(output, number, kept, row)
                    row.outputs = [(each.float() if each.is_floating_point() else each).cpu().numpy() for each in taken]
        except Exception as error:
            if not pretrained.out_of_memory(error):
                raise
            raise DoesNotFit("no memory for these texts", hint="send fewer or shorter ones") from error

    def _padded(self, lists: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
        if self._left:
            made = [[*[filler] * (width - len(each)), *each] for each in lists]
        else:
            made = [[*each, *[filler] * (width - len(each))] for each in lists]
        return torch.tensor(made, device=self.network.device)

    def _positions(self) -> int:
        """Tokens there are positions for. RoBERTa counts from its padding's number on."""
        most = getattr(self.config.get_text_config(), "max_position_embeddings", None) or 1 << 20
        for name, part in self.network.named_modules():
            if name.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
                taken = 0 if part.padding_idx is None else part.padding_idx + 1
                most = min(most, part.num_embeddings - taken)
        return int(most)


Floats = npt.NDArray[np.floating[Any]]


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp of a large number is infinity, and 1 / infinity is what is wanted
        return 1 / (1 + np.exp(-logits))

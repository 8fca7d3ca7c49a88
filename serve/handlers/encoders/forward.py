"""One pass of an encoder over rows of tokens from any number of requests: padding, masks, and one output per row.

The output of a row does not depend on the other rows of its pass, except for the last bits of a float.
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
from serve.failures import exhausted
from serve.handlers.huggingface import bodies, pretrained
from serve.handlers.huggingface.options import HuggingFaceOptions

MAX_TOKENS = 16_384  # in one pass, padding included: 32 rows of 512; the memory of activations grows with it
FREE_PADDING = 64  # tokens of padding that cost less than a pass of their own


class EncoderRow:
    """The tokens of one row of a pass. `outputs` is empty until the pass, and stays so if the deadline passes first.

    `wanted`: what the task's `extract` must know about the row.
    """

    __slots__ = ("deadline", "ids", "outputs", "types", "wanted")

    def __init__(self, encoding: Mapping[str, Any], deadline: float, wanted: Any = None) -> None:
        self.ids: list[int] = list(encoding["input_ids"])
        self.types: list[int] | None = encoding.get("token_type_ids")
        self.deadline = deadline
        self.wanted = wanted
        self.outputs: list[npt.NDArray[Any]] = []


# (output of the model, number of the row, its columns without padding, the row) -> the tensors to keep for the row.
Extract = Callable[[Any, int, slice, EncoderRow], Sequence[Tensor]]


class Encoder:
    """A model, its tokenizer, and `limit`: the most tokens that the model reads; the tokenizer truncates to it."""

    def __init__(
        self, model: ModelConfig[HuggingFaceOptions], auto_class: Any, optional_weights: tuple[str, ...] = ()
    ) -> None:
        self.network, self.tokenizer = pretrained.load(model, auto_class, optional_weights)
        self.config = self.network.config
        self.limit = min(self._positions(), self.tokenizer.model_max_length)
        self.tokenizer.model_max_length = self.limit
        names = inspect.signature(self.network.forward).parameters
        self._inputs = {name for name in self.tokenizer.model_input_names if name in names} | {"input_ids"}
        self._arguments = {"use_cache": False} if "use_cache" in names and not self.config.is_encoder_decoder else {}
        self._pad = self.tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self.config.pad_token_id
        self._left = self.tokenizer.padding_side == "left"
        # A decoder used as a classifier reads the last token that is not padding, so its config must name the padding.
        if getattr(self.config, "pad_token_id", None) is None and self._pad is not None:
            self.config.pad_token_id = self._pad
        self._max_rows = max(1, model.max_batch) if self._pad is not None else 1

    @property
    def longest(self) -> int:
        """Characters of the longest text that the model could read."""
        return bodies.TOKEN_CHARACTERS * self.limit

    def shortened(self, text: str) -> str:
        """The part of a text that the model could read at most."""
        return text[: self.longest]

    def run(self, rows: Sequence[EncoderRow], extract: Extract) -> None:
        """Set the outputs of each row, floats as float32; rows whose deadline has passed are skipped."""
        pending = self.by_length(rows)
        while pending:
            batch = self._next(pending)
            del pending[: len(batch)]
            now = time.monotonic()
            if batch := [row for row in batch if row.deadline > now]:
                self._pass(batch, extract)

    def by_length(self, rows: Sequence[EncoderRow]) -> list[EncoderRow]:
        """The rows in an order in which neighbours need little padding."""
        return sorted(rows, key=lambda row: (self._end_tokens(row), len(row.ids)))

    def _next(self, rows: Sequence[EncoderRow]) -> list[EncoderRow]:
        """The first of `rows`, sorted by length, that fill one pass."""
        batch: list[EncoderRow] = []
        tokens = 0
        for row in rows[: self._max_rows]:
            tokens += len(row.ids)
            padded = len(row.ids) * (len(batch) + 1)
            if batch and (
                padded > MAX_TOKENS
                or padded > 1.5 * tokens + FREE_PADDING
                or self._end_tokens(row) != self._end_tokens(batch[0])
            ):
                break
            batch.append(row)
        return batch

    def _end_tokens(self, row: EncoderRow) -> int:
        """BART's classifiers need the same number of end tokens in each row of a pass."""
        return row.ids.count(self.config.eos_token_id) if self.config.is_encoder_decoder else 0

    def _pass(self, batch: Sequence[EncoderRow], extract: Extract) -> None:
        width = max(len(row.ids) for row in batch)
        inputs = {
            "input_ids": self._padded([row.ids for row in batch], width, self._pad or 0),
            "attention_mask": self._padded([[1] * len(row.ids) for row in batch], width, 0),
        }
        if batch[0].types is not None:
            types = [row.types or [0] * len(row.ids) for row in batch]
            inputs["token_type_ids"] = self._padded(types, width, self.tokenizer.pad_token_type_id)
        inputs = {name: value for name, value in inputs.items() if name in self._inputs}
        try:
            with torch.inference_mode():
                output = self.network(**inputs, **self._arguments)
                for number, row in enumerate(batch):
                    columns = slice(width - len(row.ids), width) if self._left else slice(0, len(row.ids))
                    kept = extract(output, number, columns, row)
                    row.outputs = [(each.float() if each.is_floating_point() else each).cpu().numpy() for each in kept]
        except Exception as error:
            if resource := exhausted(error):
                raise DoesNotFit(
                    f"a pass over {len(batch)} texts of up to {width} tokens failed: {resource.message}",
                    hint="send fewer or shorter texts",
                ) from error
            raise

    def _padded(self, lists: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
        if self._left:
            padded = [[*[filler] * (width - len(each)), *each] for each in lists]
        else:
            padded = [[*each, *[filler] * (width - len(each))] for each in lists]
        return torch.tensor(padded, device=self.network.device)

    def _positions(self) -> int:
        """The number of token positions. RoBERTa's positions begin after the number of its padding token."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None) or 1 << 20
        for name, part in self.network.named_modules():
            if name.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
                unused = 0 if part.padding_idx is None else part.padding_idx + 1
                limit = min(limit, part.num_embeddings - unused)
        return int(limit)


Floats = npt.NDArray[np.floating[Any]]


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp of a large number is infinity, and 1 / infinity is the right result, 0
        return 1 / (1 + np.exp(-logits))

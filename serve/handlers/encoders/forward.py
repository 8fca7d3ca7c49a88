"""One pass of an encoder over rows of tokens from any number of requests: padding, masks, and one output per row.

The output of a row does not depend on the other rows of its pass, nor on earlier passes, except for the last bits of a
float. Rows share a pass only if the model's class is proven to keep this promise (huggingface/independence.py). Every
other model gets one row in each pass, with the inputs that transformers' pipelines give it.
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
from serve.errors import DoesNotFit, ModelUnusable
from serve.failures import exhausted
from serve.handlers.huggingface import bodies, independence, pretrained
from serve.handlers.huggingface.options import HuggingFaceOptions
from serve.handlers.huggingface.pass_state import PassState

MAX_TOKENS = 16_384  # in one pass, padding included: 32 rows of 512; the memory of activations grows with it
FREE_PADDING = 64  # tokens of padding that cost less than a pass of their own
GAIN = 0.08  # of the time of products: less is no reason to copy mapped weights to private memory
UNLIMITED = 1 << 20  # tokens of a text for models without a limit


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
        self.network, self.tokenizer, self.packing = pretrained.load(
            model, auto_class, optional_weights, obstacle=_obstacle, gain=GAIN
        )
        self.config = self.network.config
        self.limit = min(self._positions(), self.tokenizer.model_max_length)
        self.tokenizer.model_max_length = self.limit
        names = inspect.signature(self.network.forward).parameters
        self._inputs = {name for name in self.tokenizer.model_input_names if name in names} | {"input_ids"}
        self._arguments = {"use_cache": False} if "use_cache" in names and not self.config.is_encoder_decoder else {}
        self._pad = self._padding()
        obstacle = _obstacle(self.network) or self._no_padding()
        self.max_rows = 1 if obstacle else max(1, model.max_batch)
        self._state: PassState | None = None
        if obstacle:
            independence.report(model.name, self.network, obstacle)
            self._state = PassState(self.network)
            self._try()

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
        for row in rows[: self.max_rows]:
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
                if self._state is not None:
                    self._state.restore()
                output = self.network(**inputs, **self._arguments)
                for number, row in enumerate(batch):
                    kept = extract(output, number, slice(0, len(row.ids)), row)
                    row.outputs = [(each.float() if each.is_floating_point() else each).cpu().numpy() for each in kept]
        except Exception as error:
            if resource := exhausted(error):
                raise DoesNotFit(
                    f"a pass over {len(batch)} texts of up to {width} tokens failed: {resource.message}",
                    hint="send fewer or shorter texts",
                ) from error
            raise

    def _padded(self, lists: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
        """On the right, whatever the tokenizer says: on the left the padding would move the positions of the text."""
        padded = [[*each, *[filler] * (width - len(each))] for each in lists]
        return torch.tensor(padded, device=self.network.device)

    def _positions(self) -> int:
        """The number of token positions. RoBERTa's positions begin after the number of its padding token."""
        said = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        limit = said if isinstance(said, int) and said > 0 else UNLIMITED  # XLNet says -1
        for name, part in self.network.named_modules():
            table = getattr(part, "weight", None)  # not isinstance(Embedding): I-BERT has a class of its own
            if table is None or table.ndim != 2:
                continue
            if name.endswith("position_embeddings"):
                unused = 0 if getattr(part, "padding_idx", None) is None else part.padding_idx + 1
                limit = min(limit, len(table) - unused)
            elif name.endswith("embed_positions"):  # BART's family
                limit = min(limit, len(table) - getattr(part, "offset", 0))
        return int(limit)

    def _padding(self) -> int | None:
        """The token that fills rows up, None if there is none.

        The config's comes first: a classifier made of a decoder reads the last token that differs from it, and RoBERTa
        counts positions by it.
        """
        config = self.config.get_text_config()
        for token in (config.pad_token_id, self.tokenizer.pad_token_id):
            if token is not None:
                return token if 0 <= token < getattr(config, "vocab_size", UNLIMITED) else None  # Llama says -1
        return None

    def _no_padding(self) -> str | None:
        """Why rows of this model cannot be padded, None if they can."""
        if "attention_mask" not in self._inputs:
            return "the tokenizer's model_input_names do not contain attention_mask"
        if self._pad is None:
            return "neither config.json nor the tokenizer has a valid pad_token_id"
        # Setting one here would make the classifier skip such tokens at the end of a text, which it does not do alone.
        classifier = type(self.network).__name__.endswith("ForSequenceClassification")
        if classifier and self.config.get_text_config().pad_token_id is None:
            return "config.json has no pad_token_id"
        return None

    def _try(self) -> None:
        """Raise ModelUnusable for an architecture that cannot answer a text: it needs images or boxes, for example."""
        for texts in (["a", "a"], ["a"]):  # question answering by Longformer needs the separators of a pair
            row = EncoderRow(self.tokenizer(*texts, verbose=False), float("inf"))
            try:
                self._pass([row], lambda *_: [])
                return
            except DoesNotFit:
                raise
            except BaseException as error:
                failure = error
        raise ModelUnusable(
            f"{type(self.network).__name__} cannot answer a text alone: {pretrained.first_line(failure)}",
            hint="serve it by a code/inference.py",
        ) from failure


def _obstacle(network: Any) -> str | None:
    return independence.obstacle(network, independence.PADDED_PASS)


Floats = npt.NDArray[np.floating[Any]]


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp of a large number is infinity, and 1 / infinity is the right result, 0
        return 1 / (1 + np.exp(-logits))

"""The common part of all encoder tasks: a request becomes rows of tokens, one pass runs the rows of all requests.

A request with more rows than one batch holds runs in several turns; other requests run in the same turns.
"""

import abc
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, InternalError, ServeError, TooLate
from serve.handlers.base import Reply, Request
from serve.handlers.encoders.forward import Encoder, EncoderRow
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions
from serve.http import media

# Tokens of a long request that one turn runs, for which other requests wait; fewer while there have been others of
# late. More in one pass gain nothing on a processor, but on a GPU they do.
SLICE, SLICE_ON_DEVICE = 512, 16_384
BESIDE_OTHERS = 256
RECENT = 2.0  # seconds
# Of one request. A text of a megabyte has 1,000 windows of 384 tokens; the results of 4,096 windows take 200 MB.
MAX_WINDOWS = 4096

Length = Annotated[int, Meta(ge=1)]
Truncation = bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"]


class TaskParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The parameters of every pipeline. Both are ignored: the server batches by itself."""

    batch_size: int | None = None
    num_workers: int | None = None


class TokenizerArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a tokenizer that a request may set."""

    truncation: Truncation | None = None
    padding: bool | str | None = None  # ignored: each pass pads its rows
    max_length: Length | None = None


@dataclass(slots=True, eq=False)
class EncoderItem:
    """A decoded request. `context`: what `answer` needs. `pending`: rows without outputs, by length."""

    rows: list[EncoderRow]
    context: Any
    parameters: Any
    content_type: str
    pending: list[EncoderRow]
    long: bool  # whether it takes turns with other requests, in place of sharing their passes
    answer: Callable[["EncoderItem"], Any]  # the answer, once all rows have outputs; as JSON, or an array


class Task(abc.ABC):
    """The Predictor of one task."""

    auto_class: ClassVar[Any]
    parameters: ClassVar[type[TaskParameters]]
    bare: ClassVar[tuple[str, ...]] = ()  # see bodies.parse, as for `table`
    table: ClassVar[bool] = True
    offers: ClassVar[tuple[str, ...]] = (media.JSON, media.CSV)  # media types of the reply
    optional_weights: ClassVar[tuple[str, ...]] = ()  # see pretrained.load

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        self._model = model
        self.encoder = Encoder(model, self.auto_class, self.optional_weights)
        self.tokenizer, self.config = self.encoder.tokenizer, self.encoder.config
        self.upkeep = self.encoder.packing
        self._slice = SLICE if self.encoder.network.device.type == "cpu" else SLICE_ON_DEVICE
        self._others_at = float("-inf")  # time.monotonic() of the last pass for requests that are not long

    def decode(self, request: Request) -> EncoderItem:
        content_type = bodies.accepted(request, self._model, self.offers)
        inputs, parameters, _ = bodies.parse(
            request, self._model.model_field, self.parameters, bare=self.bare, table=self.table
        )
        rows, context = self.read(inputs, parameters, request.deadline)
        return self.item(rows, context, parameters, content_type, self.answer)

    def item(
        self,
        rows: list[EncoderRow],
        context: Any,
        parameters: Any,
        content_type: str,
        answer: Callable[[EncoderItem], Any],
    ) -> EncoderItem:
        """A request that is ready for its passes. Raises BadRequest for a text without tokens."""
        if not all(row.ids for row in rows):
            raise bodies.no_tokens()
        long = len(rows) > 1 and sum(len(row.ids) for row in rows) > 2 * self._slice
        return EncoderItem(rows, context, parameters, content_type, self.encoder.by_length(rows), long, answer)

    @abc.abstractmethod
    def read(self, inputs: Any, parameters: Any, deadline: float) -> tuple[list[EncoderRow], Any]:
        """The rows of the inputs, and the context that `answer` needs. Raises BadRequest."""

    @abc.abstractmethod
    def extract(self, output: Any, number: int, columns: slice, row: EncoderRow) -> Sequence[Any]:
        """The part of the model's output that `answer` needs of one row; see `forward.Extract`."""

    @abc.abstractmethod
    def answer(self, item: EncoderItem) -> Any:
        """The return value of the pipeline."""

    def compatible(self, item: EncoderItem) -> Hashable:
        return item if item.long else None  # parameters are used before and after the pass, never in it

    def predict(self, items: Sequence[EncoderItem]) -> Sequence[Reply | ServeError | None]:
        if len(items) == 1 and items[0].long:
            return [self._slice_of(items[0])]
        self._others_at = time.monotonic()
        most = max(1, self._model.max_batch)
        turn = [
            row for each in zip_longest(*(item.pending[:most] for item in items)) for row in each if row is not None
        ]
        self.encoder.run(turn[:most], self.extract)
        done = set(map(id, turn[:most]))
        for item in items:
            item.pending = [row for row in item.pending[:most] if id(row) not in done] + item.pending[most:]
        return [self._outcome(item) for item in items]

    def _slice_of(self, item: EncoderItem) -> Reply | ServeError | None:
        """Run the next rows of a long request, as many as other requests may wait for; one in any case."""
        busy = time.monotonic() - self._others_at < RECENT
        left = BESIDE_OTHERS if busy and self._slice == SLICE else self._slice
        count = 0
        for row in item.pending[: max(1, self._model.max_batch)]:
            left -= len(row.ids)
            if count and left < 0:
                break
            count += 1
        self.encoder.run(item.pending[:count], self.extract)
        del item.pending[:count]
        return self._outcome(item)

    def _outcome(self, item: EncoderItem) -> Reply | ServeError | None:
        if item.pending and item.pending[0].deadline > time.monotonic():
            return None
        if not all(row.outputs for row in item.rows):
            return TooLate("the deadline passed before all texts were processed", hint="send fewer texts")
        if not all(np.isfinite(each).all() for row in item.rows for each in row.outputs):
            # JSON cannot represent either.
            return InternalError(
                "the model returned NaN or infinity", hint='set dtype = "float32" under [options] of model.toml'
            )
        try:
            return bodies.reply(item.answer(item), item.content_type)
        except ServeError as error:
            return error

    def tokens(self, deadline: float, *texts: str, truncation: Truncation | None = None, **arguments: Any) -> Any:
        """The encoding of a text or a pair of texts. Raises BadRequest if it is too long, TooLate after `deadline`."""
        bodies.check_deadline(deadline)
        truncates = truncation not in (None, False, "do_not_truncate")
        if not truncates and sum(map(len, texts)) > self.encoder.longest:
            raise self.too_long(f"{sum(map(len, texts))} characters")
        try:
            encoding = self.tokenizer(
                *map(self.encoder.shortened, texts),
                truncation=truncation if truncates else False,
                verbose=False,
                **arguments,
            )
        except Exception as error:  # tokenizers raises a bare Exception for a text that it cannot truncate as asked
            raise BadRequest(f"the text cannot be truncated to {self.encoder.limit} tokens: {error}") from error
        if not truncates and len(encoding["input_ids"]) > self.encoder.limit:
            raise self.too_long(f"{len(encoding['input_ids'])} tokens")
        return encoding

    def too_long(self, length: str) -> BadRequest:
        return bodies.too_long(length, self.encoder.limit)

    def check_windows(self, text: str, step: int) -> None:
        """Raise BadRequest, before tokenizing, for a text of too many windows; `step` tokens from one to the next."""
        if len(text.encode()) > MAX_WINDOWS * step:  # a token has one byte or more
            windows = len(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids) // step
            if windows > MAX_WINDOWS:
                raise too_many_windows(windows)

    def tokenizer_arguments(self, asked: TokenizerArguments) -> dict[str, Any]:
        """Arguments of `tokens`; no length is over the model's limit."""
        arguments: dict[str, Any] = {"truncation": asked.truncation}
        if asked.max_length is not None:
            arguments["max_length"] = min(asked.max_length, self.encoder.limit)
        return arguments


def too_many_windows(windows: int) -> BadRequest:
    return BadRequest(
        f"the texts need {windows} windows or more; the limit of a request is {MAX_WINDOWS}",
        hint="send less text at once, or let the windows overlap less",
    )

"""What all tasks of encoders share: decode into rows of tokens, one pass for all, an answer from each item's rows.

A request of more rows than a batch has takes turns with those who have come meanwhile.
"""

import abc
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

import msgspec
import numpy as np

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, InternalError, ServeError, TooLate
from serve.handlers.base import Reply, Request
from serve.handlers.encoders.forward import Encoder, Row
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions

Truncation = bool | str
MOST_WINDOWS = 4096  # of one request: a text of a megabyte has 1,000, of 384 tokens each; what they hold is 200 MB


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every pipeline takes; both say how it batches, which is our business."""

    batch_size: int | None = None
    num_workers: int | None = None


@dataclass(slots=True, eq=False)
class Item:
    """`what`: whatever the task needs to make the answer. `waiting`: the rows without an output, by length."""

    rows: list[Row]
    what: Any
    parameters: Any
    content_type: str
    waiting: list[Row]


class Task(abc.ABC):
    """A Predictor of one task."""

    auto_class: ClassVar[Any]
    kind: ClassVar[type[msgspec.Struct]]
    bare: ClassVar[tuple[str, ...]] = ()
    table: ClassVar[bool] = True
    offers: ClassVar[tuple[str, ...]] = (bodies.JSON, bodies.CSV)
    unused: ClassVar[tuple[str, ...]] = ()  # beginnings of names of weights that may be missing

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        self._model = model
        self.encoder = Encoder(model, self.auto_class, self.unused)
        self.tokenizer, self.config = self.encoder.tokenizer, self.encoder.config

    def decode(self, request: Request) -> Item:
        content_type = bodies.accepted(request, self._model, self.offers)
        inputs, parameters = bodies.parse(request, self._model.model_field, self.kind, bare=self.bare, table=self.table)
        rows, what = self.read(inputs, parameters, request.deadline)
        for row in rows:
            if not row.ids:
                raise BadRequest("a text is empty, and this model has no token for an empty one", hint="send a text")
        return Item(rows, what, parameters, content_type, self.encoder.by_length(rows))

    @abc.abstractmethod
    def read(self, inputs: Any, parameters: Any, deadline: float) -> tuple[list[Row], Any]:
        """The rows the inputs need, and what `answer` needs to know. Raises BadRequest."""

    @abc.abstractmethod
    def take(self, output: Any, number: int, kept: slice, row: Row) -> Sequence[Any]:
        """What is wanted of one row of the model's output; see `forward.Take`."""

    @abc.abstractmethod
    def answer(self, item: Item) -> Any:
        """What the pipeline would return."""

    def compatible(self, item: Item) -> Hashable:
        return None  # parameters matter before and after the pass, never in it

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError | None]:
        most = max(1, self._model.max_batch)
        turn = [
            row for each in zip_longest(*(item.waiting[:most] for item in items)) for row in each if row is not None
        ]
        self.encoder.run(turn[:most], self.take)
        done = set(map(id, turn[:most]))
        for item in items:
            item.waiting = [row for row in item.waiting[:most] if id(row) not in done] + item.waiting[most:]
        return [self._outcome(item) for item in items]

    def _outcome(self, item: Item) -> Reply | ServeError | None:
        if item.waiting and item.waiting[0].deadline > time.monotonic():
            return None
        if not all(row.outputs for row in item.rows):
            return TooLate("not all texts were done before the deadline", hint="send fewer of them")
        if not all(np.isfinite(each).all() for row in item.rows for each in row.outputs):
            # JSON has no word for them.
            return InternalError("the model gave NaN or infinity", hint='dtype = "float32" in model.toml may help')
        try:
            return bodies.reply(self.answer(item), item.content_type)
        except ServeError as error:
            return error

    def tokens(self, deadline: float, *texts: str, cut: Truncation = False, **settings: Any) -> Any:
        """The tokenizer's encoding of a text or a pair; 400 when it is longer than the model reads."""
        self.check(deadline)
        cuts = cut not in (False, "do_not_truncate")
        if not cuts and sum(map(len, texts)) > len(self.encoder.shortened("".join(texts))):
            raise self.too_long(f"{sum(map(len, texts))} characters")
        try:
            encoding = self.tokenizer(
                *map(self.encoder.shortened, texts), truncation=cut if cuts else False, verbose=False, **settings
            )
        except Exception as error:  # tokenizers raises no other for a text that cannot be cut as asked
            raise BadRequest(f"the text cannot be cut to {self.encoder.limit} tokens: {error}") from error
        if not cuts and len(encoding["input_ids"]) > self.encoder.limit:
            raise self.too_long(f"{len(encoding['input_ids'])} tokens")
        return encoding

    def check(self, deadline: float) -> None:
        """Raise TooLate when nobody waits for the rest of the texts any more."""
        if time.monotonic() >= deadline:
            raise TooLate("the deadline passed while the texts were read", hint="send fewer of them")

    def check_windows(self, text: str, step: int) -> None:
        """Raise BadRequest for a text of too many windows, each so many tokens after the last; before they are made."""
        if len(text.encode()) > MOST_WINDOWS * step:  # a token is a byte at least
            windows = len(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids) // step
            if windows > MOST_WINDOWS:
                raise too_many_windows(windows)

    def too_long(self, length: str) -> BadRequest:
        return BadRequest(
            f"inputs has {length}; the model reads {self.encoder.limit} tokens",
            hint='send less, or "parameters": {"truncation": true} to have the end cut off',
        )


def too_many_windows(windows: int) -> BadRequest:
    return BadRequest(
        f"the texts are read in {windows} windows or more, and one request may have {MOST_WINDOWS}",
        hint="send less at once, or let the windows overlap less",
    )


def settings(asked: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """A tokenizer's arguments from what a caller may say of them: never more than the model reads."""
    chosen: dict[str, Any] = {"cut": asked.get("truncation") or False}
    if asked.get("max_length") is not None:
        chosen["max_length"] = min(asked["max_length"], limit)
    return chosen

"""What the runner gives a handler, and what it asks of one.

A handler is a class built from a `ModelConfig`; building it loads the weights (built means usable). It has one of two
forms:

* `Predictor`: `decode` each request, then `predict` a batch of compatible ones.
* `Stepwise`: `decode` each request, then advance all that have joined by one `step`, a token for instance.

A handler that does not read JSON Lines (415) is given each line as a JSON request of its own (serve/runner/records.py).
One that reads other types line by line, without a header line, names them in an attribute `records`.

Everything runs on the one thread of the runner's loop; a handler needs no locks and starts no threads of its own
beyond those of its framework.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from serve.catalog.model_config import ModelConfig
from serve.errors import ServeError
from serve.http.addresses import INVOCATIONS


class Request(msgspec.Struct, frozen=True, kw_only=True):  # made for each request, in 0.3 µs; a frozen dataclass: 3
    """One request: the whole body, already decompressed, and the headers by lower-case name."""

    body: bytes
    content_type: str  # media type alone, lower case, without parameters; "" when the header is missing
    charset: str = "utf-8"
    accept: str = ""  # as sent; see serve.http.media.choose
    headers: Mapping[str, str] = {}
    path: str = INVOCATIONS  # the API it came by; one of the handler's `paths`
    deadline: float = float("inf")  # time.monotonic() after which nobody listens
    stream_deadline: float = float("inf")  # the same for an answer that is streamed (8 minutes on the platform)
    id: str = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. An iterator body is a stream: each item leaves as one chunk as soon as it is made."""

    body: bytes | Iterator[bytes]
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = {}


class Job(Protocol):
    """A decoded request on its way to an answer. Exactly one of `reply`, `fail` or `start`..`finish` ends it."""

    request: Request  # without its body, if that was large
    item: Any  # what `decode` returned

    def begin(self, now: float) -> None:
        """The model begins with it now (time.monotonic()): a Stepwise handler says so, once; else the runner."""

    def reply(self, reply: Reply) -> None:
        """Answer whole, or with a stream the loop will pull from."""

    def fail(self, error: ServeError) -> None:
        """Answer with an error; after `start` the connection is cut instead, so that it cannot pass for success."""

    def start(self, content_type: str) -> None:
        """Open a stream: status 200 and headers leave at once."""

    def send(self, chunk: bytes) -> None:
        """One chunk of an opened stream, flushed at once; never blocks (what the peer cannot take yet is kept)."""

    def finish(self) -> None:
        """End an opened stream."""


class Predictor(Protocol):
    # A handler that speaks more APIs than /invocations lists all their paths in a class variable `paths`.

    def __init__(self, model: ModelConfig[Any]) -> None:
        """Load. Raise ModelUnusable when the files are at fault, DoesNotFit (or MemoryError) for memory."""

    def decode(self, request: Request) -> Any:
        """Validate and parse one request into an item. Raise a ServeError (400, 406, 415...) here, not in `predict`."""

    def compatible(self, item: Any) -> Hashable:
        """Items with equal keys may share a batch."""

    def predict(self, items: Sequence[Any]) -> Sequence[Reply | ServeError | None]:
        """One outcome for each item, in order. If it raises, the loop runs the items one by one.

        None: there is more to do than one batch holds. The item will come again, behind those who have come meanwhile.
        """


class Stepwise(Protocol):
    def __init__(self, model: ModelConfig[Any]) -> None:
        """As for a Predictor."""

    def decode(self, request: Request) -> Any:
        """As for a Predictor."""

    def join(self, job: Job) -> None:
        """Take a decoded job in; it is advanced by each `step` until the handler ends it."""

    def leave(self, job: Job) -> None:
        """The caller hung up: forget the job at once, answer nothing."""

    def step(self) -> None:
        """One turn of work for all that have joined, if any. If it raises, every joined job is failed and forgotten."""

    def room(self) -> int:
        """How many further jobs may `join` now; those beyond wait in the socket's queue."""

"""The interface between the runner and a handler.

A handler is a class. Its constructor takes a `ModelConfig` and loads the weights: an instance is ready to answer. It
has one of two forms:

* `Predictor`: `decode` parses each request, then `predict` answers a batch of compatible ones.
* `Stepwise`: `decode` parses each request, then each `step` advances all that have joined, by one token for instance.

If a handler does not read JSON Lines (415), the runner passes each line as a separate JSON request
(serve/runner/records.py). A handler that reads other types line by line, without a header line, lists them in an
attribute `records`. One that answers further APIs lists all its paths in an attribute `paths`. One that reads and
writes arrays names their media type in an attribute `arrays` (serve/runner/open_inference.py): npz for several by name,
npy for one, which `output` names. Its method `signature` returns the tensors that it takes and returns. One that keeps
memory which it can do without has it in an attribute `caches` (`Caches`): the host asks for it before an eviction. One
that can become faster behind its load has the work in an attribute `upkeep` (`Upkeep`). One that reads large bodies in
slices, in `predict`, has an attribute `slices`, which the runner sets to False where `decode` must find all faults. One
that generates text counts its tokens in `computed`, and its items have `most_tokens`: those that they may take.

All calls come from the one thread of the runner's loop, but those of the upkeep. A handler needs no locks, and starts
no threads beyond those of its framework.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from serve.catalog.model_config import ModelConfig
from serve.errors import ServeError
from serve.http.addresses import INVOCATIONS


class Request(msgspec.Struct, frozen=True, kw_only=True):  # made for each request in 0.3 µs; a frozen dataclass takes 3
    """One request: the whole body, decompressed, and the headers by lower-case name."""

    body: bytes
    content_type: str  # the media type in lower case, without parameters; "" without the header
    charset: str = "utf-8"
    accept: str = ""  # as it was sent; see serve.http.media.choose
    headers: Mapping[str, str] = {}
    path: str = INVOCATIONS  # one of the handler's `paths`
    deadline: float = float("inf")  # time.monotonic() at which the client times out
    stream_deadline: float = float("inf")  # the same for a streamed answer (8 minutes on SageMaker)
    id: str = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. An iterator as body is a stream: each item is sent as one chunk as soon as it exists."""

    body: bytes | Iterator[bytes]
    content_type: str
    status: int = 200
    reason: str = ""  # the phrase beside the status; "" for the usual one
    headers: Mapping[str, str] = {}


class Job(Protocol):
    """A decoded request that waits for its answer. Exactly one of `reply`, `fail` or `start`..`finish` ends it."""

    request: Request  # without the body, if it was large
    item: Any  # what `decode` returned

    def begin(self, now: float) -> None:
        """Work on the request begins now (time.monotonic()). A Stepwise handler calls this; else the runner does."""

    def reply(self, reply: Reply) -> None:
        """Answer with a body, or with a stream from which the loop takes the chunks."""

    def fail(self, error: ServeError) -> None:
        """Answer with an error. After `start`, close the connection without the final chunk: clients see a failure."""

    def start(self, content_type: str) -> None:
        """Open a stream: status 200 and the headers are sent at once."""

    def send(self, chunk: bytes) -> None:
        """Send one chunk of an open stream. Never blocks: data that the client cannot take yet is buffered."""

    def finish(self) -> None:
        """End an open stream."""


class Caches(Protocol):
    """Memory that a handler keeps to be faster."""

    @property
    def bytes(self) -> int: ...

    def free(self) -> None:
        """Drop all of it. Called between two steps, also while requests are at work."""


class Upkeep(Protocol):
    """Work that makes later requests faster. The runner does it in a thread beside its loop."""

    @property
    def bytes(self) -> int:
        """The most private memory that the rest of the work will add."""

    def advance(self) -> bool:
        """Do a piece of the work; returns whether more is left."""


class Predictor(Protocol):
    def __init__(self, model: ModelConfig[Any]) -> None:
        """Load the model. Raises ModelUnusable for invalid files, DoesNotFit (or MemoryError) without memory."""

    def decode(self, request: Request) -> Any:
        """Parse and check one request. Errors of the request (400, 406, 415...) are raised here, not in `predict`."""

    def compatible(self, item: Any) -> Hashable:
        """A key: items with equal keys may share a batch. An item that is its own key shares none."""

    def predict(self, items: Sequence[Any]) -> Sequence[Reply | ServeError | None]:
        """One outcome for each item, in order. If it raises, the loop runs the items one by one.

        None: the item needs another batch. It comes again, in turns with the items that have arrived meanwhile.
        """


class Stepwise(Protocol):
    def __init__(self, model: ModelConfig[Any]) -> None:
        """As for a Predictor."""

    def decode(self, request: Request) -> Any:
        """As for a Predictor."""

    def join(self, job: Job) -> None:
        """Accept a decoded job. Each `step` advances it until the handler ends it."""

    def leave(self, job: Job) -> None:
        """The client has disconnected: forget the job without an answer."""

    def step(self) -> None:
        """Do one turn of work for all joined jobs. If it raises, the runner fails all of them."""

    def room(self) -> int:
        """How many further jobs may `join` now. More requests wait in the socket's queue."""

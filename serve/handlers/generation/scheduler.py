"""The order in which requests get rows of the batch. No tensors: decisions only."""

from collections.abc import Callable, Iterator, Sequence

from serve.handlers.base import Job
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.sequence import ActiveRequest, Unit, rows_of

# Shorter prompts are prefilled together, padded, up to this number of tokens.
PREFILL_TOKENS = 256


class Scheduler:
    """The requests that have joined, and the queue of sequences that wait for their prefill.

    A request with more sequences than the batch has rows enters the queue in parts: all such requests together have at
    most three quarters of the rows, so that other requests are not delayed by it.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._share = max_batch * 3 // 4
        self._requests: list[ActiveRequest] = []  # those for `generate` in the order of their turns
        self._queue: list[Unit] = []

    def __iter__(self) -> Iterator[ActiveRequest]:
        """The requests that have joined and are not answered."""
        return iter(list(self._requests))

    def room(self) -> int:
        """The number of further requests that may join."""
        small, large = 0, 0
        for request in self._requests:
            if request.item.rows > self._max_batch:
                large += 1
            else:
                small += request.item.rows
        held = max(self._share, large - 1) if large else 0
        return max(0, self._max_batch - small - held)

    def join(self, request: ActiveRequest) -> None:
        self._requests.append(request)
        if not request.needs_generate and request.item.rows <= self._max_batch:
            self._enqueue(request, self._max_batch)

    def requests_of(self, job: Job) -> list[ActiveRequest]:
        return [request for request in self._requests if request.job is job]

    def remove(self, request: ActiveRequest) -> None:
        self._requests.remove(request)
        self._queue = [unit for unit in self._queue if unit[0].owner is not request]

    def remove_ended(self) -> None:
        self._requests = [request for request in self._requests if not request.ended]

    def clear(self) -> None:
        self._requests, self._queue = [], []

    def next_prefill(self, rows: int, reusable: Callable[[Prompt], int], most: int | None = None) -> list[Unit]:
        """The next units to prefill together, of at most `rows`, in the order of arrival; few tokens are padding.

        A search with more beams than the batch has rows begins in an empty batch. `reusable`: the number of first
        tokens of a prompt that need not be computed. Together, prompts reuse what all of them can.
        `most`: prompts of more tokens to compute are passed over.
        """
        self._feed()
        chosen: list[Unit] = []
        lengths: list[int] = []
        known: list[int] = []
        for unit in self._queue:
            prompt = unit[0].prompt
            length, reused = len(prompt.read), reusable(prompt)
            if most is not None and length - reused > most:
                continue
            rows -= min(rows_of(unit), self._max_batch)
            if rows < 0:
                break
            lengths.append(length)
            known.append(reused)
            padded = (max(lengths) - min(known)) * len(lengths)
            if chosen and (padded > PREFILL_TOKENS or (sum(lengths) - sum(known)) * 2 < padded):
                break
            chosen.append(unit)
        taken = set(map(id, chosen))
        self._queue = [unit for unit in self._queue if id(unit) not in taken]
        return chosen

    def put_back(self, units: Sequence[Unit]) -> None:
        """Return units whose prefill was cancelled to the front of the queue."""
        self._queue[:0] = units

    def next_generate(self) -> Unit | None:
        """The next unit for `generate`. A request with further units moves behind the others."""
        request = next((each for each in self._requests if each.needs_generate and each.pending), None)
        if request is None:
            return None
        unit = request.take(request.pending[0])
        if request.pending:
            self._requests.remove(request)
            self._requests.append(request)
        return unit

    def _feed(self) -> None:
        """Let large requests enter the queue, each up to its share of the rows."""
        large = [request for request in self._requests if request.pending and not request.needs_generate]
        for request in large:
            running, share = request.running, self._share // len(large)
            one = rows_of(request.pending[0]) if running == 0 else 0  # each has one unit at least
            self._enqueue(request, max(one, share - running))

    def _enqueue(self, request: ActiveRequest, rows: int) -> None:
        """Let units of a request enter the queue while they fit in this number of rows."""
        while request.pending and rows_of(request.pending[0]) <= rows:
            rows -= rows_of(request.pending[0])
            self._queue.append(request.take(request.pending[0]))

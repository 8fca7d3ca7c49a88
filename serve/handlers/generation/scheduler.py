"""The order in which requests get rows of the batch. No tensors: decisions only."""

from collections.abc import Callable, Hashable, Iterator, Sequence

from serve.handlers.base import Job
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.sequence import ActiveRequest, GeneratedSequence, Unit

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
        self._queue: list[GeneratedSequence] = []

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
        if not request.item.needs_generate and request.item.rows <= self._max_batch:
            self._enqueue(request, len(request.pending))

    def requests_of(self, job: Job) -> list[ActiveRequest]:
        return [request for request in self._requests if request.job is job]

    def remove(self, request: ActiveRequest) -> None:
        self._requests.remove(request)
        self._queue = [sequence for sequence in self._queue if sequence.owner is not request]

    def remove_ended(self) -> None:
        self._requests = [request for request in self._requests if not request.ended]

    def clear(self) -> None:
        self._requests, self._queue = [], []

    def next_prefill(self, rows: int, reusable: Callable[[Prompt], int]) -> list[GeneratedSequence]:
        """The next sequences to prefill together, at most `rows`, in the order of arrival; few tokens are padding.

        `reusable`: the number of first tokens of a prompt that need not be computed. Together, prompts reuse what all
        of them can.
        """
        self._feed()
        chosen: list[GeneratedSequence] = []
        lengths: list[int] = []
        known: list[int] = []
        for sequence in self._queue[:rows]:
            lengths.append(len(sequence.prompt.tokens))
            known.append(reusable(sequence.prompt))
            padded = (max(lengths) - min(known)) * len(lengths)
            if chosen and (padded > PREFILL_TOKENS or (sum(lengths) - sum(known)) * 2 < padded):
                break
            chosen.append(sequence)
        del self._queue[: len(chosen)]
        return chosen

    def put_back(self, sequences: Sequence[GeneratedSequence]) -> None:
        """Return sequences whose prefill was cancelled to the front of the queue."""
        self._queue[:0] = sequences

    def next_generate(self, compatible: Callable[[Prompt], Hashable]) -> list[Unit]:
        """The next units for one `generate`: the first that waits, and those with an equal key that fit in the batch.

        A request with further units moves behind the others.
        """
        chosen: list[Unit] = []
        key: Hashable = None
        rows = 0
        for request in self._requests:
            for unit in request.pending if request.item.needs_generate else ():
                prompt = unit[0].prompt
                if chosen and compatible(prompt) != key:
                    continue
                rows += prompt.settings.rows
                if chosen and rows > self._max_batch:
                    return self._taken(chosen)
                if not chosen:
                    key = compatible(prompt)
                chosen.append(unit)
        return self._taken(chosen)

    def _taken(self, units: list[Unit]) -> list[Unit]:
        requests = dict.fromkeys(unit[0].owner for unit in units)
        for unit in units:
            unit[0].owner.take(unit)
        again = [request for request in requests if request.pending]
        self._requests = [request for request in self._requests if request not in again] + again
        return units

    def _feed(self) -> None:
        """Let large requests enter the queue, each up to its share of the rows."""
        large = [request for request in self._requests if request.pending and not request.item.needs_generate]
        for request in large:
            self._enqueue(request, max(1, self._share // len(large)) - request.running)

    def _enqueue(self, request: ActiveRequest, count: int) -> None:
        for _ in range(min(count, len(request.pending))):
            self._queue += request.take(request.pending[0])

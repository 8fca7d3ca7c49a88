"""Whose turn it is: requests that fit into the batch in order of arrival, larger ones bit by bit beside them.

A request of more sequences than the batch has rows gets three quarters of them, shared with others of its kind, and
its next sequence queues behind whoever has come meanwhile: nobody waits for the whole of it.
"""

from collections.abc import Callable, Hashable

from serve.handlers.generation.answers import Prompt
from serve.handlers.generation.request import rows_of
from serve.handlers.generation.sequence import Joined, Row


class Turns:
    """The requests that have joined, and the rows that wait for their prefill."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._share = max_batch * 3 // 4
        self.joined: list[Joined] = []  # those left to `generate` in the order of their turns
        self.waiting: list[Row] = []

    def room(self) -> int:
        """How many further requests may join."""
        small, large = 0, 0
        for joined in self.joined:
            if joined.item.rows > self._max_batch:
                large += 1
            else:
                small += joined.item.rows
        held = max(self._share, large - 1) if large else 0
        return max(0, self._max_batch - small - held)

    def join(self, joined: Joined) -> None:
        self.joined.append(joined)
        if not joined.item.left and joined.item.rows <= self._max_batch:
            self._queue(joined, len(joined.rows))

    def forget(self, joined: Joined) -> None:
        self.joined.remove(joined)
        self.waiting = [row for row in self.waiting if row.owner is not joined]

    def forget_ended(self) -> None:
        self.joined = [joined for joined in self.joined if joined.unfinished]

    def clear(self) -> None:
        self.joined, self.waiting = [], []

    def feed(self) -> None:
        """Queue more rows of those who have too many to do it at once."""
        large = [joined for joined in self.joined if joined.later and not joined.item.left]
        for joined in large:
            self._queue(joined, max(1, self._share // len(large)) - joined.under_way)

    def _queue(self, joined: Joined, count: int) -> None:
        for _ in range(min(count, len(joined.later))):
            self.waiting.append(joined.rows[joined.later.popleft()])
            joined.under_way += 1

    def together(self, key: Callable[[Prompt], Hashable]) -> list[tuple[Joined, int]]:
        """Prompts for one `generate`, with their numbers: the first that waits, and those of equal key, as fit."""
        waiting = [joined for joined in self.joined if joined.item.left]
        if not waiting:
            return []
        chosen: list[tuple[Joined, int]] = []
        first: Hashable = None
        rows = 0
        for joined in waiting:
            for number in list(joined.later):
                prompt = joined.item.prompts[number]
                rows += rows_of(prompt.settings)
                if rows > self._max_batch:
                    return self._taken(chosen)
                if not chosen:
                    first = key(prompt)
                elif key(prompt) != first:
                    rows -= rows_of(prompt.settings)
                    continue
                chosen.append((joined, number))
        return self._taken(chosen)

    def _taken(self, chosen: list[tuple[Joined, int]]) -> list[tuple[Joined, int]]:
        """Out of what waits; who has more to do goes behind the others."""
        for joined, number in chosen:
            joined.later.remove(number)
        again = [joined for joined in dict.fromkeys(joined for joined, _ in chosen) if joined.later]
        self.joined = [joined for joined in self.joined if joined not in again] + again
        return chosen

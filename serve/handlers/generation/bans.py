"""Tokens that a row may not take next, as transformers' processors for the same parameters have it."""

from collections.abc import Iterable, Sequence


class Bans:
    """What `suppress_tokens`, `bad_words_ids` and `no_repeat_ngram_size` forbid, kept up token by token."""

    def __init__(
        self,
        prompt: Sequence[int],
        always: Iterable[int],
        words: Iterable[tuple[int, ...]],
        size: int,
        ends: frozenset[int],
    ) -> None:
        """`size` of n-grams, 0 for none; a word that is an end token alone does not count."""
        words = [word for word in words if len(word) > 1 or word[0] not in ends]
        self._always = {*always, *(word[0] for word in words if len(word) == 1)}
        self._words = [(list(word[:-1]), word[-1]) for word in words if len(word) > 1]
        self._size = size
        self._after: dict[tuple[int, ...], list[int]] = {}  # what has followed each n-gram's beginning
        # Of the text as much as is looked back at.
        self._back = max([size - 1, *(len(before) for before, _ in self._words)])
        self._last: list[int] = []
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        if self._size and len(self._last) >= self._size - 1:
            self._after.setdefault(self._beginning(), []).append(token)
        self._last.append(token)
        del self._last[: max(0, len(self._last) - self._back)]

    def now(self) -> set[int]:
        """All that may not come next."""
        banned = self._always | {
            token for before, token in self._words if self._last[len(self._last) - len(before) :] == before
        }
        if self._size and len(self._last) >= self._size - 1:
            banned.update(self._after.get(self._beginning(), ()))
        return banned

    def _beginning(self) -> tuple[int, ...]:
        return tuple(self._last[len(self._last) - (self._size - 1) :])

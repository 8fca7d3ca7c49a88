"""Prompt lookup: the next tokens are guessed from the text so far, and one pass checks all of them.

Where a text repeats itself or its prompt, as extracts and edits do, a step makes several tokens. The tokens are those
that one step each would choose. The parameters are those of transformers' `generate`.
"""

from collections.abc import Sequence

NGRAM = 2  # max_matching_ngram_size of transformers, where the request has none
PLACES = 64  # the newest places of a token that are compared


class PromptLookup:
    """The guesses for one row. They grow while they are right, and shrink while they are wrong."""

    def __init__(self, prompt: Sequence[int], most: int, ngram: int) -> None:
        """`most`: tokens of a guess. `ngram`: the longest end of the text that is searched for."""
        self._text: list[int] = []
        self._places: dict[int, list[int]] = {}  # of each token, rising
        self._ngram = ngram
        self._most = most
        self._next = most  # tokens of the next guess, at most
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        self._places.setdefault(token, []).append(len(self._text))
        self._text.append(token)

    def guess(self, room: int) -> list[int]:
        """At most `room` tokens that may come next: those behind the newest of the longest equal ends of the text.

        What follows there up to the end of the text is taken to repeat itself.
        """
        text, last = self._text, len(self._text) - 1
        best, at = 0, -1
        for place in reversed(self._places[text[last]][-1 - PLACES : -1]):
            length = 1
            while length < self._ngram and length <= place and text[place - length] == text[last - length]:
                length += 1
            if length > best:
                best, at = length, place
                if best == self._ngram:
                    break
        return [text[at + 1 + i % (last - at)] for i in range(min(self._next, room))] if best else []

    def checked(self, guessed: int, right: int) -> None:
        """Of so many guessed tokens, so many were right."""
        if guessed:
            self._next = min(self._most, 2 * self._next) if right == guessed else max(1, right)

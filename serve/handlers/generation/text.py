"""From tokens to text, piece by piece: what has been sent never changes, and the pieces join to the whole."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNKNOWN = "\ufffd"
# So many of the prompt's tokens are context: enough for a tokenizer to see whether a space is due.
CONTEXT = 6


class Text:
    """The text of one sequence as it grows, cut before the first stop string, or after the token that completes it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str], keeps_stop: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._keeps_stop = keeps_stop
        self._window = self._context(prompt)  # tokens whose text is not settled, behind some for context
        self._fresh = len(self._window)  # where those tokens begin
        self._sent = len(self._decoded(self._window))  # characters of the window's text that are settled
        self._held = ""  # settled, but may be the beginning of a stop string
        self._pieces: list[str] = []
        self.stopped = False

    def __str__(self) -> str:
        return "".join(self._pieces)

    def add(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that these tokens let go; all there is when they are the `last`."""
        if self.stopped:
            return ""
        self._window += tokens
        text = self._decoded(self._window)
        # An incomplete character decodes to the replacement character, up to three when bytes are tokens.
        settled = text if last else text[: max(len(text.rstrip(UNKNOWN)), len(text) - 3)]
        fresh = self._held + settled[self._sent :]
        before, self._sent = self._sent, max(self._sent, len(settled))
        if not last and len(settled) == len(text) > before:
            # Cut only where a character began: bytes as tokens are decoded in runs, all or nothing.
            self._window = self._window[self._fresh :]
            self._fresh = len(self._window)
            self._sent = len(self._decoded(self._window))
        piece, self._held = self._before_stop(fresh, last)
        self._pieces.append(piece)
        return piece

    def _before_stop(self, fresh: str, last: bool) -> tuple[str, str]:
        """Split into what may be shown and what must wait."""
        found = [at for stop in self._stop if (at := fresh.find(stop)) >= 0]
        if found:
            self.stopped = True
            return fresh if self._keeps_stop else fresh[: min(found)], ""
        if last:
            return fresh, ""
        waits = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(fresh)), waits, -1):
                if fresh.endswith(stop[:length]):
                    waits = length
                    break
        return fresh[: len(fresh) - waits], fresh[len(fresh) - waits :]

    def _context(self, prompt: Sequence[int]) -> list[int]:
        count = CONTEXT
        while count < len(prompt) and self._decoded(prompt[-count:]).startswith(UNKNOWN):
            count *= 2
        return list(prompt[-count:])

    def _decoded(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

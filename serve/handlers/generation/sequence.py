"""A joined request and its sequences: what they have made, when they end, and what the caller is told."""

import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence

from transformers import PreTrainedTokenizerBase

from serve.handlers.base import Job
from serve.handlers.generation.output import Prompt
from serve.handlers.generation.request import Item, rows_of
from serve.handlers.generation.sampling import Bans, Choice, Likely

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


class Row:
    """One sequence: a row of the batch from its prefill to its end."""

    def __init__(
        self, owner: "Joined", prompt: Prompt, number: int, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]
    ) -> None:
        settings = prompt.settings
        self.owner = owner
        self.prompt = prompt
        self.number = number
        self.tokens: list[int] = []
        self.likely: list[Likely] = []
        self.text = Text(tokenizer, prompt.tokens, settings.stop, settings.keeps_stop)
        self.reason: str | None = None  # why it ended
        self.until = float("inf")  # time.monotonic() when its own time is over
        self._ends = ends if settings.ends is None else settings.ends
        self._bans: Bans | None = None
        # Nothing need be decoded before the end when nobody sees it.
        self._eager = owner.item.form.streams or bool(settings.stop)
        seed = None if settings.seed is None else f"{settings.seed}/{number}"
        self.choice = Choice(
            temperature=settings.temperature if settings.do_sample else None,
            top_k=settings.top_k,
            top_p=settings.top_p,
            penalty=settings.repetition_penalty,
            dice=random.Random(seed),
            presence=settings.presence_penalty,
            frequency=settings.frequency_penalty,
            made={} if settings.presence_penalty or settings.frequency_penalty else None,
            min_p=settings.min_p,
            likeliest=settings.likeliest,
        )

    def begin(self) -> None:
        """Its turn has come. What it may not say is gathered only now: a thousand long prompts may wait."""
        prompt, settings = self.prompt.tokens, self.prompt.settings
        if settings.suppressed or settings.bad_words or settings.ngram:
            self._bans = Bans(prompt, settings.suppressed, settings.bad_words, settings.ngram, self._ends)
        if settings.repetition_penalty != 1.0:
            self.choice.seen = set(prompt)
        self.choice.banned = self._banned()
        if settings.max_time is not None:
            self.until = time.monotonic() + settings.max_time

    def leave(self) -> None:
        """It takes part no more, though its answer may wait for others."""
        self._bans = self.choice.seen = None

    def add(self, token: int, last: str | None) -> str:
        """Take one more token; the text that may be shown now. `last`: why there is no time for another, if so."""
        settings = self.prompt.settings
        self.tokens.append(token)
        if self.choice.seen is not None:
            self.choice.seen.add(token)
        if self.choice.made is not None:
            self.choice.made[token] = self.choice.made.get(token, 0) + 1
        if self._bans is not None:
            self._bans.add(token)
            self.choice.banned = self._banned()
        elif len(self.tokens) >= settings.least:
            self.choice.banned = ()
        if token in self._ends:
            self.reason = "stop"
        elif len(self.tokens) >= settings.most:
            self.reason = "length"
        else:
            self.reason = last
        if not self._eager:
            if self.reason is not None:
                self.close(self.reason)
            return ""
        piece = self.text.add([] if token in self._ends else [token], last=self.reason is not None)
        if self.text.stopped:
            self.reason = "stop"
        return piece

    def _banned(self) -> list[int]:
        """What may not come next."""
        early = self._ends if len(self.tokens) < self.prompt.settings.least else ()
        return sorted({*early, *(self._bans.now() if self._bans is not None else ())})

    def close(self, reason: str) -> None:
        """End here; all text there is."""
        self.reason = reason
        if not self._eager:
            # An end token is not text, even when its tokenizer does not call it special.
            self.text.add([token for token in self.tokens if token not in self._ends], last=True)
            if self.text.stopped:
                self.reason = "stop"

    @property
    def written(self) -> str:
        """The new text so far."""
        return str(self.text)


class Joined:
    """A request between `join` and its answer."""

    def __init__(self, job: Job, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
        self.job = job
        self.item: Item = job.item
        self._opened = False
        self._begun = False
        self.groups: list[list[Row]] = []  # for each prompt its sequences
        number = 0
        for prompt in self.item.prompts:
            group = [Row(self, prompt, number + i, tokenizer, ends) for i in range(prompt.settings.sequences)]
            self.groups.append(group)
            number += len(group)
        self.rows = [row for group in self.groups for row in group]
        # What has not had its turn: prompts where they are left to `generate`, sequences elsewhere.
        self.later: deque[int] = deque(range(len(self.groups) if self.item.left else len(self.rows)))
        self.under_way = 0  # sequences between their turn and their end
        self.unfinished = len(self.rows)

    def begin(self) -> None:
        """The model begins with it."""
        if not self._begun:
            self._begun = True
            self.job.begin(time.monotonic())

    @property
    def deadline(self) -> float:
        request = self.job.request
        return request.stream_deadline if self.item.form.streams else request.deadline

    def add(self, row: Row, token: int, last: str | None) -> None:
        """Give a row its next token and tell the caller, if it may hear of it."""
        piece = row.add(token, last)
        if row.reason is not None:
            self._count()
        if self.item.form.streams:
            self._open()
            self._send(self.item.form.token(row, piece))
        if row.reason is not None:
            self.ended()

    def close(self, row: Row, reason: str) -> None:
        """End a row here."""
        if row.reason is None:
            row.close(reason)
            self._count()

    def _count(self) -> None:
        self.unfinished -= 1
        self.under_way -= 1

    def ended(self) -> None:
        """Answer if nothing is left to make."""
        if self.unfinished:
            return
        if self.item.form.streams:
            self._open()
            self.job.send(self.item.form.closing(self.rows))
            self.job.finish()
        else:
            self.job.reply(self.item.form.whole(self.groups))

    def _open(self) -> None:
        if not self._opened:
            self._opened = True
            self.job.start(self.item.form.content_type)
            self._send(self.item.form.opening(self.rows))

    def _send(self, chunk: bytes) -> None:
        if chunk:
            self.job.send(chunk)


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

"""A joined request and its sequences: what they have made, when they end, and what the caller is told."""

import random
import time
from collections import deque

from transformers import PreTrainedTokenizerBase

from serve.handlers.base import Job
from serve.handlers.generation.answers import Prompt
from serve.handlers.generation.bans import Bans
from serve.handlers.generation.request import Item
from serve.handlers.generation.sampling import Choice, Likely
from serve.handlers.generation.text import Text


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

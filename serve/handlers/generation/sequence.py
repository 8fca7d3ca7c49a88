"""A request that has joined, and its sequences: their text as it grows, when they end, and the answer to the caller."""

import time
from collections import deque
from collections.abc import Iterable, Sequence

from serve.errors import ServeError
from serve.handlers.base import Job
from serve.handlers.generation.library import LibraryScores
from serve.handlers.generation.lookup import PromptLookup
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.pieces import Waiting
from serve.handlers.generation.request import GenerationItem
from serve.handlers.generation.sampling import RowSampling, TokenLogprobs
from serve.handlers.generation.text_decoder import TokenTexts, without


class GeneratedText:
    """The text of one sequence as it grows. It ends before the first stop string, or with it if `keep_stop`.

    It begins behind the text of the prompt, or, if that is `resumed`, behind the part of it that no token changes.
    """

    def __init__(
        self,
        texts: TokenTexts,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        keep_stop: bool = False,
        resumed: bool = False,
    ) -> None:
        self._texts = texts
        self._stop = stop
        self._keep_stop = keep_stop
        self._context = texts.context(prompt)
        self._stream = texts.stream()
        begun = self._stream.feed(self._context)
        self._begun = begun if resumed else texts.decode(self._context)
        self._repeated = without(begun, self._begun)  # text of the prompt that the stream has not returned yet
        self._final = 0  # characters
        self._held = ""  # final text that may be the beginning of a stop string
        self._pieces: list[str] = []
        self._ended = False
        self.stopped = False  # by a stop string

    def __str__(self) -> str:
        return "".join(self._pieces)

    @property
    def reached(self) -> int:
        """The characters of the tokens so far, whether a stop string cuts them or not."""
        return self._final + len(self._rest(ends=False))

    def add(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that is final with these tokens; with the `last` tokens, all text is."""
        if self._ended:
            return ""
        self._ended = last
        fresh = self._new(self._stream.feed(tokens))
        self._final += len(fresh)
        if last:
            fresh += self._rest(ends=True)
            return self._append(self._held + fresh, "", last)
        return self._append(self._held + fresh, self._rest(ends=False) if self._stop else "", last)

    def complete(self, tokens: Sequence[int]) -> None:
        """Set the text from all tokens at once."""
        self._ended = True
        self._append(without(self._begun, self._texts.decode([*self._context, *tokens])), "", last=True)

    def _append(self, text: str, rest: str, last: bool) -> str:
        """Append the part of `text` that no stop string can cut. `rest` follows; later tokens may change it."""
        seen = text + rest
        if found := [at for stop in self._stop if (at := seen.find(stop)) >= 0]:
            self.stopped = self._ended = True
            piece = seen if self._keep_stop else seen[: min(found)]
        else:
            kept = len(text) - (0 if last else max((_overlap(text, stop) for stop in self._stop), default=0))
            piece, self._held = text[:kept], text[kept:]
        self._pieces.append(piece)
        return piece

    def _new(self, text: str) -> str:
        """`text` without the part that belongs to the prompt."""
        new = without(self._repeated, text)
        self._repeated = "" if new else self._repeated[len(text) :]
        return new

    def _rest(self, ends: bool) -> str:
        return without(self._repeated, self._stream.rest(ends))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


class GeneratedSequence:
    """One sequence of a request, and a row of the batch from its prefill to its end."""

    def __init__(
        self,
        owner: "ActiveRequest",
        prompt: Prompt,
        number: int,
        index: int,
        texts: TokenTexts,
        end_tokens: frozenset[int],
    ) -> None:
        settings = prompt.settings
        self.owner = owner
        self.prompt = prompt
        self.number = number  # among the sequences of the request
        self.index = index  # among the sequences of the prompt
        self.library: LibraryScores | None = None  # by which the row chooses, if the settings need it
        self.tokens: list[int] = []
        self.reused = 0  # first tokens of the prompt that were not computed again
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []  # of the prompt's tokens from the second on
        self.offsets: list[int] = []  # with logprobs: where the text of each token begins in the new text
        self.finish_reason: str | None = None  # stop, length or deadline; None until the sequence has ended
        self.sampling = RowSampling(settings, end_tokens, number)
        self._end_tokens = end_tokens if settings.end_tokens is None else settings.end_tokens
        self._lookup: PromptLookup | None = None
        self._time_limit = float("inf")  # time.monotonic() at which max_time is over
        self._texts = texts
        self._text = GeneratedText(texts, prompt.tokens, settings.stop, settings.keep_stop, prompt.resumed)
        # Whether the text is decoded token by token.
        self._decodes_tokens = owner.item.form.streams or bool(settings.stop) or settings.logprobs is not None

    @property
    def text(self) -> str:
        """The new text so far."""
        return str(self._text)

    @property
    def unit(self) -> "Unit":
        """The sequences that begin with this one."""
        return [self]

    def begin(self, library: LibraryScores | None) -> None:
        """The prefill begins."""
        self.library = library
        self.prompt_logprobs = []
        self.sampling.begin(self.prompt.tokens)
        settings = self.prompt.settings
        if settings.lookup:
            known = [*(self.prompt.source or ()), *self.prompt.tokens]
            self._lookup = PromptLookup(known, settings.lookup, settings.lookup_ngram)
        if self.prompt.settings.max_time is not None:
            self._time_limit = time.monotonic() + self.prompt.settings.max_time

    def guess(self, most: int) -> list[int]:
        """At most so many tokens that may come next, before the last token of the sequence; [] if it asks for none."""
        if self._lookup is None:
            return []
        return self._lookup.guess(min(most, self.prompt.settings.max_new_tokens - len(self.tokens) - 1))

    def guessed(self, count: int, right: int) -> None:
        """Of so many guessed tokens, so many were right."""
        if self._lookup is not None:
            self._lookup.checked(count, right)

    def add(self, token: int, now: float, past_deadline: bool) -> str:
        """Append a token; returns the text that is final with it. Sets `finish_reason` if the sequence ends here."""
        settings = self.prompt.settings
        self.tokens.append(token)
        self.sampling.add(token)
        if self._lookup is not None:
            self._lookup.add(token)
        before = self._text.reached if settings.logprobs is not None else 0
        if token in self._end_tokens:
            self.finish_reason = "stop"
        elif len(self.tokens) >= settings.max_new_tokens:
            self.finish_reason = "length"
        elif past_deadline:
            self.finish_reason = "deadline"
        elif self._time_limit <= now:
            self.finish_reason = "length"
        if self._decodes_tokens:
            piece = self._text.add([] if token in self._end_tokens else [token], last=self.finish_reason is not None)
            if self._text.stopped:
                self.finish_reason = "stop"
            if settings.logprobs is not None:
                self.offsets.append(self._texts.offset(token, before, self._text.reached))
        else:
            piece = ""
        if self.finish_reason is not None:
            self.end(self.finish_reason)
        return piece

    def end(self, reason: str) -> str:
        """End here, for this reason or because of a stop string; returns the text that `add` has not returned."""
        self.finish_reason = reason
        self.sampling.end()
        self.library = self._lookup = None
        piece = ""
        if not self.owner.whole and self._decodes_tokens:
            piece = self._text.add([], last=True)
        else:
            if reason == "length" and self.tokens and self.tokens[-1] in self._end_tokens:
                self.finish_reason = "stop"
            # An end token is not text, even if the tokenizer does not call it special.
            self._text.complete([token for token in self.tokens if token not in self._end_tokens])
        if self._text.stopped:
            self.finish_reason = "stop"
        return piece


# Sequences that begin together: one, or for beam search and for `generate` all sequences of a prompt.
Unit = list[GeneratedSequence]


def rows_of(unit: Unit) -> int:
    """The rows of the batch that a unit takes."""
    return max(len(unit), unit[0].prompt.settings.num_beams)


class ActiveRequest:
    """A request between `join` and its answer."""

    def __init__(self, job: Job, texts: TokenTexts, end_tokens: frozenset[int], searches: bool) -> None:
        """`searches`: whether the batch can search with beams."""
        self.job = job
        self.item: GenerationItem = job.item
        settings = self.item.prompts[0].settings
        self.needs_generate = self.item.needs_generate or (settings.num_beams > 1 and not searches)
        self.whole = self.needs_generate or settings.num_beams > 1  # whether no token is sent before the text has ended
        self._groups: list[list[GeneratedSequence]] = []  # the sequences of each prompt
        number = 0
        for prompt in self.item.prompts:
            count = prompt.settings.num_sequences
            group = [GeneratedSequence(self, prompt, number + i, i, texts, end_tokens) for i in range(count)]
            self._groups.append(group)
            number += count
        self.sequences = [sequence for group in self._groups for sequence in group]
        units = self._groups if self.whole else [[sequence] for sequence in self.sequences]
        self.pending: deque[Unit] = deque(units)
        self._taken: list[Unit] = []
        self._ended = 0  # sequences
        self.begun = False  # whether the model has begun with one of the prompts
        self.waited = 0.0  # seconds in which its rows waited for pieces of other prompts
        self._opened = False

    @property
    def deadline(self) -> float:
        request = self.job.request
        return request.stream_deadline if self.item.form.streams else request.deadline

    @property
    def ended(self) -> bool:
        return self._ended == len(self.sequences)

    @property
    def running(self) -> int:
        """The rows of the units that have been taken from `pending` and have not ended."""
        self._taken = [unit for unit in self._taken if unit[0].finish_reason is None]
        return sum(map(rows_of, self._taken))

    def waiting(self, now: float) -> Waiting:
        """The request as one that waits for the next piece of a prompt."""
        tokens = max(prompt.settings.max_new_tokens for prompt in self.item.prompts)
        return Waiting(self.item.form.streams, tokens, self.waited, self.deadline - now)

    def take(self, unit: Unit) -> Unit:
        """Remove a unit from `pending`."""
        self.pending.remove(unit)
        self._taken.append(unit)
        return unit

    def begin(self) -> None:
        """The model begins with one of the prompts."""
        if not self.begun:
            self.begun = True
            self.job.begin(time.monotonic())

    def add(self, sequence: GeneratedSequence, token: int, now: float, past_deadline: bool) -> None:
        """Append a token to a sequence, and answer the caller as far as possible."""
        piece = sequence.add(token, now, past_deadline)
        if sequence.finish_reason is not None:
            self._ended += 1
        if self.item.form.streams:
            self._open()
            self._send(self.item.form.token(sequence, piece))
        if sequence.finish_reason is not None:
            self._answer_if_ended()

    def end(self, sequences: Iterable[GeneratedSequence], reason: str) -> None:
        """End these sequences where they are, and answer the caller if the request has no others."""
        for sequence in sequences:
            if sequence.finish_reason is None:
                piece = sequence.end(reason)
                self._ended += 1
                if piece and self.item.form.streams:
                    self._open()
                    self._send(self.item.form.rest(sequence, piece))
        self._answer_if_ended()

    def _answer_if_ended(self) -> None:
        if not self.ended:
            return
        if self.item.form.streams:
            self._open()
            self.job.send(self.item.form.closing(self.sequences))
            self.job.finish()
        else:
            try:
                reply = self.item.form.whole(self._groups)
            except ServeError as error:  # the form has no place for this answer
                self.job.fail(error)
            else:
                self.job.reply(reply)

    def _open(self) -> None:
        if not self._opened:
            self._opened = True
            self.job.start(self.item.form.content_type)
            self._send(self.item.form.opening(self.sequences))

    def _send(self, chunk: bytes) -> None:
        if chunk:
            self.job.send(chunk)

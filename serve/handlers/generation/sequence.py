"""A request that has joined, and its sequences: their text as it grows, when they end, and the answer to the caller."""

import time
from collections import deque
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from serve.handlers.base import Job
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.request import GenerationItem
from serve.handlers.generation.sampling import RowSampling, TokenLogprobs

UNKNOWN = "\ufffd"
# Tokens of the prompt that are decoded with the first new ones: a tokenizer sees from them whether a space is due.
CONTEXT = 6


class GeneratedText:
    """The text of one sequence as it grows. It ends before the first stop string, or with it if `keep_stop`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str], keep_stop: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._keep_stop = keep_stop
        self._window = self._context(prompt)  # context, and behind it the tokens whose text is not final
        self._fresh = len(self._window)  # where the latter begin
        self._sent = len(self._decoded(self._window))  # characters of the window's text that are final
        self._held = ""  # final text that may be the beginning of a stop string
        self._pieces: list[str] = []
        self.stopped = False

    def __str__(self) -> str:
        return "".join(self._pieces)

    def add(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that is final with these tokens; with the `last` tokens, all text is."""
        if self.stopped:
            return ""
        self._window += tokens
        text = self._decoded(self._window)
        # An incomplete character decodes to the replacement character, up to three of them when tokens are bytes.
        final = text if last else text[: max(len(text.rstrip(UNKNOWN)), len(text) - 3)]
        fresh = self._held + final[self._sent :]
        before, self._sent = self._sent, max(self._sent, len(final))
        if not last and len(final) == len(text) > before:
            # The window moves only where a character begins: a tokenizer decodes bytes in runs, all or nothing.
            self._window = self._window[self._fresh :]
            self._fresh = len(self._window)
            self._sent = len(self._decoded(self._window))
        piece, self._held = self._before_stop(fresh, last)
        self._pieces.append(piece)
        return piece

    def _before_stop(self, fresh: str, last: bool) -> tuple[str, str]:
        """The text that no stop string can still cut, and the rest."""
        found = [at for stop in self._stop if (at := fresh.find(stop)) >= 0]
        if found:
            self.stopped = True
            return fresh if self._keep_stop else fresh[: min(found)], ""
        if last:
            return fresh, ""
        held = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(fresh)), held, -1):
                if fresh.endswith(stop[:length]):
                    held = length
                    break
        return fresh[: len(fresh) - held], fresh[len(fresh) - held :]

    def _context(self, prompt: Sequence[int]) -> list[int]:
        count = CONTEXT
        while count < len(prompt) and self._decoded(prompt[-count:]).startswith(UNKNOWN):
            count *= 2
        return list(prompt[-count:])

    def _decoded(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class GeneratedSequence:
    """One sequence of a request, and a row of the batch from its prefill to its end."""

    def __init__(
        self,
        owner: "ActiveRequest",
        prompt: Prompt,
        number: int,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
    ) -> None:
        settings = prompt.settings
        self.owner = owner
        self.prompt = prompt
        self.number = number  # among the sequences of the request
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None  # stop, length or deadline; None until the sequence has ended
        self.sampling = RowSampling(settings, end_tokens, number)
        self._end_tokens = end_tokens if settings.end_tokens is None else settings.end_tokens
        self._time_limit = float("inf")  # time.monotonic() at which max_time is over
        self._text = GeneratedText(tokenizer, prompt.tokens, settings.stop, settings.keep_stop)
        # Whether the text is decoded token by token: for a stream, or to find a stop string.
        self._decodes_tokens = owner.item.form.streams or bool(settings.stop)

    @property
    def text(self) -> str:
        """The new text so far."""
        return str(self._text)

    def begin(self) -> None:
        """The prefill begins."""
        self.sampling.begin(self.prompt.tokens)
        if self.prompt.settings.max_time is not None:
            self._time_limit = time.monotonic() + self.prompt.settings.max_time

    def add(self, token: int, now: float, past_deadline: bool) -> str:
        """Append a token; returns the text that is final with it. Sets `finish_reason` if the sequence ends here."""
        settings = self.prompt.settings
        self.tokens.append(token)
        self.sampling.add(token)
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
        else:
            piece = ""
        if self.finish_reason is not None:
            self.end(self.finish_reason)
        return piece

    def end(self, reason: str) -> None:
        """End here, for this reason or because of a stop string."""
        self.finish_reason = reason
        self.sampling.end()
        if not self._decodes_tokens:
            # An end token is not text, even if the tokenizer does not call it special.
            self._text.add([token for token in self.tokens if token not in self._end_tokens], last=True)
            if self._text.stopped:
                self.finish_reason = "stop"


# Sequences that begin together: one for the batch; for `generate` all sequences of a prompt.
Unit = list[GeneratedSequence]


class ActiveRequest:
    """A request between `join` and its answer."""

    def __init__(self, job: Job, tokenizer: PreTrainedTokenizerBase, end_tokens: frozenset[int]) -> None:
        self.job = job
        self.item: GenerationItem = job.item
        self._groups: list[list[GeneratedSequence]] = []  # the sequences of each prompt
        number = 0
        for prompt in self.item.prompts:
            count = prompt.settings.num_sequences
            group = [GeneratedSequence(self, prompt, number + i, tokenizer, end_tokens) for i in range(count)]
            self._groups.append(group)
            number += count
        self.sequences = [sequence for group in self._groups for sequence in group]
        units = self._groups if self.item.needs_generate else [[sequence] for sequence in self.sequences]
        self.pending: deque[Unit] = deque(units)
        self._taken = self._ended = 0  # numbers of sequences
        self.begun = False  # whether the model has begun with one of the prompts
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
        """The number of sequences that have been taken from `pending` and have not ended."""
        return self._taken - self._ended

    def take(self, unit: Unit) -> Unit:
        """Remove a unit from `pending`."""
        self.pending.remove(unit)
        self._taken += len(unit)
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
                sequence.end(reason)
                self._ended += 1
        self._answer_if_ended()

    def _answer_if_ended(self) -> None:
        if not self.ended:
            return
        if self.item.form.streams:
            self._open()
            self.job.send(self.item.form.closing(self.sequences))
            self.job.finish()
        else:
            self.job.reply(self.item.form.whole(self._groups))

    def _open(self) -> None:
        if not self._opened:
            self._opened = True
            self.job.start(self.item.form.content_type)
            self._send(self.item.form.opening(self.sequences))

    def _send(self, chunk: bytes) -> None:
        if chunk:
            self.job.send(chunk)

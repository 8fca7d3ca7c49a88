"""The loop of text generation: each step makes one token for every running row, and prompts join between two steps."""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from serve.errors import DoesNotFit
from serve.failures import exhausted, lost
from serve.handlers.base import Job
from serve.handlers.generation import transformers_generate
from serve.handlers.generation.decoder import ExtendingSteps, ReusingSteps, TokenSteps, end_tokens
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.pieces import Pieces
from serve.handlers.generation.sampling import NO_TOKEN, choose, token_logprobs
from serve.handlers.generation.scheduler import Scheduler
from serve.handlers.generation.sequence import ActiveRequest, GeneratedSequence
from serve.handlers.generation.text_decoder import TokenTexts
from serve.handlers.huggingface import bodies

CHECKED = 64  # tokens that one pass checks, of all rows: about the time of one token each with packed weights


class Engine:
    """Continuous batching: new prompts are prefilled apart, then join the batch as rows; ended rows leave it.

    It has the methods of a `Stepwise` handler from `room` to `step`. An item of its jobs is a GenerationItem.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        texts: TokenTexts,
        decoder: TokenSteps,
        max_batch: int,
        compatible: Callable[[Prompt], Hashable],
    ) -> None:
        """`compatible`: a key; prompts with equal keys may share a `generate`."""
        self.max_batch = max_batch
        self.scheduler = Scheduler(max_batch)
        self.rows: list[GeneratedSequence] = []  # the rows of `decoder`
        self.decoder = decoder
        self.model = model
        self.texts = texts
        self.end_tokens = end_tokens(model)
        self._compatible = compatible
        self._prefill: Any = None  # of `decoder`
        self._prefilled: list[GeneratedSequence] = []  # the rows of `_prefill`
        self._step_s = 0.0  # duration of the last step
        self._pieces = Pieces()

    def room(self) -> int:
        return self.scheduler.room()

    def join(self, job: Job) -> None:
        self.scheduler.join(ActiveRequest(job, self.texts, self.end_tokens))

    def leave(self, job: Job) -> None:
        with torch.inference_mode():
            for request in self.scheduler.requests_of(job):
                self._remove(request)

    def step(self) -> None:
        began = time.monotonic()
        try:
            with torch.inference_mode():
                self._end_late(began)
                self._decode()
                self._admit()
                self._generate()
        except BaseException as error:
            self._reset()
            if resource := exhausted(error):
                if isinstance(self.decoder, ReusingSteps):
                    self.decoder.forget_texts()
                raise DoesNotFit(
                    f"the next token of the batch failed: {resource.message}", hint=resource.hint
                ) from error
            raise
        self._step_s = time.monotonic() - began

    def _end_late(self, now: float) -> None:
        """Answer with the text so far each request whose deadline would pass before the next token."""
        for request in self.scheduler:
            generate = request.item.needs_generate
            if generate and not request.begun:
                continue  # `generate` gets the deadline itself, and makes one token at least
            if request.deadline <= (now if generate else now + self._step_s):
                request.end(request.sequences, "deadline")
                self._remove(request)

    def _decode(self) -> None:
        """Make one token for each row of the batch, or several where they can be guessed."""
        if not self.rows:
            return
        began = time.monotonic()
        guesses = self._guesses()
        if any(guesses):
            self._check(guesses)
        else:
            logits = self.decoder.step([row.tokens[-1] for row in self.rows])
            self._append(self.rows, logits)
        if self._prefill is None:  # a step between two pieces takes half as long again
            self._pieces.stepped(time.monotonic() - began)

    def _guesses(self) -> list[list[int]]:
        """The tokens that may come next in each row, from the text so far; [] where that is not asked for."""
        if not isinstance(self.decoder, ExtendingSteps) or not self.decoder.extends:
            return []
        most = CHECKED // len(self.rows) - 1
        return [row.guess(most) for row in self.rows]

    def _check(self, guesses: list[list[int]]) -> None:
        """Add to each row the guessed tokens that are right, and the next one; rows that have ended leave the batch."""
        assert isinstance(self.decoder, ExtendingSteps)
        rows, lengths = list(self.rows), list(self.decoder.lengths)
        logits = self.decoder.extend([[row.tokens[-1], *guess] for row, guess in zip(rows, guesses, strict=True)])
        right = [0] * len(rows)
        active = list(range(len(rows)))
        at = 0
        while active:
            self._choose([rows[i] for i in active], logits[active, at])
            active = [
                i
                for i in active
                if rows[i].finish_reason is None and at < len(guesses[i]) and rows[i].tokens[-1] == guesses[i][at]
                if rows[i] in self.rows  # its client may have disconnected
            ]
            at += 1
            for i in active:
                right[i] = at
        for row, guess, length, count in zip(rows, guesses, lengths, right, strict=True):
            row.guessed(len(guess), count)
            if row in self.rows:
                self.decoder.cut(self.rows.index(row), length + 1 + count)
        self._drop_ended(rows)

    def _admit(self) -> None:
        """Prefill a piece of the waiting prompts; the first token of each is made behind the last piece."""
        if self._prefill is None:
            self._prefilled = self.scheduler.next_prefill(self.max_batch - len(self.rows), self._reusable)
            if not self._prefilled:
                return
            for row in self._prefilled:
                row.owner.begin()
                row.begin()
        try:
            if self._prefill is None:
                self._prefill = self._begun([row.prompt for row in self._prefilled])
            logits = self._advanced()
            if logits is None:
                return
            self.decoder.join(self._prefill)
        except Exception as error:
            if (resource := exhausted(error)) is None:
                raise
            if isinstance(self.decoder, ReusingSteps):
                self.decoder.forget_texts()
            for request in dict.fromkeys(row.owner for row in self._prefilled):
                self._remove(request)
                longest = max(len(prompt.tokens) for prompt in request.item.prompts)
                request.job.fail(
                    DoesNotFit(
                        f"the prefill of a prompt of {longest} tokens failed: {resource.message}", hint=resource.hint
                    )
                )
            self._prefill, self._prefilled = None, []
            return
        rows, self._prefill, self._prefilled = self._prefilled, None, []
        self.rows += rows
        self._append(rows, logits)

    def _reusable(self, prompt: Prompt) -> int:
        """The number of first tokens of a prompt that need not be computed."""
        steps = self.decoder
        return steps.reusable(prompt.tokens, prompt.space) if isinstance(steps, ReusingSteps) else 0

    def _begun(self, prompts: Sequence[Prompt]) -> Any:
        """A prefill of the decoder."""
        tokens = [prompt.tokens for prompt in prompts]
        if isinstance(self.decoder, ReusingSteps):
            prefill = self.decoder.begin_in(tokens, [prompt.space for prompt in prompts])
            for row in self._prefilled:
                row.reused = prefill.reused
        else:
            prefill = self.decoder.begin(tokens)
        if any(prompt.settings.prompt_logprobs for prompt in prompts):
            prefill.score = self._score
        return prefill

    def _advanced(self) -> torch.Tensor | None:
        """Compute the next piece of the prefill; returns the logits [rows, vocabulary] behind the last one."""
        rows, beside, before = len(self._prefilled), bool(self.rows), self._prefill.remaining
        began = time.monotonic()
        logits = self.decoder.advance(self._prefill, max(1, self._pieces.tokens(beside) // rows))
        if done := before - self._prefill.remaining:
            self._pieces.computed(rows * done, time.monotonic() - began, beside)
        return logits

    def _score(self, start: int, logits: torch.Tensor) -> None:
        """Add the log probabilities of the prompts' tokens behind the columns from `start` on."""
        for row, scores in zip(self._prefilled, logits, strict=True):
            settings, following = row.prompt.settings, row.prompt.tokens[start + 1 : start + 1 + len(scores)]
            if settings.prompt_logprobs:
                row.prompt_logprobs += token_logprobs(scores[: len(following)], following, settings.logprobs or 0)

    def _append(self, rows: list[GeneratedSequence], logits: torch.Tensor) -> None:
        """Choose the next token of each row from its logits; rows that have ended leave the batch."""
        rows = list(rows)
        self._choose(rows, logits)
        self._drop_ended(rows)

    def _choose(self, rows: list[GeneratedSequence], logits: torch.Tensor) -> None:
        """Choose the next token of each row from its logits."""
        tokens, logprobs = choose(logits, [row.sampling for row in rows])
        now = time.monotonic()
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.prompt.settings.max_new_tokens == 0:  # an echo alone
                row.owner.end([row], "length")
                continue
            if token == NO_TOKEN:
                row.owner.end([row], "stop")
                continue
            if i in logprobs:
                row.logprobs.append(logprobs[i])
            row.owner.add(row, token, now, past_deadline=row.owner.deadline <= now + self._step_s)

    def _drop_ended(self, rows: list[GeneratedSequence]) -> None:
        for row in rows:
            if row.finish_reason is not None and row in self.rows:
                self._drop(row)
        self.scheduler.remove_ended()

    def _generate(self) -> None:
        """Run one `generate` for the first request that needs it and all that can share its batch."""
        units = self.scheduler.next_generate(self._compatible)
        if not units:
            return
        for unit in units:
            unit[0].owner.begin()
        self.decoder.forget()
        prompts = [unit[0].prompt for unit in units]
        try:
            made = transformers_generate.generate(
                self.model, self.texts.tokenizer, prompts, [unit[0].owner.deadline for unit in units]
            )
        except Exception as error:  # models and processors raise any class
            if exhausted(error) or lost(error) or not prompts[0].settings.generate_only:
                raise
            for request in dict.fromkeys(unit[0].owner for unit in units):
                self._remove(request)
                request.job.fail(bodies.refused_by_generate(error))
            return
        now = time.monotonic()
        for unit, generated in zip(units, made, strict=True):
            for sequence, tokens in zip(unit, generated, strict=True):
                sequence.tokens = tokens
            request = unit[0].owner
            request.end(unit, "deadline" if request.deadline <= now else "length")
        self.scheduler.remove_ended()

    def _drop(self, row: GeneratedSequence) -> None:
        """Take a row out of the batch; as in the decoder, the last row takes its place."""
        number = self.rows.index(row)
        self.decoder.leave(number)
        self.rows[number] = self.rows[-1]
        self.rows.pop()

    def _remove(self, request: ActiveRequest) -> None:
        self.scheduler.remove(request)
        if any(row.owner is request for row in self._prefilled):
            # The other prompts of the prefill begin again: rare, and simpler than splitting a cache.
            self.scheduler.put_back([row for row in self._prefilled if row.owner is not request])
            self._prefill, self._prefilled = None, []
        for row in [row for row in self.rows if row.owner is request]:
            self._drop(row)

    def _reset(self) -> None:
        self.scheduler.clear()
        self.rows = []
        self._prefill, self._prefilled = None, []
        self.decoder.reset()

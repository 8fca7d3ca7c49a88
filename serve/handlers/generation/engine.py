"""The loop of text generation: each step makes one token for every running row, and prompts join between two steps."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from serve.errors import DoesNotFit, InternalError
from serve.failures import described, exhausted, lost
from serve.handlers.base import Job
from serve.handlers.generation import beams, transformers_generate
from serve.handlers.generation.beams import Beam, BeamSearch
from serve.handlers.generation.cache import Move
from serve.handlers.generation.decoder import ExtendingSteps, ForkingSteps, ReusingSteps, TokenSteps, end_tokens
from serve.handlers.generation.encoder_decoder import EncoderDecoderPrompt
from serve.handlers.generation.library import LibraryScores, StopStrings
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.pieces import Pieces
from serve.handlers.generation.sampling import NO_TOKEN, choose, token_logprobs
from serve.handlers.generation.scheduler import Scheduler
from serve.handlers.generation.sequence import ActiveRequest, GeneratedSequence, Unit, rows_of
from serve.handlers.generation.text_decoder import TokenTexts
from serve.handlers.huggingface import bodies

log = logging.getLogger(__name__)

Row = GeneratedSequence | Beam
Begun = GeneratedSequence | BeamSearch  # a unit from its prefill on
OVERTAKES = 4  # a prompt overtakes a prefill that has so many times as many tokens left
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
    ) -> None:
        self.max_batch = max_batch
        self.computed = 0  # tokens, of prompts and of answers
        self.scheduler = Scheduler(max_batch)
        self.rows: list[Row] = []  # the rows of `decoder`
        self.decoder = decoder
        self.model = model
        self.texts = texts
        self.end_tokens = end_tokens(model)
        self._prefill: Any = None  # of `decoder`
        self._prefilled: list[Begun] = []  # what the rows of `_prefill` are of
        self._paused: tuple[Any, list[Begun]] | None = None  # a prefill, and its rows, that shorter ones have overtaken
        self._overtaken = False  # by the last prefill: the next one waits for a piece
        self._step_s = 0.0  # duration of the last step
        self._pieces = Pieces()

    def room(self) -> int:
        return self.scheduler.room()

    def join(self, job: Job) -> None:
        searches = isinstance(self.decoder, ForkingSteps)
        self.scheduler.join(ActiveRequest(job, self.texts, self.end_tokens, searches))

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
            generate = request.needs_generate
            if generate and not request.begun:
                continue  # `generate` gets the deadline itself, and makes one token at least
            if request.deadline <= (now if generate else now + self._step_s):
                for search in _searches(row for row in self.rows if row.owner is request):
                    search.finish(running=True)
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
        rows = [row for row in self.rows if isinstance(row, GeneratedSequence)]
        if len(rows) < len(self.rows):
            return []  # beam search adds one token to each beam
        most = CHECKED // len(rows) - 1
        return [row.guess(most) for row in rows]

    def _check(self, guesses: list[list[int]]) -> None:
        """Add to each row the guessed tokens that are right, and the next one; rows that have ended leave the batch."""
        assert isinstance(self.decoder, ExtendingSteps)
        rows = [row for row in self.rows if isinstance(row, GeneratedSequence)]
        lengths = list(self.decoder.lengths)
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
        self._overtake()
        if not self._prefilled:
            units = self.scheduler.next_prefill(self.max_batch - len(self.rows), self._reusable)
            self._prefilled = self._begun(units)
            if not self._prefilled:
                return
        try:
            if self._prefill is None:
                self._prefill = self._started([each.prompt for each in self._prefilled])
            logits = self._advanced()
            if logits is None:
                return
            self.decoder.join(self._prefill)
        except Exception as error:
            if (resource := exhausted(error)) is None:
                raise
            if isinstance(self.decoder, ReusingSteps):
                self.decoder.forget_texts()
            for request in dict.fromkeys(begun.owner for begun in self._prefilled):
                self._remove(request)
                longest = max(len(prompt.read) for prompt in request.item.prompts)
                request.job.fail(
                    DoesNotFit(
                        f"the prefill of a prompt of {longest} tokens failed: {resource.message}", hint=resource.hint
                    )
                )
            return
        prefilled = self._prefilled
        self._resume()
        self.computed += sum(len(each.prompt.read) for each in prefilled)
        self._append(*self._joined(prefilled, logits))

    def _overtake(self) -> None:
        """Pause a long prefill while shorter prompts wait, so that they wait for one piece of it and not for all.

        Between two that overtake it is a piece of the long one.
        """
        if self._prefill is None or self._paused is not None or self._overtaken:
            self._overtaken = False
            return
        free = self.max_batch - len(self.rows) - sum(rows_of(each.unit) for each in self._prefilled)
        shorter = self.scheduler.next_prefill(free, self._reusable, self._prefill.remaining // OVERTAKES)
        if begun := self._begun(shorter):
            self._paused = self._prefill, self._prefilled
            self._prefill, self._prefilled = None, begun

    def _resume(self) -> None:
        """The prefill has ended: continue with the one that it has overtaken, if any."""
        self._overtaken = self._paused is not None
        self._prefill, self._prefilled = self._paused or (None, [])
        self._paused = None

    def _begun(self, units: Sequence[Unit]) -> list[Begun]:
        """What the units are during their prefill. A request whose parameters transformers refuses fails."""
        begun: list[Begun] = []
        refused: dict[ActiveRequest, Exception] = {}
        for unit in units:
            try:
                begun.append(self._begin(unit))
            except Exception as error:  # processors raise any class
                if exhausted(error):
                    raise
                refused[unit[0].owner] = error
        for request, refusal in refused.items():
            self._fail(request, refusal)
        begun = [each for each in begun if each.owner not in refused]
        for each in begun:
            each.owner.begin()
        return begun

    def _begin(self, unit: Unit) -> Begun:
        """Raises what transformers raises for parameters that it refuses."""
        first, *_ = unit
        settings = first.prompt.settings
        ends = self.end_tokens if settings.end_tokens is None else settings.end_tokens
        library = None
        if settings.needs_library:
            library = LibraryScores(self.model, first.prompt, sorted(ends), first.index)
        if settings.num_beams > 1:
            stop = StopStrings(self.texts.tokenizer, settings.stop) if settings.stop else None
            return BeamSearch(unit, self.end_tokens, library, stop)
        first.begin(library)
        return first

    def _joined(self, prefilled: Sequence[Begun], logits: torch.Tensor) -> tuple[list[Row], torch.Tensor]:
        """The new rows and their logits: a search forks the row of its prompt."""
        rows: list[Row] = [each.beams[0] if isinstance(each, BeamSearch) else each for each in prefilled]
        numbers = list(range(len(rows)))
        start = len(self.rows)
        for number, each in enumerate(prefilled):
            if isinstance(each, BeamSearch):
                copies = each.beams[1:]
                self._forking.fork(start + number, len(copies))
                rows += copies
                numbers += [number] * len(copies)
        self.rows += rows
        return rows, logits if len(numbers) == len(logits) else logits[numbers]

    def _reusable(self, prompt: Prompt) -> int:
        """The number of first tokens of a prompt that need not be computed."""
        steps = self.decoder
        return steps.reusable(prompt.tokens, prompt.space) if isinstance(steps, ReusingSteps) else 0

    def _started(self, prompts: Sequence[Prompt]) -> Any:
        """A prefill of the decoder."""
        if isinstance(self.decoder, ReusingSteps):
            spaces = [prompt.space for prompt in prompts]
            prefill = self.decoder.begin_in([prompt.tokens for prompt in prompts], spaces)
            for row in (row for each in self._prefilled for row in each.unit):
                row.reused = prefill.reused
        else:
            prefill = self.decoder.begin([_read(prompt) for prompt in prompts])
        if any(prompt.settings.prompt_logprobs for prompt in prompts):
            prefill.score = self._score
        return prefill

    def _advanced(self) -> torch.Tensor | None:
        """Compute the next piece of the prefill; returns the logits [rows, vocabulary] behind the last one."""
        rows, before = len(self._prefilled), self._prefill.remaining
        began = time.monotonic()
        waiting = dict.fromkeys(row.owner for row in self.rows)
        for each in self._prefilled:  # the end of a request that has rows in both comes after this prefill anyway
            waiting.pop(each.owner, None)
        allowed = self._pieces.allowed([request.waiting(began + self._step_s) for request in waiting])
        logits = self.decoder.advance(
            self._prefill, max(1, self._pieces.tokens(allowed, beside_rows=bool(self.rows)) // rows)
        )
        seconds = time.monotonic() - began
        for request in waiting:
            request.waited += seconds
        if done := before - self._prefill.remaining:
            self._pieces.computed(rows * done, seconds, allowed)
        return logits

    def _score(self, start: int, logits: torch.Tensor) -> None:
        """Add the log probabilities of the prompts' tokens behind the columns from `start` on."""
        for row, scores in zip(self._prefilled, logits, strict=True):
            assert isinstance(row, GeneratedSequence)  # beam search has no log probabilities
            settings, following = row.prompt.settings, row.prompt.tokens[start + 1 : start + 1 + len(scores)]
            if settings.prompt_logprobs:
                row.prompt_logprobs += token_logprobs(scores[: len(following)], following, settings.logprobs or 0)

    def _append(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Choose the next token of each row from its logits; rows that have ended leave the batch.

        `rows`: the last rows of the batch, or all.
        """
        rows = list(rows)  # rows that end leave the batch below
        now = time.monotonic()
        failed: dict[ActiveRequest, Exception] = {}
        sequences = {row: i for i, row in enumerate(rows) if isinstance(row, GeneratedSequence)}
        ended: list[Row] = []
        if len(sequences) < len(rows):
            ended = self._search(rows, logits, now, failed)
        for row in ended:
            self._drop(row)
        for request, error in failed.items():
            self._fail(request, error)
        if sequences:
            own = logits if len(sequences) == len(rows) else logits[list(sequences.values())]
            self._choose(list(sequences), own)
        self._drop_ended(list(sequences))

    def _choose(self, rows: list[GeneratedSequence], logits: torch.Tensor) -> None:
        """Choose the next token of each sequence from its logits."""
        self.computed += len(rows)
        chosen: dict[int, int] = {}
        failed: dict[ActiveRequest, Exception] = {}
        for i, row in enumerate(rows):
            if row.library is not None:
                try:
                    chosen[i] = row.library.choose(row.tokens, logits[i : i + 1])
                except Exception as error:  # processors raise any class
                    if exhausted(error):
                        raise
                    failed[row.owner] = error
        tokens, logprobs = choose(logits, [row.sampling for row in rows])
        now = time.monotonic()
        broken: dict[ActiveRequest, BaseException] = {}
        for i, row in enumerate(rows):
            token = chosen.get(i, tokens[i])
            if row.owner in failed or row.owner in broken:
                continue
            try:
                if row.prompt.settings.max_new_tokens == 0:  # an echo alone
                    row.owner.end([row], "length")
                    continue
                if token == NO_TOKEN:
                    row.owner.end([row], "stop")
                    continue
                if i in logprobs:
                    row.logprobs.append(logprobs[i])
                row.owner.add(row, token, now, past_deadline=row.owner.deadline <= now + self._step_s)
            except BaseException as error:  # tokenizers may panic over the text of one request
                if exhausted(error) or lost(error):
                    raise
                broken[row.owner] = error
        for request, refusal in failed.items():
            self._fail(request, refusal)
        for request, fault in broken.items():
            log.error("the text of an answer failed", exc_info=fault)
            self._remove(request)
            request.job.fail(
                InternalError(f"the text of the answer cannot be made: {described(fault)}", hint="see the log")
            )

    def _search(
        self, rows: Sequence[Row], logits: torch.Tensor, now: float, failed: dict[ActiveRequest, Exception]
    ) -> list[Row]:
        """Let each search among the rows add a token to its beams; returns the beams of searches that have ended."""
        self.computed += len(rows)
        first = len(self.rows) - len(rows)
        numbers = {row: number for number, row in enumerate(rows)}
        searches = _searches(rows)
        own = [numbers[beam] for search in searches for beam in search.beams]
        late = [search.owner.deadline <= now + self._step_s for search in searches]
        steps = beams.advance(searches, logits if own == list(range(len(logits))) else logits[own], now, late)
        moves: list[Move] = []
        ended: list[Row] = []
        for search, step, is_late in zip(searches, steps, late, strict=True):
            if search.failed is not None:
                failed[search.owner] = search.failed
            elif step is None:
                search.finish(running=False)
                search.owner.end(search.unit, "deadline" if is_late else "length")
                ended += search.beams
            else:
                moves += [(first + numbers[target], first + numbers[source], same) for target, source, same in step]
        if moves:
            self._forking.rearrange(moves)
        return ended

    def _drop_ended(self, rows: Sequence[GeneratedSequence]) -> None:
        for row in rows:
            if row.finish_reason is not None and row in self.rows:
                self._drop(row)
        self.scheduler.remove_ended()

    def _generate(self) -> None:
        """Run one `generate` for the first prompt that needs it."""
        unit = self.scheduler.next_generate()
        if unit is None:
            return
        prompt, request = unit[0].prompt, unit[0].owner
        request.begin()
        self.decoder.forget()
        try:
            made = transformers_generate.generate(self.model, self.texts.tokenizer, prompt, request.deadline)
        except Exception as error:  # models and processors raise any class
            if exhausted(error) or lost(error) or not prompt.settings.library:
                raise
            self._fail(request, error)
            return
        self.computed += len(prompt.read) + sum(map(len, made))
        for sequence, tokens in zip(unit, made, strict=True):
            sequence.tokens = tokens
        request.end(unit, "deadline" if request.deadline <= time.monotonic() else "length")
        self.scheduler.remove_ended()

    def _fail(self, request: ActiveRequest, error: Exception) -> None:
        """Answer that transformers does not take the request's parameters."""
        self._remove(request)
        request.job.fail(bodies.refused_by_generate(error))

    @property
    def _forking(self) -> ForkingSteps:
        assert isinstance(self.decoder, ForkingSteps)
        return self.decoder

    def _drop(self, row: Row) -> None:
        """Take a row out of the batch; as in the decoder, the last row takes its place."""
        number = self.rows.index(row)
        self.decoder.leave(number)
        self.rows[number] = self.rows[-1]
        self.rows.pop()

    def _remove(self, request: ActiveRequest) -> None:
        self.scheduler.remove(request)
        if any(row.owner is request for row in self._prefilled):
            # The other prompts of the prefill begin again: rare, and simpler than splitting a cache.
            self.scheduler.put_back([each.unit for each in self._prefilled if each.owner is not request])
            self._resume()
        if self._paused and any(row.owner is request for row in self._paused[1]):
            self.scheduler.put_back([each.unit for each in self._paused[1] if each.owner is not request])
            self._paused = None
        for row in [row for row in self.rows if row.owner is request]:
            self._drop(row)

    def _reset(self) -> None:
        self.scheduler.clear()
        self.rows = []
        self._prefill, self._prefilled, self._paused = None, [], None
        self.decoder.reset()


def _searches(rows: Iterable[Row]) -> list[BeamSearch]:
    return list(dict.fromkeys(row.search for row in rows if isinstance(row, Beam)))


def _read(prompt: Prompt) -> Any:
    """A prompt as the decoder begins with it."""
    return prompt.tokens if prompt.source is None else EncoderDecoderPrompt(prompt.source, prompt.tokens[0])

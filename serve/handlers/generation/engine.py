"""The loop of text generation: each step makes one token for every running row, and prompts join between two steps."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from serve.errors import DoesNotFit
from serve.failures import exhausted, lost
from serve.handlers.base import Job
from serve.handlers.generation import beams, transformers_generate
from serve.handlers.generation.beams import Beam, BeamSearch
from serve.handlers.generation.cache import Move
from serve.handlers.generation.decoder import ForkingSteps, TokenSteps, end_tokens
from serve.handlers.generation.encoder_decoder import EncoderDecoderPrompt
from serve.handlers.generation.library import LibraryScores, StopStrings
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.sampling import NO_TOKEN, choose, token_logprobs
from serve.handlers.generation.scheduler import PREFILL_TOKENS, Scheduler
from serve.handlers.generation.sequence import ActiveRequest, GeneratedSequence, Unit
from serve.handlers.generation.text_decoder import TokenTexts
from serve.handlers.huggingface import bodies

Row = GeneratedSequence | Beam
Begun = GeneratedSequence | BeamSearch  # a unit from its prefill on


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
        self.scheduler = Scheduler(max_batch)
        self.rows: list[Row] = []  # the rows of `decoder`
        self.decoder = decoder
        self.model = model
        self.texts = texts
        self.end_tokens = end_tokens(model)
        self._prefill: Any = None  # of `decoder`
        self._prefilled: list[Begun] = []  # what the rows of `_prefill` are of
        self._step_s = 0.0  # duration of the last step

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
        """Make one token for each row of the batch."""
        if self.rows:
            logits = self.decoder.step([row.tokens[-1] for row in self.rows])
            self._append(self.rows, logits)

    def _admit(self) -> None:
        """Prefill waiting prompts, up to PREFILL_TOKENS; the first token of each is made here."""
        if self._prefill is None:
            units = self.scheduler.next_prefill(self.max_batch - len(self.rows))
            self._prefilled = self._begun(units)
            if not self._prefilled:
                return
            self._prefill = self.decoder.begin([_read(begun.prompt) for begun in self._prefilled])
            if any(begun.prompt.settings.prompt_logprobs for begun in self._prefilled):
                self._prefill.score = self._score
        try:
            logits = self.decoder.advance(self._prefill, PREFILL_TOKENS)
            if logits is None:
                return
            self.decoder.join(self._prefill)
        except Exception as error:
            if (resource := exhausted(error)) is None:
                raise
            for request in dict.fromkeys(begun.owner for begun in self._prefilled):
                self._remove(request)
                longest = max(len(prompt.read) for prompt in request.item.prompts)
                request.job.fail(
                    DoesNotFit(
                        f"the prefill of a prompt of {longest} tokens failed: {resource.message}", hint=resource.hint
                    )
                )
            self._prefill, self._prefilled = None, []
            return
        prefilled, self._prefill, self._prefilled = self._prefilled, None, []
        self._append(*self._joined(prefilled, logits))

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
        now = time.monotonic()
        failed: dict[ActiveRequest, Exception] = {}
        sequences = {row: i for i, row in enumerate(rows) if isinstance(row, GeneratedSequence)}
        ended: list[Row] = []
        if len(sequences) < len(rows):
            ended = self._search(rows, logits, now, failed)
        if sequences:
            own = logits if len(sequences) == len(rows) else logits[list(sequences.values())]
            self._extend(list(sequences), own, failed)
        for row in [*ended, *(row for row in sequences if row.finish_reason is not None)]:
            self._drop(row)
        for request, error in failed.items():
            self._fail(request, error)
        self.scheduler.remove_ended()

    def _extend(
        self, rows: Sequence[GeneratedSequence], logits: torch.Tensor, failed: dict[ActiveRequest, Exception]
    ) -> None:
        """Append a token to each sequence."""
        chosen: dict[int, int] = {}
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
        for i, row in enumerate(rows):
            token = chosen.get(i, tokens[i])
            if row.owner in failed:
                continue
            if row.prompt.settings.max_new_tokens == 0:  # an echo alone
                row.owner.end([row], "length")
                continue
            if token == NO_TOKEN:
                row.owner.end([row], "stop")
                continue
            if i in logprobs:
                row.logprobs.append(logprobs[i])
            row.owner.add(row, token, now, past_deadline=row.owner.deadline <= now + self._step_s)

    def _search(
        self, rows: Sequence[Row], logits: torch.Tensor, now: float, failed: dict[ActiveRequest, Exception]
    ) -> list[Row]:
        """Let each search among the rows add a token to its beams; returns the beams of searches that have ended."""
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
            self._prefill, self._prefilled = None, []
        for row in [row for row in self.rows if row.owner is request]:
            self._drop(row)

    def _reset(self) -> None:
        self.scheduler.clear()
        self.rows = []
        self._prefill, self._prefilled = None, []
        self.decoder.reset()


def _searches(rows: Iterable[Row]) -> list[BeamSearch]:
    return list(dict.fromkeys(row.search for row in rows if isinstance(row, Beam)))


def _read(prompt: Prompt) -> Any:
    """A prompt as the decoder begins with it."""
    return prompt.tokens if prompt.source is None else EncoderDecoderPrompt(prompt.source, prompt.tokens[0])

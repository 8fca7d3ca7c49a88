"""Beam search: each beam is a row of the batch. The scores of all searches are computed together.

The search is transformers' own, with its arithmetic in float32, so that the texts and their order are the same:
https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/generation/utils.py (`_beam_search`)
"""

import itertools
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from serve.failures import exhausted
from serve.handlers.generation.library import LibraryScores, StopStrings
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.sampling import RowSampling, penalize
from serve.handlers.generation.sequence import ActiveRequest, Unit

NEVER = -1e9  # is added to the score of a text that must not be chosen, as in transformers


class Beam:
    """One text of a search, and a row of the batch."""

    __slots__ = ("sampling", "search", "tokens")

    def __init__(self, search: "BeamSearch", sampling: RowSampling) -> None:
        self.search = search
        self.sampling = sampling
        self.tokens: list[int] = []  # without the prompt

    @property
    def owner(self) -> ActiveRequest:
        return self.search.owner


BeamMove = tuple[
    Beam, Beam, int
]  # target and source of a row's content, and the first columns that both have in common


class BeamSearch:
    """The search for the best texts of one prompt."""

    def __init__(
        self,
        unit: Unit,
        end_tokens: frozenset[int],
        library: LibraryScores | None,
        stop: StopStrings | None,
    ) -> None:
        """`unit`: the sequences for the best texts. `end_tokens`: those of the model."""
        self.owner = unit[0].owner
        self.prompt: Prompt = unit[0].prompt
        self.unit = unit
        self.library = library
        self.failed: Exception | None = None  # of transformers' objects
        settings = self.prompt.settings
        self._stop = stop
        self._ends = end_tokens if settings.end_tokens is None else settings.end_tokens
        self._time_limit = float("inf")
        if settings.max_time is not None:
            self._time_limit = time.monotonic() + settings.max_time
        count = settings.num_beams
        # In transformers, too, enough candidates that `count` of them do not end with an end token.
        self.candidates = max(2, 1 + len(self._ends)) * count
        sampling = RowSampling(settings, end_tokens)
        sampling.begin(self.prompt.tokens)
        self.beams = [Beam(self, sampling.fork()) for _ in range(count)]  # the best first
        self.scores = [0.0, *[NEVER] * (count - 1)]  # of each beam, the sum of the log probabilities of its tokens
        # The best texts that have ended, or places for them: the scores, and the tokens where there is a text.
        self._ended_scores = torch.full((count,), NEVER)
        self._ended: list[list[int] | None] = [None] * count
        # Columns that two beams have in common: all have the prompt.
        self._common = np.full((count, count), len(self.prompt.tokens))

    def advance(
        self, scores: Tensor, parents: Sequence[int], tokens: Sequence[int], now: float, late: bool
    ) -> list[BeamMove] | None:
        """Add a token to each beam; returns what must be moved between rows, or None at the end of the search.

        Args:
            scores: of the candidates, in the order of choice.
            parents: the beam that each candidate continues.
            tokens: the token that each candidate appends.
            late: whether the deadline passes before a further token.
        """
        settings, count = self.prompt.settings, len(self.beams)
        length = len(self.beams[0].tokens) + 1
        if late or length >= settings.max_new_tokens or self._time_limit <= now:
            hits = [True] * len(tokens)
        else:
            hits = [token in self._ends for token in tokens]
            if self._stop is not None:
                hits = [a or b for a, b in zip(hits, self._stopped(parents, tokens), strict=True)]
        if any(hits[:count]):
            self._end(scores, parents, tokens, hits, length)
        running, chosen = (scores + torch.tensor(hits) * NEVER).topk(count) if any(hits) else scores.topk(count)
        if all(hits) or not self._may_improve(running[:1], length):
            return None
        places = chosen.tolist()
        self.scores = running.tolist()
        return self._continue([parents[i] for i in places], [tokens[i] for i in places], length)

    def finish(self, running: bool) -> None:
        """Give the best texts that have ended to the sequences; `running`: also those that have not."""
        places = [
            (score, tokens)
            for score, tokens in zip(self._ended_scores.tolist(), self._ended, strict=True)
            if tokens is not None
        ]
        if running:
            length = max(1, len(self.beams[0].tokens))
            scores = self._normal(torch.tensor(self.scores), length).tolist()
            places += [
                (score, beam.tokens) for score, beam in zip(scores, self.beams, strict=True) if score > NEVER / 1e4
            ]
            places.sort(key=lambda place: -place[0])
        for sequence, (_, tokens) in zip(self.unit, places, strict=False):
            sequence.tokens = list(tokens)

    def _end(
        self, scores: Tensor, parents: Sequence[int], tokens: Sequence[int], hits: Sequence[bool], length: int
    ) -> None:
        """Keep the best of the texts that have ended. Of the candidates, only the first `num_beams` may end."""
        count = len(self.beams)
        ends = [hit and i < count for i, hit in enumerate(hits)]
        all_scores = torch.cat([self._ended_scores, self._normal(scores, length) + ~torch.tensor(ends) * NEVER])
        self._ended_scores, order = all_scores.topk(count)
        before = self._ended
        self._ended = []
        for place in order.tolist():
            i = place - count
            if i < 0:
                self._ended.append(before[place])
            else:
                self._ended.append([*self.beams[parents[i]].tokens, tokens[i]] if ends[i] else None)

    def _normal(self, scores: Tensor, length: int) -> Tensor:
        return scores / (length**self.prompt.settings.length_penalty)

    def _may_improve(self, best: Tensor, length: int) -> bool:
        """Whether a running beam may become better than the worst that has ended, by transformers' rules."""
        settings = self.prompt.settings
        full = None not in self._ended
        if full and settings.early_stopping is True:
            return False
        if settings.early_stopping == "never" and settings.length_penalty > 0.0:
            length = settings.max_new_tokens
        return bool(self._normal(best, length) > (self._ended_scores.min() if full else NEVER))

    def _continue(self, parents: Sequence[int], tokens: Sequence[int], length: int) -> list[BeamMove]:
        """Let these continuations be the beams. The first that continues a beam stays in its row."""
        stays: dict[int, int] = {}
        for number, parent in enumerate(parents):
            stays.setdefault(parent, number)
        free = (number for number in range(len(self.beams)) if number not in stays)
        beams, moves = [], []
        for number, parent in enumerate(parents):
            beam = source = self.beams[parent]
            if stays[parent] != number:
                target = next(free)
                beam = self.beams[target]
                beam.tokens, beam.sampling = list(source.tokens), source.sampling.fork()
                moves.append((beam, source, int(self._common[target, parent])))
            beams.append(beam)
        for beam, token in zip(beams, tokens, strict=True):
            beam.tokens.append(token)
            beam.sampling.add(token)
        self.beams = beams
        self._common = self._common[np.ix_(parents, parents)]
        if moves:
            self._common[np.equal.outer(parents, parents)] = len(self.prompt.tokens) + length - 1
        return moves

    def _stopped(self, parents: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        assert self._stop is not None
        window = self._stop.window
        before = self.prompt.tokens[-window:]
        texts = [[*before, *self.beams[parent].tokens[-window:]] for parent in parents]
        return self._stop.ended([[*text, token][-window:] for text, token in zip(texts, tokens, strict=True)])


def advance(
    searches: Sequence[BeamSearch], logits: Tensor, now: float, late: Sequence[bool]
) -> list[list[BeamMove] | None]:
    """Add a token to each beam of the searches, by the logits [beams of all searches, vocabulary].

    Returns for each search what `BeamSearch.advance` returns; None and `failed` if transformers' objects fail.
    """
    beams = [beam for search in searches for beam in search.beams]
    ends = list(itertools.accumulate(len(search.beams) for search in searches))
    parts = [slice(end - len(search.beams), end) for search, end in zip(searches, ends, strict=True)]
    own = logits.float().log_softmax(-1)
    scores = own.clone() if any(search.library is not None for search in searches) else own
    penalize(scores, [beam.sampling for beam in beams])
    totals = torch.tensor([score for search in searches for score in search.scores], device=scores.device)[:, None]
    moves: list[list[BeamMove] | None] = []
    for search, part, is_late in zip(searches, parts, late, strict=True):
        try:
            candidates = _candidates(search, _changed(search, own[part], scores[part]) + totals[part])
        except Exception as error:  # processors raise any class
            if search.library is None or exhausted(error):
                raise
            search.failed = error
            moves.append(None)
        else:
            moves.append(search.advance(*candidates, now, is_late))
    return moves


def _changed(search: BeamSearch, own: Tensor, scores: Tensor) -> Tensor:
    """The log probabilities of the next tokens. `own`: the model's; `scores`: those with penalties and bans."""
    if search.library is not None:  # an object of transformers applies all settings, in its own order
        return search.library.scores([beam.tokens for beam in search.beams], own)
    return scores.log_softmax(-1) if search.prompt.settings.renormalize else scores


def _candidates(search: BeamSearch, scores: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """The continuations of a search's beams among which it chooses: their scores, beams and tokens.

    They are those with the best `scores` [beams, vocabulary], or drawn by them. `torch.topk`, here and in BeamSearch,
    orders equal scores as it does in transformers.
    """
    flat = scores.reshape(1, -1)
    if search.prompt.settings.do_sample:
        assert search.library is not None
        places = search.library.draw(flat, search.candidates)
        values = flat.gather(1, places)
    else:
        values, places = flat.topk(min(search.candidates, flat.shape[-1]))
    vocabulary = scores.shape[-1]
    numbers = places[0].tolist()
    return values[0].cpu(), [each // vocabulary for each in numbers], [each % vocabulary for each in numbers]

"""The choice of the next token of each row: one argmax for all greedy rows, one pass for all rows that sample.

A row's draw depends on its seed and its own distribution only. Logits differ in their last bits with the batch that
computes them, so a draw inverts the cumulative distribution in the order of token ids: a difference of 1e-7 moves the
borders by as much, whereas an order by probability could swap two tokens.
"""

import copy
import random
from collections.abc import Iterable, Sequence

import msgspec
import torch
from torch import Tensor

from serve.handlers.generation.parameters import GenerationSettings

# This many tokens have nearly all of the probability that top_p keeps; sorting all 50,000 takes 3 ms a row.
CANDIDATES = 1024
NO_TOKEN = -1
LOWEST = -9999.0  # in place of the logarithm of 0, which JSON cannot write; as in vLLM


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Natural logarithms of the model's own probabilities, before temperature, penalties and cuts."""

    token: int
    logprob: float
    top: list[tuple[int, float]]  # the most probable tokens, falling


class RowSampling:
    """How one row chooses its next token: its settings, its random numbers, and what the text so far forbids.

    `add` follows the row token by token. The tokens that penalties and bans must remember can take ten times the memory
    of the prompt, so they are held between `begin` and `end` only: a thousand long prompts may wait.
    """

    __slots__ = (
        *("_bans", "_end_tokens", "_length", "_prompt_length", "banned", "counts", "forced", "generator", "seen"),
        "settings",
    )

    def __init__(self, settings: GenerationSettings, end_tokens: frozenset[int] = frozenset(), number: int = 0) -> None:
        """`end_tokens`: those of the model. `number`: of the sequence in its request; each has its own draws."""
        self.settings = settings
        self.generator = random.Random(None if settings.seed is None else f"{settings.seed}/{number}")
        self.banned: Sequence[int] = ()  # tokens that may not come next
        self.forced: Sequence[int] = ()  # if any, one of these tokens comes next
        self.seen: set[int] | None = None  # tokens of the prompt and the text, for the repetition penalty
        self.counts: dict[int, int] = {}  # of tokens in the text, for the presence and frequency penalties
        self._end_tokens = end_tokens if settings.end_tokens is None else settings.end_tokens
        self._bans: BannedTokens | None = None
        self._prompt_length = 0
        self._length = 0

    @property
    def holds_history(self) -> bool:
        return self._bans is not None or self.seen is not None

    def begin(self, prompt: Sequence[int]) -> None:
        settings = self.settings
        if settings.suppress_tokens or settings.bad_words or settings.no_repeat_ngram:
            self._bans = BannedTokens(prompt, settings, self._end_tokens)
        if settings.repetition_penalty != 1.0:
            self.seen = set(prompt)
        self._prompt_length = len(prompt)
        self._update()

    def add(self, token: int) -> None:
        self._length += 1
        if self.seen is not None:
            self.seen.add(token)
        if self.settings.presence_penalty or self.settings.frequency_penalty:
            self.counts[token] = self.counts.get(token, 0) + 1
        if self._bans is not None:
            self._bans.add(token)
        if self._bans is not None or self.banned or self.forced or self.settings.forced_last:
            self._update()

    def fork(self) -> "RowSampling":
        """A copy that goes on apart."""
        same = copy.copy(self)
        same.seen = None if self.seen is None else set(self.seen)
        same.counts = dict(self.counts)
        same._bans = None if self._bans is None else self._bans.fork()
        return same

    def end(self) -> None:
        self._bans = self.seen = None

    def _update(self) -> None:
        """What the settings ban and force at this position, in the order of transformers: the last bans count."""
        settings, length = self.settings, self._length
        early = self._end_tokens if length < settings.min_new_tokens else ()
        banned = {*early, *(self._bans.next() if self._bans is not None else ())}
        # As in transformers, begin_suppress_tokens are for the token behind a forced one.
        first = 1 if settings.forced_first is not None and self._prompt_length == 1 else 0
        begin = settings.begin_suppress if length == first else ()
        self.forced = ()
        if first and length == 0 and settings.forced_first is not None:
            self.forced = (settings.forced_first,)
        if settings.forced_last and length == settings.max_new_tokens - 1:
            self.forced = settings.forced_last
        if self.forced:
            banned = set(settings.suppress_tokens)
        self.banned = sorted({*banned, *begin})


class BannedTokens:
    """The tokens that `suppress_tokens`, `bad_words_ids` and `no_repeat_ngram_size` forbid after the text so far."""

    def __init__(self, prompt: Sequence[int], settings: GenerationSettings, end_tokens: frozenset[int]) -> None:
        # As in transformers, a bad word that is one end token is ignored.
        words = [word for word in settings.bad_words if len(word) > 1 or word[0] not in end_tokens]
        self._always = {*settings.suppress_tokens, *(word[0] for word in words if len(word) == 1)}
        self._words = [(list(word[:-1]), word[-1]) for word in words if len(word) > 1]
        self._size = settings.no_repeat_ngram
        # By the beginning of an n-gram, the tokens that followed: in the prompt, which forks share, and in the text.
        self._before: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._after: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._window = max([self._size - 1, *(len(before) for before, _ in self._words)])
        self._last: list[int] = []  # the end of the text, `_window` tokens
        for token in prompt:
            self.add(token)
        self._before, self._after = self._after, {}

    def fork(self) -> "BannedTokens":
        """A copy that goes on apart."""
        same = copy.copy(self)
        same._after, same._last = dict(self._after), list(self._last)
        return same

    def add(self, token: int) -> None:
        if self._size and len(self._last) >= self._size - 1:
            beginning = self._beginning()
            self._after[beginning] = (*self._after.get(beginning, ()), token)
        self._last.append(token)
        del self._last[: max(0, len(self._last) - self._window)]

    def next(self) -> set[int]:
        """The tokens that may not come next."""
        banned = self._always | {
            token for before, token in self._words if self._last[len(self._last) - len(before) :] == before
        }
        if self._size and len(self._last) >= self._size - 1:
            beginning = self._beginning()
            banned.update(self._before.get(beginning, ()), self._after.get(beginning, ()))
        return banned

    def _beginning(self) -> tuple[int, ...]:
        return tuple(self._last[len(self._last) - (self._size - 1) :])


def choose(logits: Tensor, rows: Sequence[RowSampling]) -> tuple[list[int], dict[int, TokenLogprobs]]:
    """One token for each row of `logits` [rows, vocabulary], and the log probabilities of rows that ask for them.

    The token is NO_TOKEN where bans leave none. Changes `logits`.
    """
    # Of the model's own scores, so before penalties and bans change them.
    scores = {i: logits[i].clone() for i, row in enumerate(rows) if row.settings.logprobs is not None}
    penalize(logits, rows)
    sampling = [i for i, row in enumerate(rows) if row.settings.do_sample]
    if len(sampling) == len(rows):
        tokens = _draw(logits, rows)
    else:
        tokens = _best(logits)
        if sampling:
            drawn = _draw(logits[sampling], [rows[i] for i in sampling])
            for i, token in zip(sampling, drawn, strict=True):
                tokens[i] = token
    for i, row in enumerate(rows):
        # The chosen token first: the whole vocabulary takes 150 us a row.
        restricted = row.banned or row.settings.allowed_tokens is not None
        if restricted and bool(logits[i, tokens[i]] == -torch.inf) and bool((logits[i] == -torch.inf).all()):
            tokens[i] = NO_TOKEN
            scores.pop(i, None)
    return tokens, {
        i: token_logprobs(row[None], [tokens[i]], rows[i].settings.logprobs or 0)[0] for i, row in scores.items()
    }


def penalize(scores: Tensor, rows: Sequence[RowSampling]) -> None:
    """Apply the penalties, bans and forced tokens of each row to its scores, [rows, vocabulary], in place."""
    for i, row in enumerate(rows):
        settings = row.settings
        if row.seen:
            seen = torch.tensor(list(row.seen), device=scores.device)
            score = scores[i, seen]
            penalty = settings.repetition_penalty
            scores[i, seen] = torch.where(score < 0, score * penalty, score / penalty)
        if row.counts:
            counts = torch.tensor(list(row.counts.values()), device=scores.device)
            scores[i, list(row.counts)] -= settings.presence_penalty + settings.frequency_penalty * counts
        for token, bias in settings.logit_bias:
            scores[i, token] += bias
        if row.forced:
            scores[i] = -torch.inf
            scores[i, list(row.forced)] = 0.0
    # One write for the bans of all rows: each indexing call takes as long as a hundred tokens.
    vocabulary = scores.shape[-1]
    banned = [i * vocabulary + token for i, row in enumerate(rows) for token in row.banned]
    if banned:
        scores.view(-1).index_fill_(0, torch.tensor(banned, device=scores.device), -torch.inf)
    for i, row in enumerate(rows):
        if row.settings.allowed_tokens is not None:
            allowed = list(row.settings.allowed_tokens)
            kept = scores[i, allowed]
            scores[i] = -torch.inf
            scores[i, allowed] = kept


def token_logprobs(logits: Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """The log probabilities of `tokens`, one for each row of `logits` [rows, vocabulary], with `count` alternatives."""
    values = logits.float().log_softmax(-1).clamp(min=LOWEST)
    top = values.topk(min(count, values.shape[-1]), dim=-1)
    own = values.gather(-1, torch.tensor(tokens, device=values.device)[:, None])[:, 0].tolist()
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        TokenLogprobs(token, logprob, list(zip(ids, logprobs, strict=True)))
        for token, logprob, (ids, logprobs) in zip(tokens, own, rows, strict=True)
    ]


def _best(logits: Tensor) -> list[int]:
    # On a CPU numpy is faster: 0.1 ms for 16 rows of 50,257, where torch takes 1.4.
    best = logits.argmax(-1) if logits.is_cuda else logits.float().numpy().argmax(-1)
    tokens: list[int] = best.tolist()
    return tokens


def _draw(logits: Tensor, rows: Sequence[RowSampling]) -> list[int]:
    """Sample each row: temperature, then top_k, top_p and min_p, in the order of transformers."""
    device, settings = logits.device, [row.settings for row in rows]
    # Below 1e-6 the draw is the most probable token anyway, and 1e-300 would be a division by zero.
    scores = logits.float() / _column((max(each.temperature, 1e-6) for each in settings), device)
    vocabulary = scores.shape[-1]
    if any(each.top_k or each.top_p < 1.0 for each in settings):
        most = max(each.top_k or (vocabulary if each.top_p == 1.0 else CANDIDATES) for each in settings)
        kept = _cut(scores, settings, min(most, vocabulary))
        if kept is None:
            kept = _cut(scores, settings, vocabulary)
        assert kept is not None
        probabilities, ids = kept
    else:
        probabilities, ids = torch.softmax(scores.double(), -1), None
    if any(each.min_p for each in settings):
        shares = _column((each.min_p for each in settings), device, torch.float64)
        least = shares * probabilities.max(-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    totals = probabilities.cumsum(-1)
    points = _column((row.generator.random() for row in rows), device, torch.float64) * totals[:, -1:]
    places = torch.searchsorted(totals, points, right=True).clamp(max=probabilities.shape[-1] - 1)
    chosen: list[int] = (places if ids is None else ids.gather(-1, places)).view(-1).tolist()
    return chosen


def _cut(scores: Tensor, settings: Sequence[GenerationSettings], most: int) -> tuple[Tensor, Tensor] | None:
    """Probabilities and ids of the `most` probable tokens in the order of ids; cut tokens have 0.

    None if top_p needs more tokens.
    """
    top, ids = scores.topk(most, dim=-1)  # falling
    ranks = torch.arange(most, device=scores.device)
    limits = _column((each.top_k or most for each in settings), scores.device, torch.int64)
    top = top.double().masked_fill(ranks >= limits, -torch.inf)
    # top_k first, then top_p of the rest; without top_k the total is that of the whole vocabulary.
    whole = torch.tensor([[not each.top_k] for each in settings], device=scores.device)
    mass = top.logsumexp(-1, True)
    if not all(each.top_k for each in settings):  # 3 ms for 16 rows of 50,257
        mass = torch.where(whole, scores.double().logsumexp(-1, True), mass)
    probabilities = (top - mass).exp()
    below = probabilities.cumsum(-1) - probabilities
    shares = _column((each.top_p for each in settings), scores.device, torch.float64)
    if most < scores.shape[-1] and bool((whole & (below[:, -1:] + probabilities[:, -1:] < shares)).any()):
        return None
    probabilities = probabilities.masked_fill((below >= shares) & (shares < 1.0), 0.0)
    ids, order = ids.sort(-1)
    return probabilities.gather(-1, order), ids


def _column(values: Iterable[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(list(values), device=device, dtype=dtype)[:, None]

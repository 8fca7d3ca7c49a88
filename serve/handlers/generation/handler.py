"""Text generation with any causal language model transformers can load: one token a step for all who have joined."""

import time

import torch
from transformers import AutoModelForCausalLM

from serve.catalog.model_config import ModelConfig
from serve.errors import DoesNotFit
from serve.handlers.base import Job, Request
from serve.handlers.generation import decoder, transformers_generate, weights
from serve.handlers.generation.decoder import Decoder, Prefill
from serve.handlers.generation.options import TextGenerationOptions
from serve.handlers.generation.request import Decoding, Item
from serve.handlers.generation.sampling import choose, likelihoods, likely
from serve.handlers.generation.sequence import Joined, Row, Turns
from serve.handlers.huggingface import pretrained
from serve.http.addresses import INVOCATIONS, OPENAI

# Tokens of prompts worked on between two tokens of everybody else: longer ones are taken in pieces, so that those who
# stream wait for one piece only; shorter ones are put together, padded, up to as much.
PREFILL = 256


class TextGeneration:
    """Continuous batching: newcomers are prefilled apart, then their rows join the batch; ended rows leave it."""

    paths = (INVOCATIONS, *OPENAI)

    def __init__(self, model: ModelConfig[TextGenerationOptions]) -> None:
        self._model, self._tokenizer = pretrained.load(model, AutoModelForCausalLM)
        if model.options.pack and weights.packable(self._model):
            weights.pack(self._model)
        weights.fuse_activations(self._model)
        self._decoding = Decoding(model, self._tokenizer, self._model, decoder.position_limit(self._model))
        self._ends = decoder.end_tokens(self._model)
        self._max_batch = model.max_batch
        self._decoder = Decoder(self._model)
        self._turns = Turns(model.max_batch)
        self._prefill: Prefill | None = None
        self._prefilled: list[Row] = []  # whose prompts are in `_prefill`
        self._rows: list[Row] = []  # in the order of the decoder's rows
        self._step_s = 0.0

    def decode(self, request: Request) -> Item:
        return self._decoding.item(request)

    def room(self) -> int:
        return self._turns.room()

    def join(self, job: Job) -> None:
        self._turns.join(Joined(job, self._tokenizer, self._ends))

    def leave(self, job: Job) -> None:
        with torch.inference_mode():
            for joined in [joined for joined in self._turns.joined if joined.job is job]:
                self._forget(joined)

    def step(self) -> None:
        began = time.monotonic()
        try:
            with torch.inference_mode():
                self._end_late(began)
                self._decode()
                self._admit()
                self._leave_to_transformers()
        except BaseException as error:
            self._reset()
            if pretrained.out_of_memory(error):
                raise DoesNotFit("no memory for another token of this batch") from error
            raise
        self._step_s = time.monotonic() - began

    def _end_late(self, now: float) -> None:
        """Answer with what there is, where the next token would come too late."""
        for joined in list(self._turns.joined):
            # `generate` is given the deadline itself, and makes one token at least.
            late = now if joined.item.left else now + self._step_s
            if joined.deadline <= late and not (joined.item.left and len(joined.later) == len(joined.groups)):
                for row in joined.rows:
                    joined.close(row, "deadline")
                joined.ended()
                self._forget(joined)

    def _decode(self) -> None:
        """One token for every row of the batch."""
        if self._rows:
            logits = self._decoder.step([row.tokens[-1] for row in self._rows])
            self._take(self._rows, logits)

    def _admit(self) -> None:
        """Prefill who waits, as far as a step goes; their first token is made here."""
        if self._prefill is None:
            self._prefilled = self._next()
            if not self._prefilled:
                return
            self._prefill = self._decoder.begin([row.prompt.tokens for row in self._prefilled])
        try:
            logits = self._decoder.advance(self._prefill, PREFILL)
            if logits is None:
                return
            self._decoder.join(self._prefill)
        except Exception as error:
            if not pretrained.out_of_memory(error):
                raise
            for joined in {id(row.owner): row.owner for row in self._prefilled}.values():
                self._forget(joined)
                joined.job.fail(DoesNotFit("no memory for a prompt of this length beside the others"))
            self._prefill, self._prefilled = None, []
            return
        rows, self._prefill, self._prefilled = self._prefilled, None, []
        self._rows += rows
        self._take(rows, logits)

    def _next(self) -> list[Row]:
        """Who is prefilled together: in order of arrival, as long as padding stays small."""
        chosen: list[Row] = []
        room = self._max_batch - len(self._rows)
        self._turns.feed()
        waiting = self._turns.waiting
        for row in waiting[:room]:
            lengths = [len(each.prompt.tokens) for each in (*chosen, row)]
            if chosen and (max(lengths) * len(lengths) > PREFILL or sum(lengths) * 2 < max(lengths) * len(lengths)):
                break
            chosen.append(row)
        del waiting[: len(chosen)]
        for row in chosen:
            row.owner.begin()
            row.begin()
        return chosen

    def _take(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Choose the next token of `rows` from their logits and hand it on."""
        choices = [row.choice for row in rows]
        told = likelihoods(logits, choices)
        tokens = choose(logits, choices)
        for i, logprobs in told.items():
            rows[i].likely.append(likely(logprobs, tokens[i], choices[i].likeliest or 0))
        now = time.monotonic()
        for row, token in zip(list(rows), tokens, strict=True):
            late = row.owner.deadline <= now + self._step_s
            row.owner.add(row, token, "deadline" if late else "length" if row.until <= now else None)
        for row in list(rows):
            if row.reason is not None:
                self._drop(row)
        self._turns.forget_ended()

    def _leave_to_transformers(self) -> None:
        """One `generate`: the first prompt that waits for it, and all that can share its batch."""
        prompts = self._turns.together(transformers_generate.compatible)
        if not prompts:
            return
        for joined, _ in prompts:
            joined.begin()
        made = transformers_generate.generate(
            self._model,
            self._tokenizer,
            [joined.item.prompts[number] for joined, number in prompts],
            [joined.deadline for joined, _ in prompts],
        )
        now = time.monotonic()
        for (joined, number), sequences in zip(prompts, made, strict=True):
            for row, tokens in zip(joined.groups[number], sequences, strict=True):
                row.tokens = tokens
                joined.close(row, "deadline" if joined.deadline <= now else "length")
        for joined in dict.fromkeys(joined for joined, _ in prompts):
            joined.ended()
        self._turns.forget_ended()

    def _drop(self, row: Row) -> None:
        """Take a row out of the batch."""
        row.leave()
        number = self._rows.index(row)
        self._decoder.leave(number)
        self._rows[number] = self._rows[-1]
        self._rows.pop()

    def _forget(self, joined: Joined) -> None:
        self._turns.forget(joined)
        if self._prefill is not None and any(row.owner is joined for row in self._prefilled):
            # Whoever shared its prefill begins again: rare, and simpler than cutting a cache in two.
            self._turns.waiting[:0] = [row for row in self._prefilled if row.owner is not joined]
            self._prefill, self._prefilled = None, []
        for row in [row for row in self._rows if row.owner is joined]:
            self._drop(row)

    def _reset(self) -> None:
        self._turns.clear()
        self._rows = []
        self._prefill, self._prefilled = None, []
        self._decoder.reset()

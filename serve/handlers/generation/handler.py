"""Text generation with any causal language model of transformers: each step makes one token for every running row."""

import time
from collections.abc import Callable, Hashable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from serve.catalog.model_config import ModelConfig
from serve.errors import DoesNotFit
from serve.failures import exhausted, lost
from serve.handlers.base import Job, Request
from serve.handlers.generation import decoder, transformers_generate, weights
from serve.handlers.generation.decoder import Decoder, TokenSteps, add_end_token, end_tokens
from serve.handlers.generation.lone_decoder import LoneDecoder
from serve.handlers.generation.openai import OpenAIReader
from serve.handlers.generation.options import TextGenerationOptions
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.passes import merge_products, pass_of
from serve.handlers.generation.request import GenerationItem, InvocationReader, PromptReader
from serve.handlers.generation.sampling import NO_TOKEN, choose, token_logprobs
from serve.handlers.generation.scheduler import PREFILL_TOKENS, Scheduler
from serve.handlers.generation.sequence import ActiveRequest, GeneratedSequence
from serve.handlers.generation.text_decoder import TokenTexts
from serve.handlers.huggingface import bodies, independence, pretrained
from serve.http.addresses import CHAT, COMPLETIONS, INVOCATIONS


class TextGeneration:
    """Continuous batching: new prompts are prefilled apart, then join the batch as rows; ended rows leave it."""

    paths = (INVOCATIONS, CHAT, COMPLETIONS)

    def __init__(self, model: ModelConfig[TextGenerationOptions]) -> None:
        self._model, self._tokenizer = pretrained.load(model, AutoModelForCausalLM)
        alone = decoder.obstacle(self._model)
        self._texts = TokenTexts(self._tokenizer)
        add_end_token(self._model, self._tokenizer.eos_token_id)
        prompts = PromptReader(model, self._texts, self._model)
        self._invocations, self._openai = InvocationReader(prompts), OpenAIReader(prompts)
        self._end_tokens = end_tokens(self._model)
        self._decoder: TokenSteps
        self._compatible: Callable[[Prompt], Hashable]  # prompts with equal keys share a `generate`
        if alone is None:
            if model.options.pack and weights.packable(self._model):
                merge_products(self._model)
                weights.pack(self._model)
            weights.fuse_activations(self._model)
            self._max_batch = model.max_batch
            self._decoder, self._compatible = Decoder(pass_of(self._model)), transformers_generate.compatible
        else:  # the model as transformers runs it, one sequence at a time
            independence.report(model.name, self._model, alone)
            self._max_batch = 1
            lone = LoneDecoder(self._model)
            lone.check()
            self._decoder, self._compatible = lone, id
        self._scheduler = Scheduler(self._max_batch)
        self._prefill: Any = None  # of `_decoder`
        self._prefilled: list[GeneratedSequence] = []  # the rows of `_prefill`
        self._rows: list[GeneratedSequence] = []  # the rows of `_decoder`
        self._step_s = 0.0  # duration of the last step

    def decode(self, request: Request) -> GenerationItem:
        if request.path == INVOCATIONS and not self._openai.reads(request):
            return self._invocations.item(request)
        return self._openai.item(request)

    def room(self) -> int:
        return self._scheduler.room()

    def join(self, job: Job) -> None:
        self._scheduler.join(ActiveRequest(job, self._texts, self._end_tokens))

    def leave(self, job: Job) -> None:
        with torch.inference_mode():
            for request in self._scheduler.requests_of(job):
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
        for request in self._scheduler:
            generate = request.item.needs_generate
            if generate and not request.begun:
                continue  # `generate` gets the deadline itself, and makes one token at least
            if request.deadline <= (now if generate else now + self._step_s):
                request.end(request.sequences, "deadline")
                self._remove(request)

    def _decode(self) -> None:
        """Make one token for each row of the batch."""
        if self._rows:
            logits = self._decoder.step([row.tokens[-1] for row in self._rows])
            self._append(self._rows, logits)

    def _admit(self) -> None:
        """Prefill waiting prompts, up to PREFILL_TOKENS; the first token of each is made here."""
        if self._prefill is None:
            self._prefilled = self._scheduler.next_prefill(self._max_batch - len(self._rows))
            if not self._prefilled:
                return
            for row in self._prefilled:
                row.owner.begin()
                row.begin()
            self._prefill = self._decoder.begin([row.prompt.tokens for row in self._prefilled])
            if any(row.prompt.settings.prompt_logprobs for row in self._prefilled):
                self._prefill.score = self._score
        try:
            logits = self._decoder.advance(self._prefill, PREFILL_TOKENS)
            if logits is None:
                return
            self._decoder.join(self._prefill)
        except Exception as error:
            if (resource := exhausted(error)) is None:
                raise
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
        self._rows += rows
        self._append(rows, logits)

    def _score(self, start: int, logits: torch.Tensor) -> None:
        """Add the log probabilities of the prompts' tokens behind the columns from `start` on."""
        for row, scores in zip(self._prefilled, logits, strict=True):
            settings, following = row.prompt.settings, row.prompt.tokens[start + 1 : start + 1 + len(scores)]
            if settings.prompt_logprobs:
                row.prompt_logprobs += token_logprobs(scores[: len(following)], following, settings.logprobs or 0)

    def _append(self, rows: list[GeneratedSequence], logits: torch.Tensor) -> None:
        """Choose the next token of each row from its logits; rows that have ended leave the batch."""
        tokens, logprobs = choose(logits, [row.sampling for row in rows])
        now = time.monotonic()
        for i, (row, token) in enumerate(zip(list(rows), tokens, strict=True)):
            if row.prompt.settings.max_new_tokens == 0:  # an echo alone
                row.owner.end([row], "length")
                continue
            if token == NO_TOKEN:
                row.owner.end([row], "stop")
                continue
            if i in logprobs:
                row.logprobs.append(logprobs[i])
            row.owner.add(row, token, now, past_deadline=row.owner.deadline <= now + self._step_s)
        for row in list(rows):
            if row.finish_reason is not None:
                self._drop(row)
        self._scheduler.remove_ended()

    def _generate(self) -> None:
        """Run one `generate` for the first request that needs it and all that can share its batch."""
        units = self._scheduler.next_generate(self._compatible)
        if not units:
            return
        for unit in units:
            unit[0].owner.begin()
        self._decoder.forget()
        prompts = [unit[0].prompt for unit in units]
        try:
            made = transformers_generate.generate(
                self._model, self._tokenizer, prompts, [unit[0].owner.deadline for unit in units]
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
        self._scheduler.remove_ended()

    def _drop(self, row: GeneratedSequence) -> None:
        """Take a row out of the batch; as in the decoder, the last row takes its place."""
        number = self._rows.index(row)
        self._decoder.leave(number)
        self._rows[number] = self._rows[-1]
        self._rows.pop()

    def _remove(self, request: ActiveRequest) -> None:
        self._scheduler.remove(request)
        if any(row.owner is request for row in self._prefilled):
            # The other prompts of the prefill begin again: rare, and simpler than splitting a cache.
            self._scheduler.put_back([row for row in self._prefilled if row.owner is not request])
            self._prefill, self._prefilled = None, []
        for row in [row for row in self._rows if row.owner is request]:
            self._drop(row)

    def _reset(self) -> None:
        self._scheduler.clear()
        self._rows = []
        self._prefill, self._prefilled = None, []
        self._decoder.reset()

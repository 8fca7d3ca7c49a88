"""Encoder-decoder language models (BART, T5, Pegasus...): summaries, translations, and other text from text.

transformers 5 has no pipeline for them; requests and answers have the shapes of the pipelines of version 4.
"""

import time
from collections.abc import Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest

import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig, StoppingCriteriaList

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, DoesNotFit, ServeError, TooLate
from serve.failures import exhausted, lost
from serve.handlers.base import Reply, Request
from serve.handlers.generation import encoder_decoder
from serve.handlers.generation.transformers_generate import DeadlineCriteria
from serve.handlers.huggingface import bodies, independence, pretrained
from serve.handlers.huggingface.options import HuggingFaceOptions
from serve.handlers.huggingface.pass_state import PassState
from serve.handlers.seq2seq.request import Seq2SeqParameters, generate_arguments, language_token, parse
from serve.http import media

_KEYS = {"summarization": "summary_text", "translation": "translation_text"}  # by task; else generated_text
_DEFAULT_TASK = "summarization"


@dataclass(slots=True, eq=False)  # compared and hashed by identity
class Seq2SeqItem:
    sequences: list[list[int]]  # tokens of each text
    parameters: Seq2SeqParameters
    config: GenerationConfig
    deadline: float
    single: bool
    content_type: str
    answers: list[list[str]] = field(default_factory=list)  # generated texts of each sequence
    pending: list[int] = field(default_factory=list)  # sequences without an answer, by length: little padding

    def __post_init__(self) -> None:
        self.answers = [[] for _ in self.sequences]
        self.pending = sorted(range(len(self.sequences)), key=lambda index: len(self.sequences[index]))


class Seq2Seq:
    """One `generate` for each batch of requests with equal parameters, or for each text of an unproven model."""

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        self._network, self._tokenizer = pretrained.load(
            model, AutoModelForSeq2SeqLM, obstacle=encoder_decoder.obstacle
        )
        self._model = model
        self._max_batch = max(1, model.max_batch)
        task = model.task or _DEFAULT_TASK
        self._key = _KEYS.get(task.partition("_")[0], "generated_text")
        config = self._network.config
        # Older models keep the settings and the prompt of each task in config.json, and the pipelines used them.
        settings = (getattr(config, "task_specific_params", None) or {}).get(task) or {}
        self._prefix = str(settings.get("prefix") or "")
        defaults = {key: settings[key] for key in Seq2SeqParameters.__struct_fields__ if key in settings}
        self._defaults = deepcopy(self._network.generation_config)
        self._defaults.update(**defaults)
        # `generate` would fill in values from here that a request's config leaves out on purpose.
        self._network.generation_config = GenerationConfig()
        self._positions = _positions(config, "decoder")
        self._limit = min(_positions(config, "encoder") or 1 << 20, self._tokenizer.model_max_length)
        self._vocabulary: int = config.get_text_config(decoder=True).vocab_size
        self._pad = next(
            (each for each in (self._tokenizer.pad_token_id, self._defaults.pad_token_id) if each is not None), 0
        )
        self._language = getattr(self._tokenizer, "src_lang", None)
        self._config = lru_cache(maxsize=256)(self._make_config)
        self._state: PassState | None = None  # of a model whose texts may not share a `generate`
        if reason := encoder_decoder.obstacle(self._network):
            independence.report(model.name, self._network, reason)
            self._state, self._max_batch = PassState(self._network), 1
            self._check()

    def decode(self, request: Request) -> Seq2SeqItem:
        content_type = bodies.accepted(request, self._model, (media.JSON, media.CSV))
        texts, single, parameters = parse(request, self._model.model_field, self._vocabulary)
        config = self._config(parameters)
        sequences = []
        for text in texts:
            bodies.check_deadline(request.deadline)
            sequences.append(self._tokens(text, parameters))
        return Seq2SeqItem(sequences, parameters, config, request.deadline, single, content_type)

    def compatible(self, item: Seq2SeqItem) -> Hashable:
        if item.config.do_sample and item.parameters.seed is not None:
            return item  # a seed makes the answer repeatable only in a batch of its own
        return item.parameters

    def predict(self, items: Sequence[Seq2SeqItem]) -> Sequence[Reply | ServeError | None]:
        first, parameters = items[0], items[0].parameters
        if first.config.do_sample:  # a new seed where the request has none: the last request's seed is still set
            done = len(first.sequences) - len(first.pending)
            torch.manual_seed(torch.seed() if parameters.seed is None else parameters.seed + done)
        rows = max(first.config.num_beams or 1, first.config.num_return_sequences or 1)
        most = max(1, self._max_batch // rows)
        if parameters.encoder_repetition_penalty or parameters.encoder_no_repeat_ngram_size:
            most = 1  # both would treat padding as text
        if batch := _batch(items, most):
            self._generate(batch)
        return [self._outcome(item) for item in items]

    def _generate(self, batch: list[tuple[Seq2SeqItem, int]]) -> None:
        sequences = [item.sequences[index] for item, index in batch]
        width = max(map(len, sequences))
        ids = torch.tensor([each + [self._pad] * (width - len(each)) for each in sequences])
        mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in sequences])
        criteria = DeadlineCriteria([item.deadline for item, _ in batch])
        if self._state is not None:
            self._state.restore()
        try:
            with torch.inference_mode():
                output = self._network.generate(
                    input_ids=ids.to(self._network.device),
                    attention_mask=mask.to(self._network.device),
                    generation_config=batch[0][0].config,
                    stopping_criteria=StoppingCriteriaList([criteria]),
                )
        except Exception as error:
            if resource := exhausted(error):
                raise DoesNotFit(
                    f"generating from {len(batch)} texts of up to {width} tokens failed: {resource.message}",
                    hint="send fewer or shorter texts, or set fewer beams",
                ) from error
            if lost(error) or batch[0][0].parameters == Seq2SeqParameters():
                raise
            raise bodies.refused_by_generate(error) from error
        spaces = batch[0][0].parameters.clean_up_tokenization_spaces
        cleanup = {} if spaces is None else {"clean_up_tokenization_spaces": spaces}
        ends = _ends(batch[0][0].config)
        # `generate` pads ended rows, and not every tokenizer knows the padding as a special token.
        rows = [_until(row, ends) for row in output.tolist()]
        texts = self._tokenizer.batch_decode(rows, skip_special_tokens=True, **cleanup)
        each = len(texts) // len(batch)
        for position, (item, index) in enumerate(batch):
            if not criteria.passed[position]:
                item.answers[index] = texts[position * each : (position + 1) * each]
            item.pending.remove(index)

    def _check(self) -> None:
        """Generate two tokens. Raises ModelUnusable if transformers cannot."""
        config = deepcopy(self._defaults)
        config.update(max_new_tokens=2, max_length=None, min_length=0, num_beams=1)
        ids = torch.tensor([[0, 1]], device=self._network.device)
        try:
            with torch.inference_mode():
                self._network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        except Exception as error:  # models raise any class
            if exhausted(error):
                raise
            raise independence.unservable(self._network, error) from error

    def _outcome(self, item: Seq2SeqItem) -> Reply | ServeError | None:
        if item.pending and item.deadline > time.monotonic():
            return None
        if not all(item.answers):
            return TooLate(
                "the deadline passed before all texts were generated", hint="send fewer texts, or lower max_new_tokens"
            )
        answers = [[{self._key: text} for text in texts] for texts in item.answers]
        # As in the pipelines: one text has a list of answers; several texts have one answer each, or a list each.
        one_each = all(len(each) == 1 for each in answers)
        try:
            answer = answers[0] if item.single else [each[0] for each in answers] if one_each else answers
            return bodies.reply(answer, item.content_type)
        except ServeError as error:
            return error

    def _tokens(self, text: str, parameters: Seq2SeqParameters) -> list[int]:
        cut = parameters.truncates
        text = self._prefix + text
        if len(text) > bodies.TOKEN_CHARACTERS * self._limit:
            if not cut:
                raise bodies.too_long(f"{len(text)} characters", self._limit)
            text = text[: bodies.TOKEN_CHARACTERS * self._limit]
        if parameters.src_lang is not None:
            language_token(self._tokenizer, "src_lang", parameters.src_lang)
        if self._language is not None:
            self._tokenizer.src_lang = parameters.src_lang or self._language
        ids: list[int] = self._tokenizer(
            text, truncation=cut, max_length=self._limit if cut else None, verbose=False
        ).input_ids
        if len(ids) > self._limit:
            raise bodies.too_long(f"{len(ids)} tokens", self._limit)
        if not ids:
            raise bodies.no_tokens()
        return ids

    def _make_config(self, parameters: Seq2SeqParameters) -> GenerationConfig:
        """The model's generation config with the request's parameters. Raises BadRequest for a contradiction."""
        asked = generate_arguments(parameters)
        for key in ("max_length", "max_new_tokens"):
            if self._positions and asked.get(key, 0) > self._positions:
                raise BadRequest(f"parameters.{key} is {asked[key]}; the model has {self._positions} positions")
        config = deepcopy(self._defaults)
        if parameters.tgt_lang is not None:
            config.forced_bos_token_id = language_token(self._tokenizer, "tgt_lang", parameters.tgt_lang)
        # transformers only warns if both are set, and takes max_new_tokens.
        if "max_new_tokens" in asked:
            config.max_length = None
        elif "max_length" in asked:
            config.max_new_tokens = None
        try:
            config.update(**asked)
        except ValueError as error:
            raise BadRequest(f"the parameters contradict each other: {str(error)[:500]}") from error
        if config.max_new_tokens is None and config.max_length == 1:
            raise BadRequest(
                "parameters.max_length is 1, which leaves no new token: it counts the token that begins a text",
                hint="set 2 or more",
            )
        longest = config.max_new_tokens or config.max_length
        shortest = config.min_new_tokens or config.min_length or 0
        if longest is not None and shortest > longest:
            if asked.keys() & {"min_length", "min_new_tokens"}:
                raise BadRequest(f"the minimum length, {shortest}, is over the maximum length, {longest}")
            config.min_length = longest  # the request's maximum is under the model's own minimum
        return config


def _ends(config: GenerationConfig) -> frozenset[int]:
    ends = config.eos_token_id
    return frozenset([] if ends is None else ends if isinstance(ends, list) else [ends])


def _until(row: list[int], ends: frozenset[int]) -> list[int]:
    """A row up to its end token. The first token begins the text, and may be the same one."""
    return row[: next((at + 1 for at in range(1, len(row)) if row[at] in ends), len(row))]


def _positions(config: PreTrainedConfig, part: str) -> int | None:
    """The positions of the encoder or the decoder; None if there is no limit. `part`: encoder or decoder."""
    own = getattr(config, part, None)  # the config of one part, where the two are models of their own
    configs = [config, own] if isinstance(own, PreTrainedConfig) else [config]
    names = ("max_position_embeddings", f"max_{part}_position_embeddings")
    limits = [getattr(each, name, None) for each in configs for name in names]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def _batch(items: Sequence[Seq2SeqItem], most: int) -> list[tuple[Seq2SeqItem, int]]:
    """Up to `most` sequences for one `generate`, taken from the items in turn, so that each item advances."""
    now = time.monotonic()
    rounds = zip_longest(*([(item, index) for index in item.pending[:most]] for item in items if item.deadline > now))
    return [each for turn in rounds for each in turn if each is not None][:most]

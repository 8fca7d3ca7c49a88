"""Encoder-decoder language models (BART, T5, Pegasus...): summaries, translations, any text from text.

transformers 5 has no pipeline for these; the request and the answer have the shapes its pipelines had.
"""

import time
from collections.abc import Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest

import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, StoppingCriteriaList

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, DoesNotFit, ServeError, TooLate
from serve.handlers.base import Reply, Request
from serve.handlers.huggingface import bodies, pretrained
from serve.handlers.huggingface.options import HuggingFaceOptions
from serve.handlers.huggingface.pretrained import Deadlines
from serve.handlers.seq2seq import request as languages
from serve.handlers.seq2seq.request import Parameters, arguments, parse

_KEYS = {"summarization": "summary_text", "translation": "translation_text"}  # by task; else generated_text
_TASK = "summarization"
_CHARACTERS = 64  # no token is longer; what is past so many for each token we may read is not worth tokenizing


@dataclass(slots=True, eq=False)  # compared and hashed by identity
class Item:
    sequences: list[list[int]]
    parameters: Parameters
    config: GenerationConfig
    deadline: float
    single: bool
    content_type: str
    texts: list[list[str]] = field(default_factory=list)  # answers, by sequence
    waiting: list[int] = field(default_factory=list)  # sequences without an answer, by length: little padding

    def __post_init__(self) -> None:
        self.texts = [[] for _ in self.sequences]
        self.waiting = sorted(range(len(self.sequences)), key=lambda index: len(self.sequences[index]))


class Summarization:
    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        self._network, self._tokenizer = pretrained.load(model, AutoModelForSeq2SeqLM)
        self._model = model
        self._max_batch = max(1, model.max_batch)
        self._key = _KEYS.get((model.task or _TASK).partition("_")[0], "generated_text")
        config = self._network.config
        # Older models keep the settings and the prompt of each task here; the pipelines honoured them.
        settings = (getattr(config, "task_specific_params", None) or {}).get(model.task or _TASK) or {}
        self._prefix = str(settings.get("prefix") or "")
        defaults = {key: settings[key] for key in Parameters.__struct_fields__ if key in settings}
        self._defaults = deepcopy(self._network.generation_config)
        self._defaults.update(**defaults)
        self._network.generation_config = GenerationConfig()  # else `generate` fills in what we left out on purpose
        self._positions = getattr(config, "max_position_embeddings", None)
        self._limit = min(self._positions or 1 << 20, self._tokenizer.model_max_length)
        self._pad = next(
            (each for each in (self._tokenizer.pad_token_id, self._defaults.pad_token_id) if each is not None), 0
        )
        self._language = getattr(self._tokenizer, "src_lang", None)
        self._config = lru_cache(maxsize=256)(self._make_config)

    def decode(self, request: Request) -> Item:
        content_type = bodies.accepted(request, self._model, (bodies.JSON, bodies.CSV))
        inputs, single, parameters = parse(request, self._model.model_field, self._network.config.vocab_size)
        config = self._config(parameters)
        sequences = []
        for text in inputs:
            if time.monotonic() >= request.deadline:
                raise TooLate("the deadline passed while the texts were read", hint="send fewer of them")
            sequences.append(self._tokens(text, parameters))
        return Item(sequences, parameters, config, request.deadline, single, content_type)

    def compatible(self, item: Item) -> Hashable:
        if item.config.do_sample and item.parameters.seed is not None:
            return item  # what the seed promises holds only for a batch of its own
        return item.parameters

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError | None]:
        first, asked = items[0], items[0].parameters
        if first.config.do_sample:  # without a seed: not what the last seeded request left behind
            done = len(first.sequences) - len(first.waiting)
            torch.manual_seed(torch.seed() if asked.seed is None else asked.seed + done)
        beams = max(first.config.num_beams or 1, first.config.num_return_sequences or 1)
        together = max(1, self._max_batch // beams)
        if asked.encoder_repetition_penalty or asked.encoder_no_repeat_ngram_size:
            together = 1  # they would take a neighbour's padding for text
        batch = _in_turn(items, together)
        if batch:
            self._generate(batch)
        return [self._outcome(item) for item in items]

    def _generate(self, batch: list[tuple[Item, int]]) -> None:
        sequences = [item.sequences[index] for item, index in batch]
        width = max(map(len, sequences))
        ids = torch.tensor([each + [self._pad] * (width - len(each)) for each in sequences])
        mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in sequences])
        config = batch[0][0].config
        deadline = Deadlines([item.deadline for item, _ in batch])
        try:
            with torch.inference_mode():
                output = self._network.generate(
                    input_ids=ids.to(self._network.device),
                    attention_mask=mask.to(self._network.device),
                    generation_config=config,
                    stopping_criteria=StoppingCriteriaList([deadline]),
                )
        except torch.OutOfMemoryError as error:
            raise DoesNotFit("the accelerator has no room for these texts") from error
        spaces = batch[0][0].parameters.clean_up_tokenization_spaces
        tidy = {} if spaces is None else {"clean_up_tokenization_spaces": spaces}
        texts = self._tokenizer.batch_decode(output, skip_special_tokens=True, **tidy)
        each = len(texts) // len(batch)
        for position, (item, index) in enumerate(batch):
            if not deadline.passed[position]:
                item.texts[index] = texts[position * each : (position + 1) * each]
        for item, index in batch:
            item.waiting.remove(index)

    def _outcome(self, item: Item) -> Reply | ServeError | None:
        if item.waiting and item.deadline > time.monotonic():
            return None
        if not all(item.texts):
            return TooLate("the text was not finished before the deadline", hint="ask for fewer tokens or fewer texts")
        answers = [[{self._key: text} for text in texts] for texts in item.texts]
        # As the pipelines had it: one text has a list of answers, several have one each, or a list each.
        one_each = all(len(each) == 1 for each in answers)
        try:
            answer = answers[0] if item.single else [each[0] for each in answers] if one_each else answers
            return bodies.reply(answer, item.content_type)
        except ServeError as error:
            return error

    def _tokens(self, text: str, parameters: Parameters) -> list[int]:
        cut = parameters.truncation not in (None, False, "do_not_truncate")
        text = self._prefix + text
        if len(text) > _CHARACTERS * self._limit:
            if not cut:
                raise self._too_long(f"{len(text)} characters")
            text = text[: _CHARACTERS * self._limit]
        if parameters.src_lang is not None:
            languages.code(self._tokenizer, "src_lang", parameters.src_lang)
        if self._language is not None:
            self._tokenizer.src_lang = parameters.src_lang or self._language
        ids: list[int] = self._tokenizer(
            text, truncation=cut, max_length=self._limit if cut else None, verbose=False
        ).input_ids
        if len(ids) > self._limit:
            raise self._too_long(f"{len(ids)} tokens")
        if not ids:
            raise BadRequest("a text is empty, and this model has no token for an empty one", hint="send a text")
        return ids

    def _too_long(self, length: str) -> BadRequest:
        return BadRequest(
            f"inputs has {length}; the model reads {self._limit} tokens",
            hint='send less, or "parameters": {"truncation": true} to have the end cut off',
        )

    def _make_config(self, parameters: Parameters) -> GenerationConfig:
        asked = arguments(parameters)
        for key in ("max_length", "max_new_tokens"):
            if self._positions and asked.get(key, 0) > self._positions:
                raise BadRequest(f"{key} is {asked[key]}; the model has positions for {self._positions}")
        config = deepcopy(self._defaults)
        if parameters.tgt_lang is not None:
            config.forced_bos_token_id = languages.code(self._tokenizer, "tgt_lang", parameters.tgt_lang)
        if "max_new_tokens" in asked:  # the model's own limit would only be warned about; likewise below
            config.max_length = None
        elif "max_length" in asked:
            config.max_new_tokens = None
        try:
            config.update(**asked)
        except ValueError as error:
            raise BadRequest(f"the parameters do not go together: {str(error)[:500]}") from error
        if config.max_new_tokens is None and config.max_length == 1:
            raise BadRequest("max_length is 1 and counts the token that begins a text", hint="ask for 2 or more")
        longest = config.max_new_tokens or config.max_length
        shortest = config.min_new_tokens or config.min_length or 0
        if longest is not None and shortest > longest:
            if asked.keys() & {"min_length", "min_new_tokens"}:
                raise BadRequest(f"the least length asked for, {shortest}, is over the greatest, {longest}")
            config.min_length = longest  # a model's own least gives way to a short summary asked for
        return config


def _in_turn(items: Sequence[Item], most: int) -> list[tuple[Item, int]]:
    """So many sequences for one `generate`, as many of each item as of the others while it has any."""
    now = time.monotonic()
    rounds = zip_longest(*([(item, index) for index in item.waiting[:most]] for item in items if item.deadline > now))
    return [each for turn in rounds for each in turn if each is not None][:most]

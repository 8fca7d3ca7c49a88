"""Encoder-decoder language models (BART, T5, Pegasus...): summaries, translations, and other text from text.

transformers 5 has no pipeline for them; requests and answers have the shapes of the pipelines of version 4.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache

from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, TooLate
from serve.handlers.base import Job, Reply, Request
from serve.handlers.generation import encoder_decoder
from serve.handlers.generation.encoder_decoder import EncoderDecoderPrompt
from serve.handlers.generation.engine import Engine
from serve.handlers.generation.lone_decoder import LoneDecoder
from serve.handlers.generation.options import TextGenerationOptions
from serve.handlers.generation.output import Generated, last_event, stream_type, token_event
from serve.handlers.generation.parameters import GenerationSettings, Prompt
from serve.handlers.generation.request import GenerationItem
from serve.handlers.generation.text_decoder import TokenTexts
from serve.handlers.huggingface import bodies, independence, pretrained
from serve.handlers.seq2seq.request import (
    Seq2SeqParameters,
    check_stream,
    generate_arguments,
    language_token,
    parse,
    resolve,
)
from serve.http import media

_KEYS = {"summarization": "summary_text", "translation": "translation_text"}  # by task; else generated_text
_DEFAULT_TASK = "summarization"


class Seq2SeqForm:
    """The form of an answer: the key of the task, and the shapes of the pipelines; streams as those of text generation.

    Here the text of a sequence is that of all its tokens, the decoder's first and the last included: transformers'
    pipelines decode them all, so that a first or last token that is not special shows in the text.
    """

    def __init__(self, key: str, texts: TokenTexts, single: bool, content_type: str, streams: bool) -> None:
        self._content_type = content_type
        self._streams = streams
        self._key = key
        self._texts = texts
        self._single = single
        self._stream = texts.stream()
        self._waits = ""  # text of the stream that no chunk has had
        self._ended = False  # whether the chunks have all text

    @property
    def content_type(self) -> str:
        return self._content_type

    @property
    def streams(self) -> bool:
        return self._streams

    def opening(self, sequences: Sequence[Generated]) -> bytes:
        (sequence,) = sequences
        self._waits = self._stream.feed(sequence.prompt.tokens)
        return b""

    def token(self, sequence: Generated, piece: str) -> bytes:
        self._waits += self._stream.feed(sequence.tokens[-1:])
        return self._chunk(sequence, last=sequence.finish_reason is not None)

    def rest(self, sequence: Generated, piece: str) -> bytes:
        return self._chunk(sequence, last=True)

    def closing(self, sequences: Sequence[Generated]) -> bytes:
        (sequence,) = sequences
        self._waits += "" if self._ended else self._stream.rest(ends=True)
        rest = self._chunk(sequence) if self._waits else b""
        return rest + last_event(self.content_type, sequence, self._text(sequence))

    def _chunk(self, sequence: Generated, last: bool = False) -> bytes:
        """The text that is final; at the `last` token, all text."""
        text = self._waits + (self._stream.rest(ends=True) if last else "")
        self._waits, self._ended = "", last
        return token_event(self.content_type, sequence, text)

    def whole(self, groups: Sequence[Sequence[Generated]]) -> Reply:
        if not all(sequence.tokens for group in groups for sequence in group if sequence.finish_reason == "deadline"):
            raise TooLate(
                "the deadline passed before all texts were begun", hint="send fewer texts, or lower max_new_tokens"
            )
        answers = [[self._entry(sequence) for sequence in group] for group in groups]
        # As in the pipelines: one text has a list of answers; several texts have one answer each, or a list each.
        one_each = all(len(each) == 1 for each in answers)
        answer = answers[0] if self._single else [each[0] for each in answers] if one_each else answers
        return bodies.reply(answer, self.content_type)

    def _text(self, sequence: Generated) -> str:
        return self._texts.decode([*sequence.prompt.tokens, *sequence.tokens])

    def _entry(self, sequence: Generated) -> dict[str, str]:
        entry = {self._key: self._text(sequence)}
        if sequence.finish_reason == "deadline" and self.content_type != media.CSV:
            entry["finish_reason"] = "deadline"
        return entry


class Seq2Seq:
    """Requests for a text from a text; the engine makes the texts."""

    def __init__(self, model: ModelConfig[TextGenerationOptions]) -> None:
        network, self._tokenizer, self.upkeep = pretrained.load(
            model,
            AutoModelForSeq2SeqLM,
            obstacle=encoder_decoder.obstacle,
            merge=encoder_decoder.merge_products,
        )
        self._model = model
        task = model.task or _DEFAULT_TASK
        self._key = _KEYS.get(task.partition("_")[0], "generated_text")
        config = network.config
        # Older models keep the settings and the prompt of each task in config.json, and the pipelines used them.
        settings = (getattr(config, "task_specific_params", None) or {}).get(task) or {}
        self._prefix = str(settings.get("prefix") or "")
        defaults = {key: settings[key] for key in Seq2SeqParameters.__struct_fields__ if key in settings}
        self._defaults = network.generation_config
        self._defaults.update(**defaults)
        self._positions = _positions(config, "decoder")
        self._limit = min(_positions(config, "encoder") or 1 << 20, self._tokenizer.model_max_length)
        self._vocabulary: int = config.get_text_config(decoder=True).vocab_size
        self._language = getattr(self._tokenizer, "src_lang", None)
        self._settings = lru_cache(maxsize=256)(self._make_settings)
        self._texts = lru_cache(maxsize=3)(lambda cleans_up: TokenTexts(self._tokenizer, cleans_up))
        texts = self._texts(None)
        if reason := encoder_decoder.obstacle(network):
            independence.report(model.name, network, reason)
            lone = LoneDecoder(network)
            lone.check(EncoderDecoderPrompt([0, 1], _start(self._defaults) or 0))
            self.engine = Engine(network, texts, lone, 1)
        else:
            self.engine = Engine(network, texts, encoder_decoder.steps_of(network), max(1, model.max_batch))

    def decode(self, request: Request) -> GenerationItem:
        asked = parse(request, self._model.model_field, self._vocabulary)
        parameters = asked.parameters
        if asked.stream:
            content_type = stream_type(request.accept, self._model.default_accept)
        else:
            content_type = bodies.accepted(request, self._model, (media.JSON, media.CSV, media.EVENTS))
        streams = asked.stream or content_type == media.EVENTS
        settings, start = self._settings(parameters)
        if streams:
            check_stream(asked, settings)
        prompts = []
        for text in asked.texts:
            bodies.check_deadline(request.deadline)
            prompts.append(Prompt(text, [start], settings, source=self._tokens(text, parameters)))
        decoder = self._texts(parameters.clean_up_tokenization_spaces)
        form = Seq2SeqForm(self._key, decoder, asked.single, content_type, streams)
        return GenerationItem(prompts, form, len(prompts) * settings.rows, settings.needs_generate)

    @property
    def computed(self) -> int:
        return self.engine.computed

    def room(self) -> int:
        return self.engine.room()

    def join(self, job: Job) -> None:
        self.engine.join(job)

    def leave(self, job: Job) -> None:
        self.engine.leave(job)

    def step(self) -> None:
        self.engine.step()

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

    def _make_settings(self, parameters: Seq2SeqParameters) -> tuple[GenerationSettings, int]:
        """The settings of a text, and the decoder's first token. Raises BadRequest for a contradiction."""
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
        start = _start(config)
        if start is None:
            raise BadRequest(
                "the model's generation config has no decoder_start_token_id", hint="set it in the parameters"
            )
        return resolve(parameters, config, self._defaults, self._positions), start


def _start(config: GenerationConfig) -> int | None:
    """The decoder's first token, as `generate` chooses it."""
    start: int | None = config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    return start


def _positions(config: PreTrainedConfig, part: str) -> int | None:
    """The positions of the encoder or the decoder; None if there is no limit. `part`: encoder or decoder."""
    own = getattr(config, part, None)  # the config of one part, where the two are models of their own
    configs = [config, own] if isinstance(own, PreTrainedConfig) else [config]
    names = ("max_position_embeddings", f"max_{part}_position_embeddings")
    limits = [getattr(each, name, None) for each in configs for name in names]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)

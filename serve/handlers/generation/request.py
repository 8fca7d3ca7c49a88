"""One request, decoded: prompts as tokens, parameters with nothing left open, the form of the answer."""

from typing import Any

import msgspec
from transformers import GenerationConfig, PreTrainedTokenizerBase

from serve.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from serve.handlers import pipeline
from serve.handlers.base import Model, Request
from serve.handlers.generation import answers
from serve.handlers.generation.answers import Prompt
from serve.handlers.generation.openai_request import OpenAI
from serve.handlers.generation.parameters import Parameters, json_decoder, resolve
from serve.names import CHAT, INVOCATIONS


class Item(msgspec.Struct, frozen=True):
    """What `decode` returns."""

    prompts: list[Prompt]
    form: answers.Form

    @property
    def rows(self) -> int:
        return sum(max(prompt.settings.sequences, prompt.settings.beams) for prompt in self.prompts)

    @property
    def beams(self) -> int:
        return self.prompts[0].settings.beams


class Decoding:
    """Turns requests into items for one model."""

    def __init__(
        self, model: Model, tokenizer: PreTrainedTokenizerBase, defaults: GenerationConfig, limit: int | None
    ) -> None:
        self._max_batch, self._default_accept = model.max_batch, model.default_accept
        self._tokenizer, self._defaults, self._limit = tokenizer, defaults, limit
        self._json = json_decoder(model.model_field)
        # A token is at most so many characters, so a far longer prompt need not be read to know that it does not fit:
        # 6 MB of text would take the tokenizer seconds, while everybody waits.
        self._longest = 4 * max(len(token) for token in tokenizer.get_vocab())
        self._openai = OpenAI(model.name, tokenizer, defaults, limit, self._longest)

    def item(self, request: Request) -> Item:
        if request.path != INVOCATIONS:
            api = self._openai.chat if request.path == CHAT else self._openai.completion
            return self._within(Item(*api(request)))
        inputs, asked, streams = self._body(request)
        form = answers.form(request.accept, self._default_accept, streams, isinstance(inputs, str))
        texts = [inputs] if isinstance(inputs, str) else inputs
        if len(texts) > self._max_batch:
            raise BadRequest(
                f"inputs has {len(texts)} prompts and this model takes {self._max_batch} in one request",
                hint="send several requests; they are batched together",
            )
        prompts = [self._prompt(text, asked) for text in texts]
        item = self._within(Item(prompts, form))
        if form.streams and (item.rows > 1 or not form.single):
            raise BadRequest(
                "only one sequence can be streamed",
                hint="send one prompt as a string, without num_beams or num_return_sequences; or do not stream",
            )
        if form.content_type == answers.PLAIN and (len(texts) > 1 or prompts[0].settings.sequences > 1):
            raise NotAcceptable(
                "text/plain holds one sequence, and more were asked for", hint="ask for application/json"
            )
        return item

    def _within(self, item: Item) -> Item:
        if item.rows > self._max_batch:
            raise BadRequest(
                f"{len(item.prompts)} prompts times num_return_sequences or num_beams make {item.rows} sequences, and "
                f"this model takes {self._max_batch} in one request",
                hint="send several requests; they are batched together",
            )
        return item

    def _body(self, request: Request) -> tuple[str | list[str], Parameters, bool]:
        if request.content_type in ("application/json", ""):
            try:
                utf8 = request.charset.lower().replace("_", "-") in ("utf-8", "utf8", "us-ascii", "ascii")
                body = request.body if utf8 else request.body.decode(request.charset).encode()
            except (LookupError, UnicodeError) as error:
                raise BadRequest(f"the body is not {request.charset[:40]}: {error}") from error
            fields: Any = self._json(body)
            return fields.inputs, fields.parameters or Parameters(), bool(fields.stream)
        if request.content_type == "text/plain":
            try:
                text = request.body.decode(request.charset)
            except (LookupError, UnicodeError) as error:
                raise BadRequest(f"the body is not {request.charset[:40]}: {error}") from error
            if not text:
                raise BadRequest("the body is empty", hint="the body is the prompt")
            return text, Parameters(), False
        if request.content_type == pipeline.CSV:
            return pipeline.texts(pipeline.rows(request)), Parameters(), False
        raise UnsupportedMediaType(
            f"Content-Type {request.content_type[:100]!r} cannot be read by this model",
            hint="send application/json, text/plain or text/csv",
        )

    def _prompt(self, text: str, asked: Parameters) -> Prompt:
        if self._limit is not None and len(text) > self._limit * self._longest:
            if not asked.truncation:
                raise BadRequest(
                    f"the prompt has {len(text)} characters, over {len(text) // self._longest} tokens, and the model "
                    f"takes {self._limit}, at least one of them new",
                    hint='shorten the prompt, or set "truncation": true',
                )
            most = self._limit * self._longest
            text = text[-most:] if self._tokenizer.truncation_side == "left" else text[:most]
        tokens: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        if not tokens:
            # As transformers does: an empty prompt is the beginning of a text.
            start = self._tokenizer.bos_token_id
            tokens = [self._tokenizer.eos_token_id if start is None else start]
            if tokens == [None]:
                raise BadRequest("inputs is empty, and this model has no token to begin with", hint="send a prompt")
        if asked.truncation and self._limit is not None:
            keep = max(1, self._limit - (asked.max_new_tokens or 1))
            if len(tokens) > keep:
                tokens = tokens[-keep:] if self._tokenizer.truncation_side == "left" else tokens[:keep]
        settings = resolve(asked, self._defaults, len(tokens), self._limit, self._max_batch)
        return Prompt(text, tokens, settings)

"""One request, decoded: prompts as tokens, parameters with nothing left open, the form of the answer."""

import time
from typing import Any

import msgspec
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, NotAcceptable, TooLate, UnsupportedMediaType
from serve.handlers.base import Request
from serve.handlers.generation import output
from serve.handlers.generation.openai import OpenAI
from serve.handlers.generation.output import Prompt
from serve.handlers.generation.parameters import (
    MOST_SEQUENCES,
    Parameters,
    Resolved,
    check_tokens,
    json_decoder,
    resolve,
    too_many,
)
from serve.handlers.huggingface import bodies
from serve.http.addresses import CHAT, INVOCATIONS


class Item(msgspec.Struct, frozen=True):
    """What `decode` returns."""

    prompts: list[Prompt]
    form: output.Form
    rows: int  # of a batch
    left: bool  # to transformers' own `generate`


def item_of(prompts: list[Prompt], form: output.Form) -> Item:
    """Raises BadRequest when it is too much for one request."""
    rows = sum(rows_of(prompt.settings) for prompt in prompts)
    if rows > MOST_SEQUENCES:
        raise BadRequest(
            f"{len(prompts)} prompts times num_return_sequences or num_beams make {rows} sequences, and one request "
            f"may ask for {MOST_SEQUENCES}",
            hint="send several requests; they are batched together",
        )
    return Item(prompts, form, rows, prompts[0].settings.left)


def rows_of(settings: Resolved) -> int:
    """How many rows of a batch a prompt takes."""
    return max(settings.sequences, settings.beams)


class Decoding:
    """Turns requests into items for one model."""

    def __init__(
        self, model: ModelConfig[Any], tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel, limit: int | None
    ) -> None:
        defaults, words = network.generation_config, network.config.get_text_config(decoder=True).vocab_size
        self._max_batch, self._default_accept = model.max_batch, model.default_accept
        self._tokenizer, self._defaults, self._limit = tokenizer, defaults, limit
        self._json = json_decoder(model.model_field)
        self._words = words
        # A token is at most so many characters, so a far longer prompt need not be read to know that it does not fit:
        # 6 MB of text would take the tokenizer seconds, while everybody waits.
        self._longest = 4 * max(len(token) for token in tokenizer.get_vocab())
        self._openai = OpenAI(model.name, tokenizer, defaults, limit, self._longest)

    def item(self, request: Request) -> Item:
        if request.path != INVOCATIONS:
            api = self._openai.chat if request.path == CHAT else self._openai.completion
            return item_of(*api(request))
        inputs, asked, streams = self._body(request)
        form = output.form(request.accept, self._default_accept, streams, isinstance(inputs, str))
        texts = [inputs] if isinstance(inputs, str) else inputs
        if len(texts) > MOST_SEQUENCES:
            raise too_many(len(texts))
        check_tokens(asked, self._words)
        prompts: list[Prompt] = []
        for text in texts:
            if prompts and time.monotonic() >= request.deadline:
                raise TooLate("the deadline passed while the prompts were read", hint="send fewer of them")
            prompts.append(self._prompt(text, asked))
        item = item_of(prompts, form)
        if form.streams and (item.rows > 1 or not form.single):
            raise BadRequest(
                "only one sequence can be streamed",
                hint="send one prompt as a string, without num_beams or num_return_sequences; or do not stream",
            )
        if form.streams and item.left:
            name, _ = prompts[0].settings.passed[0]
            raise BadRequest(f"with parameters.{name} a text comes whole", hint=f"leave {name} out, or do not stream")
        if form.content_type == output.PLAIN and (len(texts) > 1 or prompts[0].settings.sequences > 1):
            raise NotAcceptable(
                "text/plain holds one sequence, and more were asked for", hint="ask for application/json"
            )
        return item

    def _body(self, request: Request) -> tuple[str | list[str], Parameters, bool]:
        if request.content_type in ("application/json", ""):
            fields: Any = self._json(bodies.utf8(request))
            return fields.inputs, fields.parameters or Parameters(), bool(fields.stream)
        if request.content_type == "text/plain":
            text = bodies.text(request)
            if not text:
                raise BadRequest("the body is empty", hint="the body is the prompt")
            return text, Parameters(), False
        if request.content_type == bodies.CSV:
            return bodies.texts(bodies.rows(request)), Parameters(), False
        raise UnsupportedMediaType(
            f"Content-Type {request.content_type[:100]!r} cannot be read by this model",
            hint="send application/json, text/plain or text/csv",
        )

    def _prompt(self, text: str, asked: Parameters) -> Prompt:
        read = (asked.prefix or "") + text
        cuts = asked.truncation or asked.truncate or asked.handle_long_generation
        from_left = not asked.truncation or self._tokenizer.truncation_side == "left"
        if self._limit is not None and len(read) > self._limit * self._longest:
            if not cuts:
                raise BadRequest(
                    f"the prompt has {len(read)} characters, over {len(read) // self._longest} tokens, and the model "
                    f"takes {self._limit}, at least one of them new",
                    hint='shorten the prompt, or set "truncation": true',
                )
            most = self._limit * self._longest
            read = read[-most:] if from_left else read[:most]
        special = {} if asked.add_special_tokens is None else {"add_special_tokens": asked.add_special_tokens}
        tokens: list[int] = self._tokenizer(read, verbose=False, **special)["input_ids"]
        if not tokens:
            # As transformers does: an empty prompt is the beginning of a text.
            starts = (asked.bos_token_id, self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
            tokens = [token for token in starts if token is not None][:1]
            if not tokens:
                raise BadRequest("inputs is empty, and this model has no token to begin with", hint="send a prompt")
        keep = asked.truncate or len(tokens)
        if cuts and self._limit is not None:
            keep = min(keep, max(1, self._limit - (asked.max_new_tokens or 1)))
        if len(tokens) > keep:
            tokens = tokens[-keep:] if from_left else tokens[:keep]
        return Prompt(text, tokens, resolve(asked, self._defaults, len(tokens), self._limit, self._max_batch))

"""A request to generate text, decoded: prompts as tokens, complete settings, and the form of the answer."""

import copy
from typing import Any

import msgspec
from transformers import PreTrainedModel

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from serve.handlers.base import Request
from serve.handlers.generation.chat import ChatTemplate, Message, check_members
from serve.handlers.generation.decoder import end_tokens
from serve.handlers.generation.output import Form, invocation_form
from serve.handlers.generation.parameters import (
    MAX_SEQUENCES,
    MAX_TOKENS,
    GenerationParameters,
    GenerationSettings,
    Prompt,
    check_tokens,
    json_decoder,
    resolve,
    too_many_prompts,
)
from serve.handlers.generation.text_decoder import TokenTexts
from serve.handlers.huggingface import bodies
from serve.http import body, media


class GenerationItem(msgspec.Struct, frozen=True):
    """A decoded request."""

    prompts: list[Prompt]
    form: Form
    rows: int  # of a batch, for all prompts
    needs_generate: bool  # whether transformers' `generate` makes the texts, and not the batch

    @property
    def most_tokens(self) -> int:
        """The tokens that it takes at most, of prompts and texts."""
        return sum(len(each.read) + each.settings.max_new_tokens * each.settings.rows for each in self.prompts)


def generation_item(prompts: list[Prompt], form: Form) -> GenerationItem:
    """Raises BadRequest for more sequences than one request may have. All prompts need `generate`, or none does."""
    rows = sum(prompt.settings.rows for prompt in prompts)
    if rows > MAX_SEQUENCES:
        raise BadRequest(
            f"{len(prompts)} prompts times num_return_sequences or num_beams make {rows} sequences; the limit of a "
            f"request is {MAX_SEQUENCES}",
            hint="send several requests; the server batches them",
        )
    return GenerationItem(prompts, form, rows, prompts[0].settings.needs_generate)


def refuse_generate(settings: GenerationSettings) -> None:
    """Raise BadRequest for a stream whose text `generate` makes: it is known at its end only."""
    if not settings.needs_generate:
        return
    if settings.config_only:
        name, *_ = settings.config_only
        place = f"{name} of the model's generation_config.json"
        hint = f"do not stream, or remove {name} from generation_config.json"
    else:
        name, _ = settings.library[0]
        place = f"parameters.{name}"
        hint = f"leave {name} out, or do not stream"
    raise BadRequest(f"{place} is not supported in a stream", hint=hint)


class PromptReader:
    """One model's tokenizer, limits and defaults, as the APIs need them to read prompts."""

    def __init__(self, model: ModelConfig[Any], texts: TokenTexts, network: PreTrainedModel) -> None:
        self.model = model
        self.texts = texts
        self.tokenizer = tokenizer = texts.tokenizer
        self.chats = ChatTemplate(model.name, tokenizer)
        self.end_tokens = end_tokens(network)
        self.defaults = copy.deepcopy(network.generation_config)
        network.generation_config.prompt_lookup_num_tokens = None  # with it `generate` takes one prompt only
        self.vocabulary: int = network.config.get_text_config(decoder=True).vocab_size
        self.limit = _position_limit(network)  # tokens of prompt and answer together
        # No prompt of more characters fits the limit. It is refused, or cut, before it is tokenized: 6 MB of text takes
        # the tokenizer seconds, and the runner serves no other request meanwhile.
        self.characters = self.limit * 4 * max(len(token) for token in tokenizer.get_vocab())

    def tokens(self, text: str, first: int | None = None, **arguments: Any) -> list[int]:
        """The tokens of a prompt. An empty one is `first`, else the token that begins or ends a text, as in generate.

        Raises BadRequest for an empty prompt if there is no such token.
        """
        tokens: list[int] = list(self.tokenizer(text, verbose=False, **arguments)["input_ids"])
        if not tokens:
            candidates = (first, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            tokens = [token for token in candidates if token is not None][:1]
        if not tokens:
            raise BadRequest("the prompt is empty, and the model has no token to begin with", hint="send a prompt")
        return tokens


class InvocationReader:
    """Reads the requests to /invocations."""

    def __init__(self, prompts: PromptReader) -> None:
        self._prompts = prompts
        self._default_accept = prompts.model.default_accept
        self._json = json_decoder(prompts.model.model_field)

    def item(self, request: Request) -> GenerationItem:
        inputs, asked, streams = self._body(request)
        single = isinstance(inputs, str) or all(isinstance(each, dict) for each in inputs)
        form = invocation_form(request.accept, self._default_accept, streams, single)
        texts = [inputs] if single else inputs
        if len({type(each) for each in texts}) > 1:
            raise BadRequest("inputs mixes texts and chats", hint="send texts, or a chat, or chats: lists of messages")
        if len(texts) > MAX_SEQUENCES:
            raise too_many_prompts(len(texts))
        check_tokens(asked, self._prompts.vocabulary)
        prompts: list[Prompt] = []
        for text in texts:
            if prompts:
                bodies.check_deadline(request.deadline)
            prompts.append(self._prompt(text, asked) if isinstance(text, str) else self._chat(text, asked))
        item = generation_item(prompts, form)
        settings = prompts[0].settings
        if form.streams and (item.rows > 1 or not form.single):
            raise BadRequest(
                "a stream has one sequence, and the request asks for more",
                hint="send one prompt as a string, without num_beams or num_return_sequences; or do not stream",
            )
        if form.streams:
            refuse_generate(settings)
        if form.content_type == media.TEXT and (len(texts) > 1 or settings.num_sequences > 1):
            raise NotAcceptable(
                "text/plain holds one sequence, and the request asks for more", hint="set Accept: application/json"
            )
        return item

    def _body(self, request: Request) -> tuple[str | list[Any], GenerationParameters, bool]:
        """The inputs, the parameters, and whether the request asks for a stream."""
        if request.content_type in (media.JSON, ""):
            fields: Any = self._json(request)
            return fields.inputs, fields.parameters or GenerationParameters(), bool(fields.stream)
        if request.content_type == media.TEXT:
            text = body.decode_text(request.body, request.charset)
            if not text:
                raise BadRequest("the body is empty", hint="the body is the prompt")
            return text, GenerationParameters(), False
        if request.content_type == media.CSV:
            table = body.decode_text(request.body, request.charset)
            return bodies.texts(bodies.csv_inputs(table)), GenerationParameters(), False
        raise UnsupportedMediaType(
            f"unsupported Content-Type: {request.content_type[:100]!r}",
            hint="send application/json, text/plain or text/csv",
        )

    def _chat(self, chat: list[dict[str, Any]], asked: GenerationParameters) -> Prompt:
        """A chat as transformers' pipeline reads it: an answer at its end is continued."""
        messages: list[Message] = bodies.convert("inputs", list[Message], chat)
        check_members([{name for name, value in each.items() if value not in (None, False, [], {})} for each in chat])
        continues = messages[-1].role == "assistant"
        text = self._prompts.chats.rendered(
            messages, {"add_generation_prompt": not continues, "continue_final_message": continues}
        )
        # The chat template has written the special tokens itself.
        prompt = self._prompt(text, msgspec.structs.replace(asked, prefix=None, add_special_tokens=False))
        return msgspec.structs.replace(prompt, text="", chat=chat)

    def _prompt(self, text: str, asked: GenerationParameters) -> Prompt:
        reader, limit = self._prompts, self._prompts.limit
        read = (asked.prefix or "") + text
        cuts = asked.truncation or asked.truncate or asked.handle_long_generation
        from_left = not asked.truncation or reader.tokenizer.truncation_side == "left"
        if len(read) > reader.characters:
            if not cuts:
                raise BadRequest(
                    f"the prompt has {len(read)} characters, over {len(read) * limit // reader.characters} tokens; the "
                    f"model takes {limit}, at least one of them new",
                    hint='shorten the prompt, or set "truncation": true',
                )
            read = read[-reader.characters :] if from_left else read[: reader.characters]
        special = {} if asked.add_special_tokens is None else {"add_special_tokens": asked.add_special_tokens}
        tokens = reader.tokens(read, asked.bos_token_id, **special)
        keep = asked.truncate or len(tokens)
        if cuts:
            keep = min(keep, max(1, limit - (asked.max_new_tokens or 1)))
        if len(tokens) > keep:
            tokens = tokens[-keep:] if from_left else tokens[:keep]
        settings = resolve(asked, reader.defaults, len(tokens), limit, reader.model.max_batch)
        return Prompt(text, tokens, settings)


def _position_limit(network: PreTrainedModel) -> int:
    config = network.config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        limit: Any = getattr(config, name, None)
        if isinstance(limit, int) and limit > 1:
            return limit
    return MAX_TOKENS

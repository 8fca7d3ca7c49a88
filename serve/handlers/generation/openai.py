"""Requests of OpenAI's clients to /v1/chat/completions and /v1/completions.

Fields: platform.openai.com/docs/api-reference/chat and /completions, and vLLM's further ones. openai_fields.py decides
about the fields that are not read.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from serve.errors import BadRequest, ModelNotFound
from serve.handlers.base import Request
from serve.handlers.generation import chat, openai_fields
from serve.handlers.generation.chat import Message
from serve.handlers.generation.lookup import NGRAM
from serve.handlers.generation.openai_output import ChatForm, CompletionForm
from serve.handlers.generation.parameters import (
    MAX_SEQUENCES,
    Count,
    Factor,
    GenerationSettings,
    Id,
    Ids,
    Prompt,
    Rows,
    Share,
    StopString,
    StopStrings,
    Tokens,
    Words,
    first_given,
    too_many_prompts,
)
from serve.handlers.generation.request import GenerationItem, PromptReader, generation_item
from serve.handlers.huggingface.bodies import check_deadline
from serve.http import media
from serve.http.addresses import CHAT, COMPLETIONS, INVOCATIONS
from serve.http.body import decode_json, to_utf8

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
NEUTRAL = (b"null", b"false", b"[]", b"{}")
COMPLETION_TOKENS = 16  # the default max_tokens of /v1/completions; a chat goes on to the end of the context


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # ignored: it pads events to hide their lengths


class OpenAIBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of both APIs; null means not given."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Rows | None = None
    stop: StopString | StopStrings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=1024)] | None = None
    # Of vLLM:
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None  # -1 and 0 are off
    min_p: Share | None = None
    repetition_penalty: Factor | None = None
    min_tokens: Count | None = None
    stop_token_ids: Annotated[list[Id], Meta(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: Annotated[list[StopString], Meta(max_length=256)] | None = None
    allowed_token_ids: Ids | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None  # -1: to the model's context
    truncation_side: str | None = None
    return_tokens_as_token_ids: bool | None = None
    cache_salt: Annotated[str, Meta(max_length=1024)] | None = None  # prompts with the same one share columns
    # Of transformers:
    no_repeat_ngram_size: Count | None = None
    bad_words_ids: Words | None = None
    suppress_tokens: Ids | None = None


class ChatBody(OpenAIBody, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    # Of vLLM:
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[Any] | None = None


class CompletionBody(OpenAIBody, frozen=True, kw_only=True):
    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    max_tokens: Count | None = None
    echo: bool | None = None
    logprobs: Alternatives | None = None
    best_of: Rows | None = None


FIELDS = {CHAT: ChatBody.__struct_fields__, COMPLETIONS: CompletionBody.__struct_fields__}


class OpenAIReader:
    """Reads the requests to both APIs."""

    def __init__(self, prompts: PromptReader) -> None:
        self._prompts = prompts
        self._chat_body = msgspec.json.Decoder(ChatBody)
        self._completion_body = msgspec.json.Decoder(CompletionBody)

    def item(self, request: Request) -> GenerationItem:
        return self._completion(request) if request.path == COMPLETIONS else self._chat(request)

    def reads(self, request: Request) -> bool:
        """Whether a request to /invocations is a chat: its JSON has `messages`, and no `inputs`."""
        if request.content_type not in (media.JSON, ""):
            return False
        raw = to_utf8(request.body, request.charset)
        if b'"messages"' not in raw:  # nearly all requests, which are not parsed here
            return False
        try:
            names = _FIELDS.decode(raw).keys()
        except (msgspec.DecodeError, RecursionError):
            return False
        return "messages" in names and "inputs" not in names

    def _chat(self, request: Request) -> GenerationItem:
        invoked = request.path == INVOCATIONS
        body: ChatBody = _decoded(request, self._chat_body, CHAT, [self._prompts.model.model_field] * invoked)
        if invoked:
            self._check_invocation(request, body)
        if body.top_logprobs and not body.logprobs:
            raise BadRequest("top_logprobs needs logprobs", hint='set "logprobs": true')
        _check_tools(body)
        text = self._prompts.chats.rendered(body.messages, _kwargs(body))
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        # The chat template has written the special tokens itself.
        tokens = self._tokens(text, body, add_special_tokens=bool(body.add_special_tokens))
        tokens, most = self._fitting(tokens, body, body.max_completion_tokens or body.max_tokens, self._prompts.limit)
        prompt = Prompt("", tokens, self._settings(body, most, logprobs, echo=False), salt=body.cache_salt or "")
        return generation_item([prompt], ChatForm(**self._form(request, body)))

    def _check_invocation(self, request: Request, body: ChatBody) -> None:
        """Raise for a media type that is not an answer's, and for another `model`, which does not choose one here."""
        if body.stream:
            media.choose(request.accept, (media.EVENTS, media.JSON_LINES, media.JSON), media.EVENTS)
        else:
            media.choose(request.accept, (media.JSON,), media.JSON)
        model = self._prompts.model
        if body.model and body.model not in model.names():
            raise ModelNotFound(
                f"the body names model {body.model[:100]!r}, but the request is addressed to {model.name!r}",
                hint="omit 'model', or address the request to that model",
                model=model.name,
            )

    def _completion(self, request: Request) -> GenerationItem:
        body: CompletionBody = _decoded(request, self._completion_body, COMPLETIONS, ())
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise BadRequest(f"best_of is {body.best_of}: only the value of n is supported", hint="leave best_of out")
        given: list[Any] = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if all(isinstance(each, int) for each in given):
            given = [given]
        elif len({type(each) for each in given}) > 1:
            raise BadRequest("prompt mixes kinds", hint="send a string, strings, tokens or lists of tokens")
        if len(given) > MAX_SEQUENCES:
            raise too_many_prompts(len(given))
        echo = bool(body.echo)
        special = {} if body.add_special_tokens is None else {"add_special_tokens": body.add_special_tokens}
        prompts: list[Prompt] = []
        for each in given:
            if prompts:
                check_deadline(request.deadline)
            tokens = self._tokens(each, body, **special) if isinstance(each, str) else self._checked(each)
            kept, most = self._fitting(tokens, body, body.max_tokens, COMPLETION_TOKENS)
            whole = isinstance(each, str) and len(kept) == len(tokens)
            text = "" if not echo else each if whole else self._prompts.texts.begun(kept)
            settings = self._settings(body, most, body.logprobs, echo=echo)
            resumed, salt = echo and not whole, body.cache_salt or ""
            prompts.append(Prompt(text, kept, settings, resumed=resumed, salt=salt))
        return generation_item(prompts, CompletionForm(**self._form(request, body)))

    def _form(self, request: Request, body: OpenAIBody) -> dict[str, Any]:
        options = body.stream_options or StreamOptions()
        return {
            "id": request.id or uuid.uuid4().hex,
            "created": int(time.time()),
            "model": body.model or self._prompts.model.name,
            "streams": bool(body.stream),
            "includes_usage": bool(options.include_usage),
            "counts": bool(options.include_usage and options.continuous_usage_stats),
            "names_ids": bool(body.return_tokens_as_token_ids),
            "texts": self._prompts.texts,
        }

    def _tokens(self, text: str, body: OpenAIBody, **arguments: Any) -> list[int]:
        if len(text) > self._prompts.characters:
            raise BadRequest(
                f"the prompt has {len(text)} characters, more than the model's {self._prompts.limit} tokens hold",
                hint="shorten the prompt or the messages",
            )
        return self._prompts.tokens(text, **arguments)

    def _checked(self, tokens: list[Any]) -> list[int]:
        """A prompt that was sent as tokens."""
        vocabulary = len(self._prompts.tokenizer)
        if not tokens or not all(0 <= token < vocabulary for token in tokens):
            raise BadRequest(f"prompt has unknown tokens: the model has tokens 0 to {vocabulary - 1}")
        return list(tokens)

    def _fitting(self, tokens: list[int], body: OpenAIBody, asked: int | None, default: int) -> tuple[list[int], int]:
        """The tokens of the prompt, cut as asked, and the most new tokens, whose default is lowered to fit."""
        limit = self._prompts.limit
        new = 1 if asked is None else asked
        if (keep := body.truncate_prompt_tokens) is not None:
            if body.truncation_side not in (None, "left", "right"):
                raise BadRequest('truncation_side must be "left" or "right"')
            keep = max(1, limit - new) if keep == -1 else keep
            if keep < 1:
                raise BadRequest("truncate_prompt_tokens is 0: it must be -1 or at least 1")
            tokens = tokens[:keep] if body.truncation_side == "right" else tokens[-keep:]
        room = limit - len(tokens)
        if new > room:
            raise BadRequest(
                f"the prompt has {len(tokens)} tokens and the request asks for {new} more; the model's context "
                f"has {limit}",
                hint="shorten the prompt or the messages, or lower max_tokens",
            )
        return tokens, min(default if asked is None else asked, room)

    def _settings(self, body: OpenAIBody, most: int, logprobs: int | None, *, echo: bool) -> GenerationSettings:
        defaults, vocabulary = self._prompts.defaults, self._prompts.vocabulary
        for name in ("stop_token_ids", "allowed_token_ids", "bad_words_ids", "suppress_tokens"):
            check_ids(name, getattr(body, name), vocabulary)
        temperature = first_given(body.temperature, defaults.temperature, 1.0)
        stop = [] if body.stop is None else [body.stop] if isinstance(body.stop, str) else body.stop
        ends = frozenset() if body.ignore_eos else self._prompts.end_tokens
        own_ends = body.ignore_eos or body.stop_token_ids
        return GenerationSettings(
            max_new_tokens=most,
            min_new_tokens=min(body.min_tokens or 0, most),
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            top_p=first_given(body.top_p, defaults.top_p, 1.0),
            top_k=max(0, first_given(body.top_k, defaults.top_k, 0)),
            min_p=first_given(body.min_p, defaults.min_p, 0.0),
            repetition_penalty=first_given(body.repetition_penalty, defaults.repetition_penalty, 1.0),
            num_sequences=body.n or 1,
            num_beams=1,
            stop=tuple(stop),
            keep_stop=bool(body.include_stop_str_in_output),
            seed=body.seed,
            return_full_text=echo,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logprobs=logprobs,
            lookup=first_given(None, defaults.prompt_lookup_num_tokens, 0),
            lookup_ngram=first_given(None, defaults.max_matching_ngram_size, NGRAM),
            prompt_logprobs=echo and logprobs is not None,
            end_tokens=frozenset({*ends, *(body.stop_token_ids or ())}) if own_ends else None,
            no_repeat_ngram=first_given(body.no_repeat_ngram_size, defaults.no_repeat_ngram_size, 0),
            suppress_tokens=tuple(first_given(body.suppress_tokens, defaults.suppress_tokens, ())),
            bad_words=(
                *(tuple(word) for word in first_given(body.bad_words_ids, defaults.bad_words_ids, ())),
                *self._bad_words(body.bad_words or ()),
            ),
            logit_bias=_bias(body.logit_bias or {}, vocabulary),
            allowed_tokens=body.allowed_token_ids,
        )

    def _bad_words(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of each word at the beginning of a text and behind a space, as vLLM bans it."""
        banned: list[tuple[int, ...]] = []
        for word in words:
            alone, within = (
                tuple(self._prompts.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
                for text in (word.lstrip(), " " + word.lstrip())
            )
            if not alone:
                raise BadRequest(f"bad_words has {word!r}, which has no tokens", hint="leave it out")
            banned.append(alone)
            if within and within[0] != alone[0] and len(within) == len(alone):
                banned.append(within)
        return banned


def check_ids(name: str, ids: Any, vocabulary: int) -> None:
    """Raise BadRequest for tokens that the model lacks, in a list or in lists of them."""
    flat = [token for each in ids or () for token in (each if isinstance(each, tuple) else (each,))]
    if flat and max(flat) >= vocabulary:
        raise BadRequest(f"{name} has token {max(flat)}: the model has tokens 0 to {vocabulary - 1}")


def _bias(bias: Mapping[str, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    for token in bias:
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocabulary):
            raise BadRequest(f"logit_bias has token {token[:40]!r}: the model has tokens 0 to {vocabulary - 1}")
    return tuple((int(token), value) for token, value in bias.items())


def _decoded(request: Request, decoder: "msgspec.json.Decoder[Any]", path: str, ignored: Sequence[str]) -> Any:
    try:
        body = decode_json(request.body, request.charset, decoder)
        fields = decode_json(request.body, request.charset, _FIELDS)
    except msgspec.ValidationError as error:
        problem, _, at = str(error).partition(" - at ")
        where = at.strip("`").removeprefix("$.")
        raise BadRequest(f"{where}: {problem[:1].lower()}{problem[1:]}" if where else problem) from error
    read = (*FIELDS[path], *ignored)
    openai_fields.check(fields, read, path, {other: names for other, names in FIELDS.items() if other != path})
    if path == CHAT:
        messages: Any = msgspec.json.decode(fields["messages"], type=list[dict[str, msgspec.Raw]])
        chat.check_members([{name for name, raw in each.items() if bytes(raw) not in NEUTRAL} for each in messages])
    return body


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _check_tools(body: ChatBody) -> None:
    """Raise BadRequest if the answer could be a call of a tool, or has to be one."""
    _, reason, hint = openai_fields.REFUSED["functions"]
    if body.tool_choice not in (None, "none", "auto"):
        raise BadRequest("tool_choice is not supported: the server cannot make the model call a tool", hint=hint)
    if body.tools and body.tool_choice != "none":
        raise BadRequest(f"tools is not supported: {reason}", hint=hint)


def _kwargs(body: ChatBody) -> dict[str, Any]:
    """What the chat template reads beside the messages."""
    given = body.chat_template_kwargs or {}
    if reserved := chat.RESERVED & given.keys():
        raise BadRequest(
            f"chat_template_kwargs has {min(reserved)}, which is not for the template", hint="leave it out"
        )
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise BadRequest(
            "continue_final_message contradicts add_generation_prompt", hint='set "add_generation_prompt": false'
        )
    begins = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    named = {"documents": body.documents, "reasoning_effort": body.reasoning_effort}
    return {
        **{name: value for name, value in named.items() if value is not None},
        "add_generation_prompt": begins,
        "continue_final_message": continues,
        **given,
    }

"""Requests of OpenAI's clients to /v1/chat/completions and /v1/completions.

Fields: platform.openai.com/docs/api-reference/chat and /completions. Unknown fields are ignored, as other servers do:
they control OpenAI's own service. Fields that would change the answer and are not implemented are refused.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from jinja2 import TemplateError
from msgspec import Meta

from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.generation.openai_output import ChatForm, CompletionForm
from serve.handlers.generation.parameters import (
    MAX_SEQUENCES,
    Count,
    Factor,
    GenerationSettings,
    Prompt,
    Rows,
    StopString,
    StopStrings,
    Tokens,
    first_given,
    too_many_prompts,
)
from serve.handlers.generation.request import GenerationItem, PromptReader, generation_item
from serve.handlers.huggingface.bodies import check_deadline
from serve.http.addresses import CHAT
from serve.http.body import decode_json

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
NULL = msgspec.Raw(b"null")
# Values without an effect, of a field that is not implemented.
NEUTRAL = (b"null", b"[]", b"{}", b'""', b"false", b'"none"', b'{"type":"text"}')
COMPLETION_TOKENS = 16  # the default max_tokens of /v1/completions; a chat goes on to the end of the context


class MessagePart(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[MessagePart] | None = None
    name: str | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class OpenAIBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of both APIs; null means not given."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Rows | None = None
    stop: StopString | StopStrings | None = None
    max_tokens: Tokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: msgspec.Raw = NULL
    # Not of OpenAI, but of other servers with this API:
    top_k: Count | None = None
    repetition_penalty: Factor | None = None
    min_tokens: Count | None = None


class ChatBody(OpenAIBody, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    tools: msgspec.Raw = NULL
    functions: msgspec.Raw = NULL
    response_format: msgspec.Raw = NULL
    audio: msgspec.Raw = NULL


class CompletionBody(OpenAIBody, frozen=True, kw_only=True):
    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    echo: bool | None = None
    logprobs: Alternatives | None = None
    suffix: msgspec.Raw = NULL
    best_of: Rows | None = None


class OpenAIReader:
    """Reads the requests to both APIs."""

    def __init__(self, prompts: PromptReader) -> None:
        self._prompts = prompts
        self._chat_body = msgspec.json.Decoder(ChatBody)
        self._completion_body = msgspec.json.Decoder(CompletionBody)

    def item(self, request: Request) -> GenerationItem:
        return self._chat(request) if request.path == CHAT else self._completion(request)

    def _chat(self, request: Request) -> GenerationItem:
        body: ChatBody = _decoded(request, self._chat_body)
        _refuse(body, "logit_bias", "tools", "functions", "response_format", "audio")
        if body.top_logprobs and not body.logprobs:
            raise BadRequest("top_logprobs needs logprobs", hint='set "logprobs": true')
        text = self._rendered([_template_message(message) for message in body.messages])
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        # The chat template has written the special tokens itself.
        tokens = self._tokens(text, add_special_tokens=False)
        most = self._max_new_tokens(tokens, body.max_completion_tokens or body.max_tokens, self._prompts.limit)
        prompt = Prompt("", tokens, self._settings(body, most, logprobs, echo=False))
        return generation_item([prompt], ChatForm(**self._form(request, body)))

    def _completion(self, request: Request) -> GenerationItem:
        body: CompletionBody = _decoded(request, self._completion_body)
        _refuse(body, "logit_bias", "suffix")
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
        prompts: list[Prompt] = []
        for each in given:
            if prompts:
                check_deadline(request.deadline)
            tokens = self._tokens(each) if isinstance(each, str) else self._checked(each)
            most = self._max_new_tokens(tokens, body.max_tokens, COMPLETION_TOKENS)
            text = "" if not echo else each if isinstance(each, str) else str(self._prompts.tokenizer.decode(tokens))
            prompts.append(Prompt(text, tokens, self._settings(body, most, body.logprobs, echo=echo)))
        return generation_item(prompts, CompletionForm(**self._form(request, body)))

    def _form(self, request: Request, body: OpenAIBody) -> dict[str, Any]:
        return {
            "id": request.id,
            "created": int(time.time()),
            "model": body.model or self._prompts.model.name,
            "streams": bool(body.stream),
            "includes_usage": bool(body.stream_options and body.stream_options.include_usage),
            "tokenizer": self._prompts.tokenizer,
        }

    def _rendered(self, messages: Sequence[dict[str, str]]) -> str:
        if not self._prompts.tokenizer.chat_template:
            raise BadRequest(
                f"model {self._prompts.model.name!r} has no chat template",
                hint="send a prompt to /v1/completions, or put a chat_template.jinja beside the model's tokenizer",
            )
        try:
            text = self._prompts.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise BadRequest(f"the model's chat template does not take these messages: {error}") from error
        assert isinstance(text, str)
        return text

    def _tokens(self, text: str, **arguments: Any) -> list[int]:
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

    def _max_new_tokens(self, tokens: list[int], asked: int | None, default: int) -> int:
        """As asked, which must fit behind the prompt; the default is lowered to fit."""
        room = self._prompts.limit - len(tokens)
        if room < 1 or (asked is not None and asked > room):
            raise BadRequest(
                f"the prompt has {len(tokens)} tokens and the request asks for {asked or 1} more; the model's context "
                f"has {self._prompts.limit}",
                hint="shorten the prompt or the messages, or lower max_tokens",
            )
        return min(default if asked is None else asked, room)

    def _settings(self, body: OpenAIBody, most: int, logprobs: int | None, *, echo: bool) -> GenerationSettings:
        defaults = self._prompts.defaults
        temperature = first_given(body.temperature, defaults.temperature, 1.0)
        stop = [] if body.stop is None else [body.stop] if isinstance(body.stop, str) else body.stop
        return GenerationSettings(
            max_new_tokens=most,
            min_new_tokens=min(body.min_tokens or 0, most),
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            top_p=first_given(body.top_p, defaults.top_p, 1.0),
            top_k=first_given(body.top_k, defaults.top_k, 0),
            repetition_penalty=first_given(body.repetition_penalty, defaults.repetition_penalty, 1.0),
            num_sequences=body.n or 1,
            num_beams=1,
            stop=tuple(stop),
            seed=body.seed,
            return_full_text=echo,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logprobs=logprobs,
        )


def _decoded(request: Request, decoder: "msgspec.json.Decoder[Any]") -> Any:
    try:
        return decode_json(request.body, request.charset, decoder)
    except msgspec.ValidationError as error:
        problem, _, at = str(error).partition(" - at ")
        where = at.strip("`").removeprefix("$.")
        raise BadRequest(f"{where}: {problem[:1].lower()}{problem[1:]}" if where else problem) from error


def _refuse(body: msgspec.Struct, *names: str) -> None:
    """Raise BadRequest for the first of these fields whose value would have an effect."""
    for name in names:
        if bytes(getattr(body, name)).replace(b" ", b"") not in NEUTRAL:
            raise BadRequest(f"{name} is not supported", hint=f"leave {name} out")


def _template_message(message: Message) -> dict[str, str]:
    """A message as chat templates take it: text only, and "system" for OpenAI's newer role "developer"."""
    content = message.content
    if isinstance(content, list):
        other = next((part.type for part in content if part.type != "text"), None)
        if other is not None:
            raise BadRequest(f"messages has a part of type {other[:40]!r}", hint="this model reads text only")
        content = "\n".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content or ""} | ({"name": message.name} if message.name else {})

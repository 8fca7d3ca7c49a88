"""What OpenAI's clients send to /v1/chat/completions and /v1/completions, as items for the batch.

Fields: platform.openai.com/docs/api-reference/chat and /completions. Fields that only steer OpenAI's own service are
ignored, as other servers do; those that would change the answer and are not built are refused.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from jinja2 import TemplateError
from msgspec import Meta
from transformers import GenerationConfig, PreTrainedTokenizerBase

from serve.errors import BadRequest, TooLate
from serve.handlers.base import Request
from serve.handlers.generation.openai_output import ChatForm, CompletionForm
from serve.handlers.generation.output import Prompt
from serve.handlers.generation.parameters import (
    MOST_SEQUENCES,
    MOST_TOKENS,
    Count,
    Degree,
    Resolved,
    Rows,
    Stops,
    StopString,
    Tokens,
    too_many,
)

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Others = Annotated[int, Meta(ge=0, le=20)]
NOTHING = msgspec.Raw(b"null")
# What asks for nothing, in a field that is not built.
EMPTY = (b"null", b"[]", b"{}", b'""', b"false", b'"none"', b'{"type":"text"}')


class Part(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both APIs; null means not given."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Rows | None = None
    stop: StopString | Stops | None = None
    max_tokens: Tokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: msgspec.Raw = NOTHING
    # Not OpenAI's, but of the servers that speak its API:
    top_k: Count | None = None
    repetition_penalty: Degree | None = None
    min_tokens: Count | None = None


class ChatBody(Common, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Others | None = None
    tools: msgspec.Raw = NOTHING
    functions: msgspec.Raw = NOTHING
    response_format: msgspec.Raw = NOTHING
    audio: msgspec.Raw = NOTHING


class CompletionBody(Common, frozen=True, kw_only=True):
    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    echo: bool | None = None
    logprobs: Others | None = None
    suffix: msgspec.Raw = NOTHING
    best_of: Rows | None = None


def read(decoder: msgspec.json.Decoder[Any], request: Request) -> Any:
    """A body. Raises BadRequest for all that is wrong with it."""
    if not request.body.strip():
        raise BadRequest("the body is empty", hint="send JSON")
    try:
        return decoder.decode(request.body)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at ")
        where = at.strip("`").removeprefix("$.")
        raise BadRequest(f"{where}: {what[:1].lower()}{what[1:]}" if where else what) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error


def refuse(body: msgspec.Struct, *names: str) -> None:
    """Raise BadRequest for the first of these fields that asks for something."""
    for name in names:
        if bytes(getattr(body, name)).replace(b" ", b"") not in EMPTY:
            raise BadRequest(f"{name} is not supported", hint=f"leave {name} out")


def plain(message: Message) -> dict[str, str]:
    """A message as chat templates take it: text only; OpenAI's newer name for a system message is not in templates."""
    content = message.content
    if isinstance(content, list):
        other = next((part.type for part in content if part.type != "text"), None)
        if other is not None:
            raise BadRequest(f"messages has a part of type {other[:40]!r}", hint="this model reads text only")
        content = "\n".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content or ""} | ({"name": message.name} if message.name else {})


COMPLETION_TOKENS = 16  # max_tokens of /v1/completions, unless the request says; chat goes on to the context's end


class OpenAI:
    """Turns requests into prompts and the form of their answer, for one model."""

    def __init__(
        self, name: str, tokenizer: PreTrainedTokenizerBase, defaults: GenerationConfig, limit: int | None, longest: int
    ) -> None:
        self._name, self._tokenizer, self._defaults, self._limit = name, tokenizer, defaults, limit
        self._longest = longest  # characters of the longest token
        self._chat = msgspec.json.Decoder(ChatBody)
        self._completion = msgspec.json.Decoder(CompletionBody)

    def chat(self, request: Request) -> tuple[list[Prompt], ChatForm]:
        body: ChatBody = read(self._chat, request)
        refuse(body, "logit_bias", "tools", "functions", "response_format", "audio")
        if body.top_logprobs and not body.logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true")
        text = self._rendered([plain(message) for message in body.messages])
        likeliest = (body.top_logprobs or 0) if body.logprobs else None
        most = body.max_completion_tokens or body.max_tokens
        prompt = self._prompt(text, None, body, most or self._limit, bool(most), likeliest, echo=False)
        return [prompt], ChatForm(**self._form(request, body))

    def completion(self, request: Request) -> tuple[list[Prompt], CompletionForm]:
        body: CompletionBody = read(self._completion, request)
        refuse(body, "logit_bias", "suffix")
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise BadRequest(f"best_of is {body.best_of}: only as many as n are made", hint="leave best_of out")
        given: list[Any] = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if all(isinstance(each, int) for each in given):
            given = [given]
        elif len({type(each) for each in given}) > 1:
            raise BadRequest("prompt mixes kinds", hint="send a string, strings, tokens or lists of tokens")
        if len(given) > MOST_SEQUENCES:
            raise too_many(len(given))
        prompts: list[Prompt] = []
        for each in given:
            if prompts and time.monotonic() >= request.deadline:
                raise TooLate("the deadline passed while the prompts were read", hint="send fewer of them")
            text, tokens = (each, None) if isinstance(each, str) else (None, self._known(each))
            most, asked = body.max_tokens or COMPLETION_TOKENS, body.max_tokens is not None
            prompts.append(self._prompt(text, tokens, body, most, asked, body.logprobs, echo=bool(body.echo)))
        return prompts, CompletionForm(**self._form(request, body))

    def _form(self, request: Request, body: Common) -> dict[str, Any]:
        return {
            "id": request.id,
            "created": int(time.time()),
            "model": body.model or self._name,
            "streams": bool(body.stream),
            "tells_usage": bool(body.stream_options and body.stream_options.include_usage),
            "tokenizer": self._tokenizer,
        }

    def _rendered(self, messages: Sequence[dict[str, str]]) -> str:
        if not self._tokenizer.chat_template:
            raise BadRequest(
                f"model {self._name!r} has no chat template",
                hint="send a prompt to /v1/completions, or put a chat_template.jinja beside the model's tokenizer",
            )
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise BadRequest(f"the model's chat template does not take these messages: {error}") from error
        assert isinstance(text, str)
        return text

    def _known(self, tokens: Any) -> list[int]:
        words = len(self._tokenizer)
        if not tokens or not all(0 <= token < words for token in tokens):
            raise BadRequest(f"prompt has tokens that the model does not know: it has 0 to {words - 1}")
        return list(tokens)

    def _prompt(
        self,
        text: str | None,
        tokens: list[int] | None,
        body: Common,
        most: int | None,
        asked: bool,
        likeliest: int | None,
        *,
        echo: bool,
    ) -> Prompt:
        """`text` or `tokens`; `most` new tokens, which must fit only where they were `asked` for."""
        limit = self._limit if self._limit is not None else MOST_TOKENS
        if tokens is None:
            assert text is not None
            if len(text) > limit * self._longest:
                raise BadRequest(f"the prompt has {len(text)} characters, more than the model's {limit} tokens hold")
            # A chat template has written the special tokens itself.
            special = not isinstance(body, ChatBody)
            tokens = list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
            start = self._tokenizer.bos_token_id
            tokens = tokens or [each for each in (start, self._tokenizer.eos_token_id) if each is not None][:1]
        if not tokens:
            raise BadRequest("the prompt is empty, and this model has no token to begin with", hint="send a prompt")
        room = limit - len(tokens)
        most = most or room
        if room < 1 or (asked and most > room):
            raise BadRequest(
                f"the prompt has {len(tokens)} tokens and {most if asked else 1} more were asked for; the model's "
                f"context has {limit}",
                hint="shorten the messages or lower max_tokens",
            )
        most = min(most, room)
        return Prompt(
            (text if text is not None else self._decoded(tokens)) if echo else "",
            tokens,
            self._settings(body, most, likeliest, echo),
        )

    def _decoded(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens)
        assert isinstance(text, str)
        return text

    def _settings(self, body: Common, most: int, likeliest: int | None, echo: bool) -> Resolved:
        defaults = self._defaults
        temperature = _first(body.temperature, defaults.temperature, 1.0)
        stop = [] if body.stop is None else [body.stop] if isinstance(body.stop, str) else body.stop
        return Resolved(
            most=most,
            least=min(body.min_tokens or 0, most),
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            top_p=_first(body.top_p, defaults.top_p, 1.0),
            top_k=_first(body.top_k, defaults.top_k, 0),
            repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
            sequences=body.n or 1,
            beams=1,
            stop=tuple(stop),
            seed=body.seed,
            full_text=echo,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            likeliest=likeliest,
        )


def _first(asked: Any, model: Any, usual: Any) -> Any:
    return asked if asked is not None else model if model is not None else usual

"""The bodies of /v1/chat/completions and /v1/completions.

Fields: platform.openai.com/docs/api-reference/chat and /completions.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.generation.fields import Count, Degree, Tokens
from serve.handlers.generation.parameters import Rows, Stops, StopString

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

"""The bodies of /v1/chat/completions and /v1/completions.

Fields: platform.openai.com/docs/api-reference/chat and /completions.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from serve.handlers.generation.fields import Count, Degree, Tokens
from serve.handlers.generation.parameters import Rows, Stops, StopString

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Others = Annotated[int, Meta(ge=0, le=20)]
NOTHING = msgspec.Raw(b"null")


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

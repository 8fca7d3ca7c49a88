"""How answers are written: the forms of /invocations, whole as JSON or plain text, or as a stream of events."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from serve.handlers.base import Reply
from serve.handlers.generation.parameters import Resolved
from serve.handlers.generation.sampling import Likely
from serve.handlers.huggingface import bodies
from serve.http import media

JSON, PLAIN, LINES, EVENTS = "application/json", "text/plain", "application/jsonlines", "text/event-stream"
CSV = bodies.CSV


class Prompt(msgspec.Struct, frozen=True):
    text: str
    tokens: list[int]
    settings: Resolved


class Made(Protocol):
    """A sequence as a form sees it."""

    number: int  # among the sequences of its request
    prompt: Prompt
    tokens: list[int]
    likely: list[Likely]  # one a token, where the request asked for them
    reason: str | None  # stop, length, deadline; None while it grows

    @property
    def written(self) -> str:
        """The new text so far."""


class Form(Protocol):
    """What was agreed on with one caller."""

    @property
    def content_type(self) -> str: ...
    @property
    def streams(self) -> bool: ...

    def opening(self, rows: Sequence[Made]) -> bytes:
        """A stream's first chunk; empty for none."""

    def token(self, row: Made, piece: str) -> bytes:
        """A stream's chunk for a row's newest token; its text is empty while a character or stop string may go on."""

    def closing(self, rows: Sequence[Made]) -> bytes:
        """A stream's last chunk."""

    def whole(self, groups: Sequence[Sequence[Made]]) -> Reply:
        """The answer to each prompt: its sequences, more than one when several were asked for."""


class Invocation(msgspec.Struct, frozen=True):
    """As transformers' pipelines write whole answers, and text-generation-inference its streams."""

    content_type: str
    streams: bool
    single: bool  # `inputs` was a string, so the answer is not a list of lists

    def opening(self, rows: Sequence[Made]) -> bytes:
        return b""

    def token(self, row: Made, piece: str) -> bytes:
        return self._event({"token": {"id": row.tokens[-1], "text": piece}, "generated_text": None})

    def closing(self, rows: Sequence[Made]) -> bytes:
        (row,) = rows
        return self._event(
            {
                "token": None,
                "generated_text": _text(row),
                "finish_reason": row.reason or "",
                "prompt_tokens": len(row.prompt.tokens),
                "generated_tokens": len(row.tokens),
            }
        )

    def whole(self, groups: Sequence[Sequence[Made]]) -> Reply:
        if self.content_type == PLAIN:
            return Reply(body=_text(groups[0][0]).encode(), content_type=f"{PLAIN}; charset=utf-8")
        answers = [[_entry(row) for row in group] for group in groups]
        if self.content_type == CSV:
            return bodies.reply([{"generated_text": _text(row)} for group in groups for row in group], CSV)
        body = msgspec.json.encode(answers[0] if self.single else answers)
        return Reply(body=body + b"\n" if self.content_type == LINES else body, content_type=self.content_type)

    def _event(self, fields: dict[str, Any]) -> bytes:
        body = msgspec.json.encode(fields)
        return b"data: " + body + b"\n\n" if self.content_type == EVENTS else body + b"\n"


def form(accept: str, default: str | None, asked_to_stream: bool, single: bool) -> Invocation:
    """The form an Accept header and the `stream` flag ask for; NotAcceptable when there is none."""
    if asked_to_stream:
        # Clients send Accept: application/json by habit; each line of the stream is JSON.
        chosen = media.choose(accept, (LINES, EVENTS, JSON), EVENTS if default == EVENTS else LINES)
        return Invocation(LINES if chosen == JSON else chosen, True, single)
    offers = (JSON, PLAIN, EVENTS, LINES, CSV)
    chosen = media.choose(accept, offers, default if default in offers else JSON)
    return Invocation(chosen, chosen == EVENTS, single)


def _text(row: Made) -> str:
    return row.prompt.text + row.written if row.prompt.settings.full_text else row.written


def _entry(row: Made) -> dict[str, Any]:
    entry = {"generated_text": _text(row)}
    return entry | {"finish_reason": "deadline"} if row.reason == "deadline" else entry

"""How answers are written: whole as JSON or plain text, or as a stream of events."""

from collections.abc import Sequence
from typing import Any

import msgspec

from serve import media
from serve.handlers.base import Reply

JSON, PLAIN, LINES, EVENTS = "application/json", "text/plain", "application/jsonlines", "text/event-stream"


class Form(msgspec.Struct, frozen=True):
    """What was agreed on: the Content-Type and whether the answer is a stream."""

    content_type: str
    streams: bool


def form(accept: str, default: str | None, asked_to_stream: bool) -> Form:
    """The form an Accept header and the `stream` flag ask for; NotAcceptable when there is none."""
    if asked_to_stream:
        # Clients send Accept: application/json by habit; each line of the stream is JSON.
        chosen = media.choose(accept, (LINES, EVENTS, JSON), EVENTS if default == EVENTS else LINES)
        return Form(LINES if chosen == JSON else chosen, True)
    offers = (JSON, PLAIN, EVENTS, LINES)
    chosen = media.choose(accept, offers, default if default in offers else JSON)
    return Form(chosen, chosen == EVENTS)


def whole(content_type: str, answers: Sequence[Sequence[dict[str, Any]]], single: bool) -> Reply:
    """The answer to each prompt: its entries, more than one when several sequences were asked for."""
    if content_type == PLAIN:
        return Reply(body=answers[0][0]["generated_text"].encode(), content_type=f"{PLAIN}; charset=utf-8")
    body = msgspec.json.encode(answers[0] if single else answers)
    return Reply(body=body + b"\n" if content_type == LINES else body, content_type=content_type)


def token(content_type: str, token_id: int, text: str) -> bytes:
    """One event for one token; its text is empty while a character or a stop string may be incomplete."""
    return _event(content_type, {"token": {"id": token_id, "text": text}, "generated_text": None})


def end(content_type: str, text: str, reason: str, prompt_tokens: int, new_tokens: int) -> bytes:
    """The last event."""
    return _event(
        content_type,
        {
            "token": None,
            "generated_text": text,
            "finish_reason": reason,
            "prompt_tokens": prompt_tokens,
            "generated_tokens": new_tokens,
        },
    )


def _event(content_type: str, fields: dict[str, Any]) -> bytes:
    body = msgspec.json.encode(fields)
    return b"data: " + body + b"\n\n" if content_type == EVENTS else body + b"\n"

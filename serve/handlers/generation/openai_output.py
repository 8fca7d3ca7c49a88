"""Answers as OpenAI's API writes them, whole or as server-sent events that end in [DONE].

Shapes: platform.openai.com/docs/api-reference/chat/object, /chat-streaming, /completions/object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from transformers import PreTrainedTokenizerBase

from serve.handlers.base import Reply
from serve.handlers.generation.output import EVENTS, JSON, Made

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIForm:
    """What both APIs share; the two below say what is in a choice."""

    id: str
    created: int
    model: str
    streams: bool
    tells_usage: bool  # in a last event of a stream
    tokenizer: PreTrainedTokenizerBase

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    stream_object: ClassVar[str]

    @property
    def content_type(self) -> str:
        return EVENTS if self.streams else JSON

    def opening(self, rows: Sequence[Made]) -> bytes:
        return b""

    def token(self, row: Made, piece: str) -> bytes:
        newest = row.likely[-1:]
        if not piece and not newest:
            return b""
        return self._event([self._piece(row, piece)])

    def closing(self, rows: Sequence[Made]) -> bytes:
        ends = b"".join(self._event([self._end(row)]) for row in rows)
        usage = self._event([], _usage(rows)) if self.tells_usage else b""
        return ends + usage + DONE

    def whole(self, groups: Sequence[Sequence[Made]]) -> Reply:
        rows = [row for group in groups for row in group]
        choices = [self._choice(row) for row in rows]
        body = self._head(self.whole_object) | {"choices": choices, "usage": _usage(rows)}
        return Reply(body=msgspec.json.encode(body), content_type=JSON)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        fields = self._head(self.stream_object) | {"choices": choices}
        if self.tells_usage:
            fields["usage"] = usage
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"

    def _shown(self, token: int) -> str:
        text = self.tokenizer.decode([token])
        assert isinstance(text, str)
        return text

    def _piece(self, row: Made, piece: str) -> dict[str, Any]:
        raise NotImplementedError

    def _end(self, row: Made) -> dict[str, Any]:
        raise NotImplementedError

    def _choice(self, row: Made) -> dict[str, Any]:
        raise NotImplementedError


class ChatForm(OpenAIForm):
    __slots__ = ()
    prefix, whole_object, stream_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, rows: Sequence[Made]) -> bytes:
        first = {"role": "assistant", "content": ""}
        return b"".join(
            self._event([{"index": row.number, "delta": first, "logprobs": None, "finish_reason": None}])
            for row in rows
        )

    def _piece(self, row: Made, piece: str) -> dict[str, Any]:
        told = self._logprobs(row, -1)
        return {"index": row.number, "delta": {"content": piece}, "logprobs": told, "finish_reason": None}

    def _end(self, row: Made) -> dict[str, Any]:
        return {"index": row.number, "delta": {}, "logprobs": None, "finish_reason": _reason(row)}

    def _choice(self, row: Made) -> dict[str, Any]:
        message = {"role": "assistant", "content": row.written}
        told = self._logprobs(row, 0)
        return {"index": row.number, "message": message, "logprobs": told, "finish_reason": _reason(row)}

    def _logprobs(self, row: Made, since: int) -> dict[str, Any] | None:
        if row.prompt.settings.likeliest is None:
            return None
        content = [
            self._likely(each.token, each.logprob) | {"top_logprobs": [self._likely(*other) for other in each.others]}
            for each in row.likely[since:]
        ]
        return {"content": content, "refusal": None}

    def _likely(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._shown(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class CompletionForm(OpenAIForm):
    __slots__ = ()
    prefix, whole_object, stream_object = "cmpl", "text_completion", "text_completion"

    def opening(self, rows: Sequence[Made]) -> bytes:
        echoed = [row for row in rows if row.prompt.settings.full_text]
        return b"".join(self._event([self._text(row, row.prompt.text, None, None)]) for row in echoed)

    def _piece(self, row: Made, piece: str) -> dict[str, Any]:
        return self._text(row, piece, self._logprobs(row, -1), None)

    def _end(self, row: Made) -> dict[str, Any]:
        return self._text(row, "", None, _reason(row))

    def _choice(self, row: Made) -> dict[str, Any]:
        return self._text(row, row.prompt.text + row.written, self._logprobs(row, 0), _reason(row))

    def _text(self, row: Made, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": row.number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, row: Made, since: int) -> dict[str, Any] | None:
        """Of the new tokens; an echoed prompt has none."""
        if row.prompt.settings.likeliest is None:
            return None
        tokens = [self._shown(each.token) for each in row.likely]
        offsets = [len(row.prompt.text)]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens[since:],
            "token_logprobs": [each.logprob for each in row.likely[since:]],
            "top_logprobs": [
                {self._shown(token): logprob for token, logprob in each.others} for each in row.likely[since:]
            ],
            "text_offset": offsets[since:],
        }


def _reason(row: Made) -> str:
    return "stop" if row.reason == "stop" else "length"  # a deadline cuts as a length does, and clients know no other


def _usage(rows: Sequence[Made]) -> dict[str, int]:
    prompts = sum({id(row.prompt): len(row.prompt.tokens) for row in rows}.values())
    made = sum(len(row.tokens) for row in rows)
    return {"prompt_tokens": prompts, "completion_tokens": made, "total_tokens": prompts + made}

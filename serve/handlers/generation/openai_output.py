"""Answers in the shapes of OpenAI's API, whole or as server-sent events that end with [DONE].

Shapes: platform.openai.com/docs/api-reference/chat/object, /chat-streaming, /completions/object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from transformers import PreTrainedTokenizerBase

from serve.handlers.base import Reply
from serve.handlers.generation.output import Generated
from serve.http import media

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIForm:
    """The common part of both APIs; a subclass writes the choices."""

    id: str
    created: int
    model: str
    streams: bool
    includes_usage: bool  # in an event before the end of a stream
    tokenizer: PreTrainedTokenizerBase

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    stream_object: ClassVar[str]

    @property
    def content_type(self) -> str:
        return media.EVENTS if self.streams else media.JSON

    def opening(self, sequences: Sequence[Generated]) -> bytes:
        return b""

    def token(self, sequence: Generated, piece: str) -> bytes:
        if not piece and not sequence.logprobs:
            return b""
        return self._event([self._piece(sequence, piece, len(sequence.logprobs) - 1)])

    def rest(self, sequence: Generated, piece: str) -> bytes:
        return self._event([self._piece(sequence, piece, len(sequence.logprobs))])

    def closing(self, sequences: Sequence[Generated]) -> bytes:
        ends = b"".join(self._event([self._end(sequence)]) for sequence in sequences)
        usage = self._event([], _usage(sequences)) if self.includes_usage else b""
        return ends + usage + DONE

    def whole(self, groups: Sequence[Sequence[Generated]]) -> Reply:
        sequences = [sequence for group in groups for sequence in group]
        choices = [self._choice(sequence) for sequence in sequences]
        body = self._head(self.whole_object) | {"choices": choices, "usage": _usage(sequences)}
        return Reply(body=msgspec.json.encode(body), content_type=media.JSON)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        fields = self._head(self.stream_object) | {"choices": choices}
        if self.includes_usage:
            fields["usage"] = usage
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"

    def _token_text(self, token: int) -> str:
        text = self.tokenizer.decode([token])
        assert isinstance(text, str)
        return text

    def _piece(self, sequence: Generated, piece: str, since: int) -> dict[str, Any]:
        raise NotImplementedError

    def _end(self, sequence: Generated) -> dict[str, Any]:
        raise NotImplementedError

    def _choice(self, sequence: Generated) -> dict[str, Any]:
        raise NotImplementedError


class ChatForm(OpenAIForm):
    __slots__ = ()
    prefix, whole_object, stream_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, sequences: Sequence[Generated]) -> bytes:
        first = {"role": "assistant", "content": ""}
        return b"".join(
            self._event([{"index": sequence.number, "delta": first, "logprobs": None, "finish_reason": None}])
            for sequence in sequences
        )

    def _piece(self, sequence: Generated, piece: str, since: int) -> dict[str, Any]:
        logprobs = self._logprobs(sequence, since)
        return {"index": sequence.number, "delta": {"content": piece}, "logprobs": logprobs, "finish_reason": None}

    def _end(self, sequence: Generated) -> dict[str, Any]:
        return {"index": sequence.number, "delta": {}, "logprobs": None, "finish_reason": _finish_reason(sequence)}

    def _choice(self, sequence: Generated) -> dict[str, Any]:
        return {
            "index": sequence.number,
            "message": {"role": "assistant", "content": sequence.text},
            "logprobs": self._logprobs(sequence, 0),
            "finish_reason": _finish_reason(sequence),
        }

    def _logprobs(self, sequence: Generated, since: int) -> dict[str, Any] | None:
        if sequence.prompt.settings.logprobs is None:
            return None
        content = [
            self._logprob(each.token, each.logprob) | {"top_logprobs": [self._logprob(*other) for other in each.top]}
            for each in sequence.logprobs[since:]
        ]
        return {"content": content, "refusal": None}

    def _logprob(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class CompletionForm(OpenAIForm):
    __slots__ = ()
    prefix, whole_object, stream_object = "cmpl", "text_completion", "text_completion"

    def opening(self, sequences: Sequence[Generated]) -> bytes:
        echoed = [sequence for sequence in sequences if sequence.prompt.settings.return_full_text]
        return b"".join(self._event([self._entry(each, each.prompt.text, None, None)]) for each in echoed)

    def _piece(self, sequence: Generated, piece: str, since: int) -> dict[str, Any]:
        return self._entry(sequence, piece, self._logprobs(sequence, since), None)

    def _end(self, sequence: Generated) -> dict[str, Any]:
        return self._entry(sequence, "", None, _finish_reason(sequence))

    def _choice(self, sequence: Generated) -> dict[str, Any]:
        text = sequence.prompt.text + sequence.text
        return self._entry(sequence, text, self._logprobs(sequence, 0), _finish_reason(sequence))

    def _entry(
        self, sequence: Generated, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {"index": sequence.number, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, sequence: Generated, since: int) -> dict[str, Any] | None:
        """Of the new tokens; an echoed prompt has none."""
        if sequence.prompt.settings.logprobs is None:
            return None
        tokens = [self._token_text(each.token) for each in sequence.logprobs]
        offsets = [len(sequence.prompt.text)]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens[since:],
            "token_logprobs": [each.logprob for each in sequence.logprobs[since:]],
            "top_logprobs": [
                {self._token_text(token): logprob for token, logprob in each.top} for each in sequence.logprobs[since:]
            ],
            "text_offset": offsets[since:],
        }


def _finish_reason(sequence: Generated) -> str:
    return "stop" if sequence.finish_reason == "stop" else "length"  # OpenAI has no word for a deadline


def _usage(sequences: Sequence[Generated]) -> dict[str, int]:
    prompts = sum({id(sequence.prompt): len(sequence.prompt.tokens) for sequence in sequences}.values())
    generated = sum(len(sequence.tokens) for sequence in sequences)
    return {"prompt_tokens": prompts, "completion_tokens": generated, "total_tokens": prompts + generated}

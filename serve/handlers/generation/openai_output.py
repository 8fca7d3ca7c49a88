"""Answers in the shapes of OpenAI's API, whole or as server-sent events that end with [DONE].

Shapes: platform.openai.com/docs/api-reference/chat/object, /chat-streaming, /completions/object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from serve.handlers.base import Reply
from serve.handlers.generation.output import Generated, reused
from serve.handlers.generation.sampling import TokenLogprobs
from serve.handlers.generation.text_decoder import TokenTexts
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
    texts: TokenTexts
    names_ids: bool = False  # whether logprobs name tokens by their ids, as token_id:5
    counts: bool = False  # whether each event of a stream has the usage so far

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
        return self._event([self._piece(sequence, piece, len(sequence.logprobs) - 1)], self._count(sequence))

    def rest(self, sequence: Generated, piece: str) -> bytes:
        return self._event([self._piece(sequence, piece, len(sequence.logprobs))], self._count(sequence))

    def closing(self, sequences: Sequence[Generated]) -> bytes:
        ends = b"".join(self._event([self._end(sequence)], self._count(sequence)) for sequence in sequences)
        usage = self._event([], _usage(sequences)) if self.includes_usage else b""
        return ends + usage + DONE

    def whole(self, groups: Sequence[Sequence[Generated]]) -> Reply:
        sequences = [sequence for group in groups for sequence in group]
        choices = [self._choice(sequence) for sequence in sequences]
        body = self._head(self.whole_object) | {"choices": choices, "usage": _usage(sequences)}
        return Reply(body=msgspec.json.encode(body), content_type=media.JSON)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        fields = self._head(self.stream_object) | {"choices": choices}
        if self.includes_usage or self.counts:
            fields["usage"] = usage
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"

    def _count(self, sequence: Generated) -> dict[str, Any] | None:
        return _usage([sequence]) if self.counts else None

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self.names_ids else self.texts.shown(token).text

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
            self._event(
                [{"index": sequence.number, "delta": first, "logprobs": None, "finish_reason": None}],
                self._count(sequence),
            )
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
        return {"token": self._name(token), "logprob": logprob, "bytes": list(self.texts.shown(token).raw)}


class CompletionForm(OpenAIForm):
    __slots__ = ()
    prefix, whole_object, stream_object = "cmpl", "text_completion", "text_completion"

    def opening(self, sequences: Sequence[Generated]) -> bytes:
        echoed = [sequence for sequence in sequences if sequence.prompt.settings.return_full_text]
        return b"".join(
            self._event([self._entry(each, each.prompt.text, self._logprobs_of_prompt(each), None)], self._count(each))
            for each in echoed
        )

    def _piece(self, sequence: Generated, piece: str, since: int) -> dict[str, Any]:
        return self._entry(sequence, piece, self._logprobs(sequence, since), None)

    def _end(self, sequence: Generated) -> dict[str, Any]:
        return self._entry(sequence, "", None, _finish_reason(sequence))

    def _choice(self, sequence: Generated) -> dict[str, Any]:
        logprobs = self._logprobs(sequence, 0)
        if (prompt := self._logprobs_of_prompt(sequence)) is not None and logprobs is not None:
            logprobs = {name: prompt[name] + values for name, values in logprobs.items()}
        return self._entry(sequence, sequence.prompt.text + sequence.text, logprobs, _finish_reason(sequence))

    def _entry(
        self, sequence: Generated, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {"index": sequence.number, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, sequence: Generated, since: int) -> dict[str, Any] | None:
        if sequence.prompt.settings.logprobs is None:
            return None
        begin = len(sequence.prompt.text)
        offsets = [begin + offset for offset in sequence.offsets[since:]]
        return self._listed([each.token for each in sequence.logprobs[since:]], sequence.logprobs[since:], offsets)

    def _logprobs_of_prompt(self, sequence: Generated) -> dict[str, Any] | None:
        """Of an echoed prompt; its first token has no probability."""
        prompt = sequence.prompt
        if not prompt.settings.prompt_logprobs:
            return None
        return self._listed(prompt.tokens, [None, *sequence.prompt_logprobs], self.texts.offsets(prompt.tokens))

    def _listed(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs | None], offsets: Sequence[int]
    ) -> dict[str, Any]:
        return {
            "tokens": [self._name(token) for token in tokens],
            "token_logprobs": [each and each.logprob for each in logprobs],
            "top_logprobs": [each and self._top(each) for each in logprobs],
            "text_offset": list(offsets),
        }

    def _top(self, logprobs: TokenLogprobs) -> dict[str, float]:
        """The alternatives and the token itself. Of tokens with the same text the most probable one is shown."""
        top: dict[str, float] = {}
        for token, logprob in (*logprobs.top, (logprobs.token, logprobs.logprob)):
            top.setdefault(self._name(token), logprob)
        return top

    def _name(self, token: int) -> str:
        shown = self.texts.shown(token)
        return super()._name(token) if self.names_ids or shown.whole else f"bytes:{shown.text}"


def _finish_reason(sequence: Generated) -> str:
    return "stop" if sequence.finish_reason == "stop" else "length"  # OpenAI has no word for a deadline


def _usage(sequences: Sequence[Generated]) -> dict[str, Any]:
    prompts = sum({id(sequence.prompt): len(sequence.prompt.tokens) for sequence in sequences}.values())
    generated = sum(len(sequence.tokens) for sequence in sequences)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": generated,
        "total_tokens": prompts + generated,
        "prompt_tokens_details": {"cached_tokens": reused(sequences)},
    }

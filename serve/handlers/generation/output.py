"""Answers of text generation: what a form of answer is, and the forms of /invocations.

A form writes a whole answer, as JSON, CSV or plain text, or a stream of events.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from serve.handlers.base import Reply
from serve.handlers.generation.parameters import Prompt
from serve.handlers.generation.sampling import TokenLogprobs
from serve.handlers.huggingface import bodies
from serve.http import media


class Generated(Protocol):
    """A sequence as a form reads it."""

    number: int  # among the sequences of its request
    prompt: Prompt
    tokens: list[int]
    reused: int  # first tokens of the prompt that were not computed again
    logprobs: list[TokenLogprobs]  # of each token, if the request asked for them
    prompt_logprobs: list[TokenLogprobs]  # of the prompt's tokens from the second on, if it asked for these too
    offsets: list[int]  # with logprobs: where the text of each token begins in the new text
    finish_reason: str | None  # stop, length, deadline; None until the sequence has ended

    @property
    def text(self) -> str:
        """The new text so far."""


class Form(Protocol):
    """The form of the answer to one request."""

    @property
    def content_type(self) -> str: ...
    @property
    def streams(self) -> bool: ...

    def opening(self, sequences: Sequence[Generated]) -> bytes:
        """The first chunk of a stream; may be empty."""

    def token(self, sequence: Generated, piece: str) -> bytes:
        """The chunk for the newest token of a sequence. `piece` is the text that is final since the last token: it is
        empty while the token may be a part of a character or of a stop string."""

    def rest(self, sequence: Generated, piece: str) -> bytes:
        """The chunk for text that was held back until the sequence was ended, at its deadline."""

    def closing(self, sequences: Sequence[Generated]) -> bytes:
        """The last chunk of a stream."""

    def whole(self, groups: Sequence[Sequence[Generated]]) -> Reply:
        """The whole answer; `groups` are the sequences of each prompt."""


class InvocationForm(msgspec.Struct, frozen=True):
    """Whole answers as transformers' pipelines write them, streams as text-generation-inference does."""

    content_type: str
    streams: bool
    single: bool  # `inputs` was a string, so the answer is not a list of lists

    def opening(self, sequences: Sequence[Generated]) -> bytes:
        return b""

    def token(self, sequence: Generated, piece: str) -> bytes:
        return token_event(self.content_type, sequence, piece)

    def rest(self, sequence: Generated, piece: str) -> bytes:
        return token_event(self.content_type, sequence, piece)

    def closing(self, sequences: Sequence[Generated]) -> bytes:
        (sequence,) = sequences
        return last_event(self.content_type, sequence, _text(sequence))

    def whole(self, groups: Sequence[Sequence[Generated]]) -> Reply:
        headers = {"X-Cached-Tokens": str(reused([sequence for group in groups for sequence in group]))}
        return msgspec.structs.replace(self._whole(groups), headers=headers)

    def _whole(self, groups: Sequence[Sequence[Generated]]) -> Reply:
        if self.content_type == media.TEXT:
            return Reply(body=_plain(groups[0][0]).encode(), content_type=f"{media.TEXT}; charset=utf-8")
        if self.content_type == media.CSV:
            rows = [{"generated_text": _plain(sequence)} for group in groups for sequence in group]
            return bodies.reply(rows, media.CSV)
        answers = [[_entry(sequence) for sequence in group] for group in groups]
        body = msgspec.json.encode(answers[0] if self.single else answers)
        return Reply(
            body=body + b"\n" if self.content_type == media.JSON_LINES else body, content_type=self.content_type
        )


def token_event(content_type: str, sequence: Generated, piece: str) -> bytes:
    """The chunk of a stream for the newest token of a sequence."""
    token = (sequence.tokens or sequence.prompt.tokens)[-1]
    return _event(content_type, {"token": {"id": token, "text": piece}, "generated_text": None})


def last_event(content_type: str, sequence: Generated, text: Any) -> bytes:
    """The last chunk of a stream, with the whole text."""
    fields = {
        "token": None,
        "generated_text": text,
        "finish_reason": sequence.finish_reason or "",
        "prompt_tokens": len(sequence.prompt.read),
        "cached_tokens": sequence.reused,
        "generated_tokens": len(sequence.tokens),
    }
    return _event(content_type, fields)


def _event(content_type: str, fields: dict[str, Any]) -> bytes:
    body = msgspec.json.encode(fields)
    return b"data: " + body + b"\n\n" if content_type == media.EVENTS else body + b"\n"


def stream_type(accept: str, default: str) -> str:
    """The media type of a stream for an Accept header. Raises NotAcceptable."""
    # Many clients always send Accept: application/json, and each line of the stream is JSON.
    chosen = media.choose(
        accept,
        (media.JSON_LINES, media.EVENTS, media.JSON),
        media.EVENTS if default == media.EVENTS else media.JSON_LINES,
    )
    return media.JSON_LINES if chosen == media.JSON else chosen


def invocation_form(accept: str, default: str, asked_to_stream: bool, single: bool) -> InvocationForm:
    """The form for an Accept header and the `stream` flag. Raises NotAcceptable."""
    if asked_to_stream:
        return InvocationForm(stream_type(accept, default), True, single)
    offers = (media.JSON, media.TEXT, media.EVENTS, media.JSON_LINES, media.CSV)
    chosen = media.choose(accept, offers, default if default in offers else media.JSON)
    return InvocationForm(chosen, chosen == media.EVENTS, single)


def reused(sequences: Sequence[Generated]) -> int:
    """The tokens of all prompts that were not computed again. A prompt counts as its first sequence has found it."""
    return sum({id(each.prompt): each.reused for each in reversed(sequences)}.values())


def _text(sequence: Generated) -> Any:
    """The text, behind its prompt if that is asked for; for a chat the messages, with the answer as the last."""
    prompt = sequence.prompt
    if not prompt.settings.return_full_text or prompt.chat is None:
        return _plain(sequence)
    *before, last = prompt.chat
    if last["role"] == "assistant":
        begun = last.get("content") or ""
        more = begun + sequence.text if isinstance(begun, str) else [*begun, {"type": "text", "text": sequence.text}]
        return [*before, last | {"content": more}]
    return [*prompt.chat, {"role": "assistant", "content": sequence.text}]


def _plain(sequence: Generated) -> str:
    return sequence.prompt.text + sequence.text if sequence.prompt.settings.return_full_text else sequence.text


def _entry(sequence: Generated) -> dict[str, Any]:
    entry = {"generated_text": _text(sequence)}
    return entry | {"finish_reason": "deadline"} if sequence.finish_reason == "deadline" else entry

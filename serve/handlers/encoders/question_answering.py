"""Extractive question answering: the span of the context that answers best.

transformers had a pipeline for it up to version 4; requests, replies and scores are those of that pipeline. A long
context is read in overlapping windows, and the same answer found twice counts twice.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from transformers import AutoModelForQuestionAnswering

from serve.errors import BadRequest
from serve.handlers.encoders import task
from serve.handlers.encoders.forward import Row, softmax
from serve.handlers.encoders.text_classification import Length
from serve.handlers.huggingface import bodies

LONGEST_CONTEXT = 1 << 20  # characters; some hundred windows, and a second for the tokenizer
MOST_ANSWERS = 1 << 16  # top_k times windows of one request: twice as many are compared, and sorted
USUAL_WINDOW = 384  # tokens, question and context together

Floats = npt.NDArray[np.float32]


class Parameters(task.Parameters, frozen=True, kw_only=True):
    top_k: Length | None = None
    topk: Length | None = None
    doc_stride: Annotated[int, Meta(ge=0)] | None = None
    max_answer_len: Length = 15
    max_seq_len: Length | None = None
    max_question_len: Length | None = None  # the pipeline heeds it with slow tokenizers only
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    padding: bool | str | None = None


class QuestionAnswering(task.Task):
    auto_class = AutoModelForQuestionAnswering
    kind = Parameters
    bare = ("question", "context")

    def read(self, inputs: Any, parameters: Parameters, deadline: float) -> tuple[list[Row], Any]:
        rows, windows = [], []
        for number, (question, context) in enumerate(_questions(inputs)):
            for encoding in self._windows(question, context, parameters, deadline):
                rows.append(Row({"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}, deadline))
                windows.append((number, context, encoding))
            if len(rows) > task.MOST_WINDOWS:
                raise task.too_many_windows(len(rows))
        if len(rows) * _top(parameters) > MOST_ANSWERS:
            raise BadRequest(
                f"parameters.top_k is {_top(parameters)} and the contexts are read in {len(rows)} windows: together "
                f"they may make {MOST_ANSWERS}",
                hint="lower top_k, or send less at once",
            )
        if not rows:
            raise BadRequest("inputs is an empty list", hint='send {"inputs": {"question": "...", "context": "..."}}')
        return rows, windows

    def _windows(self, question: str, context: str, parameters: Parameters, deadline: float) -> Any:
        """The encodings of a question with each part of its context."""
        self.check(deadline)
        if len(context) > LONGEST_CONTEXT:
            raise BadRequest(
                f"context has {len(context)} characters; at most {LONGEST_CONTEXT} are read", hint="send it in parts"
            )
        window = min(parameters.max_seq_len or USUAL_WINDOW, self.encoder.limit)
        asked = len(self.tokenizer(self.encoder.shortened(question), add_special_tokens=False, verbose=False).input_ids)
        room = window - asked - self.tokenizer.num_special_tokens_to_add(pair=True)
        if room < 1:
            raise BadRequest(
                f"question has {asked} tokens and leaves no room for the context in {window}",
                hint="shorten it" + ", or raise max_seq_len" * (window < self.encoder.limit),
            )
        stride = min(window // 2, 128) if parameters.doc_stride is None else parameters.doc_stride
        if parameters.doc_stride is not None and stride >= room:
            raise BadRequest(
                f"parameters.doc_stride is {stride}: it must be under {room}, the context's part of a window"
            )
        stride = min(stride, room - 1)
        self.check_windows(context, room - stride)
        first = self.tokenizer.padding_side == "right"
        return self.tokenizer(
            question if first else context,
            context if first else question,
            truncation="only_second" if first else "only_first",
            max_length=window,
            stride=stride,
            return_overflowing_tokens=True,
            verbose=False,
        ).encodings

    def take(self, output: Any, number: int, kept: slice, row: Row) -> Sequence[Any]:
        return [output.start_logits[number, kept], output.end_logits[number, kept]]

    def answer(self, item: task.Item) -> Any:
        parameters: Parameters = item.parameters
        # For each question by its text in lower case.
        found: list[dict[str, dict[str, Any]]] = [{} for _ in range(item.what[-1][0] + 1)]
        impossible = [1e6] * len(found)
        for row, (number, context, encoding) in zip(item.rows, item.what, strict=True):
            null = self._add(found[number], context, encoding, row, parameters)
            impossible[number] = min(impossible[number], null)
        answers = [
            self._best(list(each.values()), null, parameters) for each, null in zip(found, impossible, strict=True)
        ]
        return answers[0] if len(answers) == 1 else answers

    def _best(self, found: list[dict[str, Any]], null: float, parameters: Parameters) -> Any:
        if parameters.handle_impossible_answer:
            found.append({"score": null, "start": 0, "end": 0, "answer": ""})
        found.sort(key=lambda each: each["score"], reverse=True)
        best = found[: _top(parameters)]
        return best[0] if len(best) == 1 else best

    def _add(
        self, found: dict[str, dict[str, Any]], context: str, encoding: Any, row: Row, parameters: Parameters
    ) -> float:
        """Put the best spans of one window to those found; the probability that there is none."""
        part = 1 if self.tokenizer.padding_side == "right" else 0
        inside = np.array([which == part for which in encoding.sequence_ids])
        if self.tokenizer.cls_token_id is not None:  # some models say with it that there is no answer
            inside |= np.array(encoding.ids) == self.tokenizer.cls_token_id
        start, end = (softmax(np.where(inside, each, -10_000.0)) for each in row.outputs)
        null = float(start[0] * end[0])
        start[0] = end[0] = 0
        words = parameters.align_to_words
        most = _top(parameters) * 2 + 10 if words else _top(parameters)  # spans of the same words are one answer
        for first, last, score in _spans(start, end, inside, most, parameters.max_answer_len):
            begins, ends = _characters(encoding, first, last, part, words)
            text = context[begins:ends]
            if text.lower() in found:
                found[text.lower()]["score"] += score
            else:
                found[text.lower()] = {"score": score, "start": begins, "end": ends, "answer": text}
        return null


def _top(parameters: Parameters) -> int:
    return parameters.top_k or parameters.topk or 1


def _spans(
    start: Floats, end: Floats, inside: npt.NDArray[np.bool_], most: int, longest: int
) -> Iterator[tuple[int, int, float]]:
    """The best (first token, last token, score), best first: scores are products of the ends' probabilities."""
    length = len(start)
    # Row d holds the spans of d + 1 tokens: longest x length numbers, where all pairs would be length x length.
    scores = np.zeros((min(longest, length), length), np.float32)
    for more in range(len(scores)):
        scores[more, : length - more] = start[: length - more] * end[more:]
    flat = scores.ravel()
    best = np.arange(len(flat)) if len(flat) <= most else np.argpartition(-flat, most - 1)[:most]
    for index in best[np.argsort(-flat[best], kind="stable")]:
        more, first = divmod(int(index), length)
        last = first + more
        if last < length and inside[first] and inside[last]:
            yield first, last, float(flat[index])


def _characters(encoding: Any, first: int, last: int, part: int, words: bool) -> tuple[int, int]:
    """Where a span of tokens lies in the context; in whole words where the tokenizer knows words."""
    if words:
        begins, ends = encoding.token_to_word(first), encoding.token_to_word(last)
        if begins is not None and ends is not None:
            begun, ended = encoding.word_to_chars(begins, part), encoding.word_to_chars(ends, part)
            if begun is not None and ended is not None:
                return int(begun[0]), int(ended[1])
    return int(encoding.offsets[first][0]), int(encoding.offsets[last][1])


def _questions(inputs: Any) -> Iterator[tuple[str, str]]:
    """Each question with its context; a list of questions may share one, or have one each."""
    for each in inputs if isinstance(inputs, list) else [inputs]:
        if not isinstance(each, dict) or each.keys() != {"question", "context"}:
            raise BadRequest(
                "inputs must be an object of question and context, or a list of them",
                hint='send {"inputs": {"question": "...", "context": "..."}}',
            )
        questions, contexts = _texts("question", each), _texts("context", each)
        if len(contexts) == 1:
            contexts = contexts * len(questions)
        if len(contexts) != len(questions):
            raise BadRequest(f"question is a list of {len(questions)} and context one of {len(contexts)}")
        for question, context in zip(questions, contexts, strict=True):
            for name, text in (("question", question), ("context", context)):
                if not text.strip():
                    raise BadRequest(f"{name} is empty", hint="send a text")
            yield question, context


def _texts(name: str, given: dict[str, Any]) -> list[str]:
    value = given[name]
    made: list[str] = bodies.convert(name, list[str], [value] if isinstance(value, str) else value)
    return made

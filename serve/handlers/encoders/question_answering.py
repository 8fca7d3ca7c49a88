"""Extractive question answering: the span of the context that answers the question best.

transformers had a pipeline for it up to version 4; requests, replies and scores are those of that pipeline. A long
context is read in overlapping windows. The scores of the same answer in several windows are added.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from transformers import AutoModelForQuestionAnswering

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, ModelUnusable
from serve.handlers.encoders.forward import EncoderRow, softmax
from serve.handlers.encoders.task import MAX_WINDOWS, EncoderItem, Length, Task, TaskParameters, too_many_windows
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions

MAX_CHARACTERS = 1 << 20  # of a context: some hundred windows, and a second for the tokenizer
MAX_ANSWERS = 1 << 16  # top_k times windows of one request; twice as many spans are compared and sorted
DEFAULT_WINDOW = 384  # tokens, question and context together
EXAMPLE = '{"inputs": {"question": "...", "context": "..."}}'

Floats = npt.NDArray[np.float32]
Answers = dict[str, dict[str, Any]]  # by their text in lower case


class QuestionAnsweringParameters(TaskParameters, frozen=True, kw_only=True):
    top_k: Length | None = None
    topk: Length | None = None
    doc_stride: Annotated[int, Meta(ge=0)] | None = None
    max_answer_len: Length = 15
    max_seq_len: Length | None = None
    max_question_len: Length | None = None  # ignored: the pipeline used it with slow tokenizers only
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    padding: bool | str | None = None

    @property
    def answers(self) -> int:
        """How many answers to return."""
        return self.top_k or self.topk or 1


class QuestionAnswering(Task):
    auto_class = AutoModelForQuestionAnswering
    parameters = QuestionAnsweringParameters
    bare = ("question", "context")

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        super().__init__(model)
        if not self.tokenizer.is_fast:
            raise ModelUnusable(
                f"{type(self.tokenizer).__name__} does not tell the characters of a token, which answers need",
                hint="add a tokenizer.json, or serve the model by a code/inference.py",
            )

    def read(
        self, inputs: Any, parameters: QuestionAnsweringParameters, deadline: float
    ) -> tuple[list[EncoderRow], Any]:
        rows, windows = [], []
        for number, (question, context) in enumerate(_questions(inputs)):
            for encoding in self._windows(question, context, parameters, deadline):
                rows.append(EncoderRow({"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}, deadline))
                windows.append((number, context, encoding))
            if len(rows) > MAX_WINDOWS:
                raise too_many_windows(len(rows))
        if len(rows) * parameters.answers > MAX_ANSWERS:
            raise BadRequest(
                f"parameters.top_k is {parameters.answers} and the contexts have {len(rows)} windows; the limit of "
                f"their product is {MAX_ANSWERS}",
                hint="lower top_k, or send less at once",
            )
        if not rows:
            raise bodies.no_inputs(EXAMPLE)
        return rows, windows

    def _windows(self, question: str, context: str, parameters: QuestionAnsweringParameters, deadline: float) -> Any:
        """The encodings of a question with each window of its context."""
        bodies.check_deadline(deadline)
        if len(context) > MAX_CHARACTERS:
            raise BadRequest(
                f"context has {len(context)} characters; the limit is {MAX_CHARACTERS}", hint="send it in parts"
            )
        window = min(parameters.max_seq_len or DEFAULT_WINDOW, self.encoder.limit)
        length = len(
            self.tokenizer(self.encoder.shortened(question), add_special_tokens=False, verbose=False).input_ids
        )
        room = window - length - self.tokenizer.num_special_tokens_to_add(pair=True)
        if room < 1:
            raise BadRequest(
                f"question has {length} tokens and leaves no room for the context in a window of {window}",
                hint="shorten it" + ", or raise max_seq_len" * (window < self.encoder.limit),
            )
        stride = min(window // 2, 128) if parameters.doc_stride is None else parameters.doc_stride
        if parameters.doc_stride is not None and stride >= room:
            raise BadRequest(
                f"parameters.doc_stride is {stride}: it must be under {room}, the tokens of context in a window"
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

    def extract(self, output: Any, number: int, columns: slice, row: EncoderRow) -> Sequence[Any]:
        return [output.start_logits[number, columns], output.end_logits[number, columns]]

    def answer(self, item: EncoderItem) -> Any:
        parameters: QuestionAnsweringParameters = item.parameters
        found: list[Answers] = [{} for _ in range(item.context[-1][0] + 1)]  # for each question
        impossible = [1e6] * len(found)
        for row, (number, context, encoding) in zip(item.rows, item.context, strict=True):
            null = self._add(found[number], context, encoding, row, parameters)
            impossible[number] = min(impossible[number], null)
        answers = [_best(list(each.values()), null, parameters) for each, null in zip(found, impossible, strict=True)]
        return answers[0] if len(answers) == 1 else answers

    def _add(
        self, found: Answers, context: str, encoding: Any, row: EncoderRow, parameters: QuestionAnsweringParameters
    ) -> float:
        """Add the best spans of one window to `found`; returns the probability that the window has no answer."""
        part = 1 if self.tokenizer.padding_side == "right" else 0
        inside = np.array([which == part for which in encoding.sequence_ids])
        if self.tokenizer.cls_token_id is not None:  # a span at this token means that there is no answer
            inside |= np.array(encoding.ids) == self.tokenizer.cls_token_id
        start, end = (softmax(np.where(inside, each, -10_000.0)) for each in row.outputs)
        null = float(start[0] * end[0])
        start[0] = end[0] = 0
        words = parameters.align_to_words
        most = parameters.answers * 2 + 10 if words else parameters.answers  # spans of the same words are one answer
        for first, last, score in _spans(start, end, inside, most, parameters.max_answer_len):
            begin, stop = _characters(encoding, first, last, part, words)
            text = context[begin:stop]
            if text.lower() in found:
                found[text.lower()]["score"] += score
            else:
                found[text.lower()] = {"score": score, "start": begin, "end": stop, "answer": text}
        return null


def _best(found: list[dict[str, Any]], null: float, parameters: QuestionAnsweringParameters) -> Any:
    if parameters.handle_impossible_answer:
        found.append({"score": null, "start": 0, "end": 0, "answer": ""})
    found.sort(key=lambda each: each["score"], reverse=True)
    best = found[: parameters.answers]
    return best[0] if len(best) == 1 else best


def _spans(
    start: Floats, end: Floats, inside: npt.NDArray[np.bool_], most: int, longest: int
) -> Iterator[tuple[int, int, float]]:
    """The best (first token, last token, score), best first. A score is the product of the probabilities of both."""
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
    """The characters of a span of tokens in the context, extended to whole words if the tokenizer knows words."""
    if words:
        begin, end = encoding.token_to_word(first), encoding.token_to_word(last)
        if begin is not None and end is not None:
            first_word, last_word = encoding.word_to_chars(begin, part), encoding.word_to_chars(end, part)
            if first_word is not None and last_word is not None:
                return int(first_word[0]), int(last_word[1])
    return int(encoding.offsets[first][0]), int(encoding.offsets[last][1])


def _questions(inputs: Any) -> Iterator[tuple[str, str]]:
    """Each question with its context. Several questions share one context, or have one each."""
    for each in inputs if isinstance(inputs, list) else [inputs]:
        if not isinstance(each, dict) or each.keys() != {"question", "context"}:
            raise BadRequest(
                "inputs must be an object of question and context, or a list of such objects", hint=f"send {EXAMPLE}"
            )
        questions, contexts = _texts("question", each), _texts("context", each)
        if len(contexts) == 1:
            contexts = contexts * len(questions)
        if len(contexts) != len(questions):
            raise BadRequest(
                f"question is a list of {len(questions)} and context a list of {len(contexts)}",
                hint="send one context, or one for each question",
            )
        for question, context in zip(questions, contexts, strict=True):
            for name, text in (("question", question), ("context", context)):
                if not text.strip():
                    raise BadRequest(f"{name} is empty", hint="send a text")
            yield question, context


def _texts(name: str, given: dict[str, Any]) -> list[str]:
    value = given[name]
    texts: list[str] = bodies.convert(name, list[str], [value] if isinstance(value, str) else value)
    return texts

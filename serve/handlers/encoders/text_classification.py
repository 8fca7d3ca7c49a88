"""Text classification: labels and scores for a text or a pair of texts."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from transformers import AutoModelForSequenceClassification

from serve.errors import BadRequest
from serve.handlers.encoders import task
from serve.handlers.encoders.forward import Row, sigmoid, softmax
from serve.handlers.huggingface import bodies

Truncation = bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"]
Length = Annotated[int, Meta(ge=1)]


class Parameters(task.Parameters, frozen=True, kw_only=True):
    top_k: Length | UnsetType | None = UNSET  # null: all
    function_to_apply: str | None = None
    return_all_scores: bool | None = None  # gone from transformers 5, but what callers have sent for years
    truncation: Truncation | None = None
    padding: bool | str | None = None
    max_length: Length | None = None


class Pair(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    text_pair: str | None = None


FUNCTIONS = {"sigmoid": sigmoid, "softmax": softmax, "none": lambda logits: logits}


class TextClassification(task.Task):
    auto_class = AutoModelForSequenceClassification
    kind = Parameters
    bare = ("text", "text_pair")

    def read(self, inputs: Any, parameters: Parameters, deadline: float) -> tuple[list[Row], Any]:
        name = parameters.function_to_apply
        if name is not None and name.lower() not in (*FUNCTIONS, "default"):
            raise BadRequest(
                f"parameters.function_to_apply is {name[:50]!r}", hint="it must be one of: " + ", ".join(FUNCTIONS)
            )
        if inputs == []:
            raise BadRequest("inputs is an empty list", hint='send {"inputs": "a text"}')
        chosen = task.settings(msgspec.structs.asdict(parameters), self.encoder.limit)
        pairs = map(_pair, inputs if isinstance(inputs, list) else [inputs])
        return [Row(self.tokens(deadline, *each, **chosen), deadline) for each in pairs], type(inputs)

    def take(self, output: Any, number: int, kept: slice, row: Row) -> Sequence[Any]:
        return [output.logits[number]]

    def answer(self, item: task.Item) -> Any:
        parameters: Parameters = item.parameters
        answers = [self._answer(row.outputs[0], parameters) for row in item.rows]
        if item.what is list:
            return answers
        # The pipeline's own oddity: one text without top_k is a list of one, one pair is not.
        return answers if item.what is str and parameters.top_k is UNSET else answers[0]

    def _answer(self, logits: Any, parameters: Parameters) -> Any:
        scores = FUNCTIONS[self._function(parameters)](logits)
        labels = self.config.id2label
        if parameters.top_k is UNSET and not parameters.return_all_scores:
            best = int(scores.argmax())
            return {"label": labels[best], "score": float(scores[best])}
        every = [{"label": labels[number], "score": float(score)} for number, score in enumerate(scores)]
        if parameters.top_k is UNSET:
            return every
        order = np.argsort(-scores, kind="stable")
        return [every[number] for number in order[: parameters.top_k]]

    def _function(self, parameters: Parameters) -> str:
        asked = (parameters.function_to_apply or "default").lower()
        if asked != "default":
            return asked
        kind = self.config.problem_type
        if kind == "regression":
            return "none"
        return "sigmoid" if kind == "multi_label_classification" or self.config.num_labels == 1 else "softmax"


def _pair(given: Any) -> list[str]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], list) and len(given[0]) == 2:
        return bodies.texts(given[0])  # how pairs were sent once
    if isinstance(given, list):
        raise BadRequest("inputs has a list where a text should be", hint='a pair is {"text": ..., "text_pair": ...}')
    pair: Pair = bodies.convert("inputs", Pair, given)
    return [pair.text] if pair.text_pair is None else [pair.text, pair.text_pair]

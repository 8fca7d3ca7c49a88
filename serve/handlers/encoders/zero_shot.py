"""Zero-shot classification: each label as a hypothesis that a model of inference finds entailed, or not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification

from serve.errors import BadRequest
from serve.handlers.encoders import task
from serve.handlers.encoders.forward import Row, softmax
from serve.handlers.huggingface import bodies

HOLES = ("{}", "{0}")
MOST_PAIRS = 4096  # of a text and a label, in one request


class Parameters(task.Parameters, frozen=True, kw_only=True):
    candidate_labels: str | list[str] = ""
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False


class ZeroShotClassification(task.Task):
    auto_class = AutoModelForSequenceClassification
    kind = Parameters
    table = False  # nested parameters have no place in a table
    offers = (bodies.JSON,)

    def read(self, inputs: Any, parameters: Parameters, deadline: float) -> tuple[list[Row], Any]:
        texts, labels = bodies.texts(inputs), parameters.candidate_labels
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        if not labels:
            raise BadRequest(
                "parameters.candidate_labels is missing",
                hint='send {"inputs": "a text", "parameters": {"candidate_labels": ["sport", "politics"]}}',
            )
        # Not str.format: a template is a stranger's, and {:999999999} would take a gigabyte.
        hole = next((each for each in HOLES if each in parameters.hypothesis_template), None)
        if hole is None:
            raise BadRequest("parameters.hypothesis_template has no {} where the label goes")
        if len(texts) * len(labels) > MOST_PAIRS:
            raise BadRequest(
                f"{len(texts)} texts times {len(labels)} candidate_labels are over {MOST_PAIRS}, as many pairs as one "
                "request may ask for",
                hint="send several requests; they are batched together",
            )
        hypotheses = [self._hypothesis(parameters.hypothesis_template, hole, label) for label in labels]
        rows = [
            Row(self.tokens(deadline, text, hypothesis, cut="only_first"), deadline)
            for text in texts
            for hypothesis in hypotheses
        ]
        return rows, (texts, labels, isinstance(inputs, str))

    def _hypothesis(self, template: str, hole: str, label: str) -> str:
        length = len(template) + template.count(hole) * len(label)
        if length > self.encoder.longest:  # before it is made: many holes for a long label are gigabytes
            raise self.too_long(f"a hypothesis of {length} characters")
        return template.replace(hole, label)

    def take(self, output: Any, number: int, kept: slice, row: Row) -> Sequence[Any]:
        return [output.logits[number]]

    def answer(self, item: task.Item) -> Any:
        texts, labels, single = item.what
        logits = np.stack([row.outputs[0] for row in item.rows]).reshape(len(texts), len(labels), -1)
        answers = [
            self._answer(text, labels, part, item.parameters.multi_label)
            for text, part in zip(texts, logits, strict=True)
        ]
        return answers[0] if single else answers

    def _answer(self, text: str, labels: list[str], logits: Any, multi_label: bool) -> dict[str, Any]:
        entailment = next(
            (number for label, number in self.config.label2id.items() if label.lower().startswith("entail")), -1
        )
        if multi_label or len(labels) == 1:
            contradiction = -1 if entailment == 0 else 0
            scores = softmax(logits[:, [contradiction, entailment]])[:, 1]
        else:
            scores = softmax(logits[:, entailment])
        order = scores.argsort()[::-1]
        return {
            "sequence": text,
            "labels": [labels[number] for number in order],
            "scores": [float(scores[number]) for number in order],
        }

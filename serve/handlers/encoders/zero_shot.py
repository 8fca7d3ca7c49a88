"""Zero-shot classification: an inference model scores whether a text entails each label's hypothesis."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification

from serve.errors import BadRequest
from serve.handlers.encoders.forward import EncoderRow, softmax
from serve.handlers.encoders.task import EncoderItem, Task, TaskParameters
from serve.handlers.huggingface import bodies
from serve.http import media

PLACEHOLDERS = ("{}", "{0}")
MAX_PAIRS = 4096  # of a text and a label, in one request


class ZeroShotParameters(TaskParameters, frozen=True, kw_only=True):
    candidate_labels: str | list[str] = ""
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False


class ZeroShotClassification(Task):
    auto_class = AutoModelForSequenceClassification
    parameters = ZeroShotParameters
    table = False  # the labels are parameters, and a table has none
    offers = (media.JSON,)

    def read(self, inputs: Any, parameters: ZeroShotParameters, deadline: float) -> tuple[list[EncoderRow], Any]:
        texts, labels = bodies.texts(inputs), parameters.candidate_labels
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        if not labels:
            raise BadRequest(
                "parameters.candidate_labels is missing",
                hint='send {"inputs": "a text", "parameters": {"candidate_labels": ["sport", "politics"]}}',
            )
        # Not str.format: the template comes from the caller, and {:999999999} would take a gigabyte.
        placeholder = next((each for each in PLACEHOLDERS if each in parameters.hypothesis_template), None)
        if placeholder is None:
            raise BadRequest(
                "parameters.hypothesis_template has no {} for the label", hint='for example "This text is about {}."'
            )
        if len(texts) * len(labels) > MAX_PAIRS:
            raise BadRequest(
                f"{len(texts)} texts times {len(labels)} candidate_labels are over the limit of {MAX_PAIRS} pairs in "
                "one request",
                hint="send several requests; the server batches them",
            )
        hypotheses = [self._hypothesis(parameters.hypothesis_template, placeholder, label) for label in labels]
        rows = [
            EncoderRow(self.tokens(deadline, text, hypothesis, truncation="only_first"), deadline)
            for text in texts
            for hypothesis in hypotheses
        ]
        return rows, (texts, labels, isinstance(inputs, str))

    def _hypothesis(self, template: str, placeholder: str, label: str) -> str:
        length = len(template) + template.count(placeholder) * len(label)
        if length > self.encoder.longest:  # checked first: many placeholders and a long label make gigabytes
            raise self.too_long(f"a hypothesis of {length} characters")
        return template.replace(placeholder, label)

    def extract(self, output: Any, number: int, columns: slice, row: EncoderRow) -> Sequence[Any]:
        return [output.logits[number]]

    def answer(self, item: EncoderItem) -> Any:
        texts, labels, single = item.context
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

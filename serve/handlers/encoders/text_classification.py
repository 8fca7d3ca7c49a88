"""Text classification: labels and scores of a text or of a pair of texts."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from transformers import AutoModelForSequenceClassification

from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.encoders import vector_apis
from serve.handlers.encoders.forward import EncoderRow, sigmoid, softmax
from serve.handlers.encoders.task import EncoderItem, Length, Task, TaskParameters, TokenizerArguments, Truncation
from serve.handlers.encoders.vector_apis import RerankBody
from serve.handlers.huggingface import bodies
from serve.http import media
from serve.http.addresses import INVOCATIONS, RERANK


class TextClassificationParameters(TaskParameters, frozen=True, kw_only=True):
    top_k: Length | UnsetType | None = UNSET  # null: all
    function_to_apply: str | None = None
    return_all_scores: bool | None = None  # removed in transformers 5; clients still send it
    truncation: Truncation | None = None
    padding: bool | str | None = None
    max_length: Length | None = None


class TextPair(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    text_pair: str | None = None


FUNCTIONS = {"sigmoid": sigmoid, "softmax": softmax, "none": lambda logits: logits}


class TextClassification(Task):
    auto_class = AutoModelForSequenceClassification
    parameters = TextClassificationParameters
    bare = ("text", "text_pair")
    paths = (INVOCATIONS, RERANK)

    def read(
        self, inputs: Any, parameters: TextClassificationParameters, deadline: float
    ) -> tuple[list[EncoderRow], Any]:
        name = parameters.function_to_apply
        if name is not None and name.lower() not in (*FUNCTIONS, "default"):
            raise BadRequest(
                f"parameters.function_to_apply is {name[:50]!r}", hint="it must be one of: " + ", ".join(FUNCTIONS)
            )
        if inputs == []:
            raise bodies.no_inputs()
        asked = TokenizerArguments(truncation=parameters.truncation, max_length=parameters.max_length)
        arguments = self.tokenizer_arguments(asked)
        pairs = map(_pair, inputs if isinstance(inputs, list) else [inputs])
        return [EncoderRow(self.tokens(deadline, *each, **arguments), deadline) for each in pairs], type(inputs)

    def decode(self, request: Request) -> EncoderItem:
        if request.path == INVOCATIONS:
            return super().decode(request)
        if self.config.num_labels != 1:
            raise BadRequest(
                f"{request.path} needs a classifier with one label, and this model has {self.config.num_labels}",
                hint="send it to /invocations, or use a cross-encoder or a model of sentence embeddings",
            )
        content_type = bodies.accepted(request, self._model, (media.JSON,))
        asked = vector_apis.read(request, RerankBody)
        vector_apis.check_documents(asked)
        arguments: dict[str, Any] = {}
        if (most := asked.truncate_prompt_tokens) is not None:
            arguments = {"truncation": True, "max_length": self.encoder.limit if most == -1 else most}
        rows = [
            EncoderRow(self.tokens(request.deadline, asked.query, text, **arguments), request.deadline)
            for text in asked.texts
        ]
        return self.item(rows, asked, None, content_type, self._ranking)

    def _ranking(self, item: EncoderItem) -> Any:
        """By the probability that the model gives each pair, or by its logit if the model says so."""
        scores = [float(self._relevance(row.outputs[0])[0]) for row in item.rows]
        return vector_apis.ranking(item.context, self._model.name, scores, item.rows)

    def _relevance(self, logits: Any) -> Any:
        """As sentence-transformers' CrossEncoder does: a sigmoid, unless config.json names another function."""
        said = getattr(self.config, "sentence_transformers", None)
        name = said.get("activation_fn") if isinstance(said, dict) else None
        name = name or getattr(self.config, "sbert_ce_default_activation_function", None)
        return logits if str(name).endswith(".Identity") else sigmoid(logits)

    def extract(self, output: Any, number: int, columns: slice, row: EncoderRow) -> Sequence[Any]:
        return [output.logits[number]]

    def answer(self, item: EncoderItem) -> Any:
        parameters: TextClassificationParameters = item.parameters
        answers = [self._answer(row.outputs[0], parameters) for row in item.rows]
        if item.context is list:
            return answers
        # As in the pipeline: the answer to one text without top_k is a list of one, the answer to one pair is not.
        return answers if item.context is str and parameters.top_k is UNSET else answers[0]

    def _answer(self, logits: Any, parameters: TextClassificationParameters) -> Any:
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

    def _function(self, parameters: TextClassificationParameters) -> str:
        asked = (parameters.function_to_apply or "default").lower()
        if asked != "default":
            return asked
        problem = self.config.problem_type
        if problem == "regression":
            return "none"
        return "sigmoid" if problem == "multi_label_classification" or self.config.num_labels == 1 else "softmax"


def _pair(given: Any) -> list[str]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], list) and len(given[0]) == 2:
        return bodies.texts(given[0])  # the pipeline's former form of a pair
    if isinstance(given, list):
        raise BadRequest("inputs has a list in place of a text", hint='a pair is {"text": ..., "text_pair": ...}')
    pair: TextPair = bodies.convert("inputs", TextPair, given)
    return [pair.text] if pair.text_pair is None else [pair.text, pair.text_pair]

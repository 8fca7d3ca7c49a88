"""Feature extraction: a vector for each token, or for each text if the model's directory defines a pooling."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from transformers import AutoModel

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.encoders import pooling, vector_apis
from serve.handlers.encoders.forward import UNLIMITED, EncoderRow
from serve.handlers.encoders.task import EncoderItem, Task, TaskParameters, TokenizerArguments, Truncation
from serve.handlers.encoders.vector_apis import EmbeddingsBody, RerankBody, VectorBody
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions
from serve.http import media
from serve.http.addresses import EMBEDDINGS, INVOCATIONS, RERANK


class FeatureExtractionParameters(TaskParameters, frozen=True, kw_only=True):
    truncation: Truncation | None = None
    tokenize_kwargs: TokenizerArguments | None = None
    return_tensors: bool | None = None


class FeatureExtraction(Task):
    """The task "feature-extraction" returns a vector for each token, as the pipeline does; "sentence-embeddings" one
    for each text.

    Without a task, modules.json, the file of sentence-transformers, decides.
    """

    auto_class = AutoModel
    parameters = FeatureExtractionParameters
    offers = (media.JSON, media.NPY)
    paths = (INVOCATIONS, EMBEDDINGS, RERANK)
    optional_weights = ("pooler.",)  # BERT's own pooling, trained for another task and not used here

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        self._pooling = None
        if model.task != pooling.FEATURES:
            self._pooling = pooling.read(model.directory)
        if self._pooling is None and model.task == pooling.SENTENCES:
            self._pooling = pooling.Pooling()
        super().__init__(model)
        self._size = 0  # of a text's vector
        if self._pooling:
            self._size = self._pooling.check(self.config.hidden_size)
        if self._pooling and self._pooling.limit:
            self.encoder.limit = min(self.encoder.limit, self._pooling.limit)
            self.tokenizer.model_max_length = self.encoder.limit

    def read(
        self, inputs: Any, parameters: FeatureExtractionParameters, deadline: float
    ) -> tuple[list[EncoderRow], Any]:
        if parameters.return_tensors:
            raise BadRequest(
                "parameters.return_tensors is not supported over HTTP", hint=f"set Accept: {media.NPY} for an array"
            )
        asked = parameters.tokenize_kwargs or TokenizerArguments()
        if parameters.truncation is not None:
            asked = msgspec.structs.replace(asked, truncation=parameters.truncation)
        if self._pooling:  # as sentence-transformers does
            asked = msgspec.structs.replace(asked, truncation=True)
        arguments = self.tokenizer_arguments(asked)
        texts = bodies.texts(inputs)
        if self._pooling and self._pooling.lower:
            texts = [text.lower() for text in texts]
        rows = [EncoderRow(self.tokens(deadline, text, **arguments), deadline) for text in texts]
        return rows, isinstance(inputs, str)

    def decode(self, request: Request) -> EncoderItem:
        if request.path == INVOCATIONS:
            return super().decode(request)
        if self._pooling is None:
            raise BadRequest(
                f"the model returns a vector for each token, and {request.path} needs one for each text",
                hint=f'set task = "{pooling.SENTENCES}" in model.toml',
            )
        content_type = bodies.accepted(request, self._model, (media.JSON,))
        if request.path == EMBEDDINGS:
            asked = vector_apis.read(request, EmbeddingsBody)
            self._check_dimensions(asked.dimensions)
            given = vector_apis.inputs(asked, getattr(self.config.get_text_config(), "vocab_size", UNLIMITED))
            rows = self._rows(given, asked, request.deadline, special=asked.add_special_tokens is not False)
            return self.item(rows, asked, None, content_type, self._embeddings)
        ranked = vector_apis.read(request, RerankBody)
        vector_apis.check_documents(ranked)
        rows = self._rows([ranked.query, *ranked.texts], ranked, request.deadline)
        return self.item(rows, ranked, None, content_type, self._ranking)

    def _rows(
        self, given: list[str] | list[list[int]], asked: VectorBody, deadline: float, *, special: bool = True
    ) -> list[EncoderRow]:
        """Rows for /v1/embeddings and /v1/rerank. Unlike /invocations, they do not cut a text without being asked."""
        most = asked.truncate_prompt_tokens
        arguments: dict[str, Any] = {"add_special_tokens": special}
        if most is not None:
            arguments |= {"truncation": True, "max_length": self.encoder.limit if most == -1 else most}
        rows = []
        for each in given:
            if isinstance(each, str):
                text = each.lower() if self._pooling and self._pooling.lower else each
                rows.append(EncoderRow(self.tokens(deadline, text, **arguments), deadline))
            else:
                tokens = each if most is None else each[: arguments["max_length"]]
                if len(tokens) > self.encoder.limit:
                    raise self.too_long(f"{len(tokens)} tokens")
                rows.append(EncoderRow({"input_ids": tokens}, deadline))
        return rows

    def _check_dimensions(self, dimensions: int | None) -> None:
        trained = getattr(self.config, "matryoshka_dimensions", None)
        if dimensions is None:
            return
        if dimensions > self._size or (trained and dimensions not in (*trained, self._size)):
            raise BadRequest(
                f"dimensions is {dimensions}; the model's vectors have {self._size}",
                hint=f"it must be one of {trained}" if trained else "it must not be over that",
            )

    def _embeddings(self, item: EncoderItem) -> Any:
        vectors: list[vector_apis.Vector] = [row.outputs[0] for row in item.rows]
        if item.context.dimensions is not None and self._pooling is not None:
            vectors = [self._pooling.shortened(vector, item.context.dimensions) for vector in vectors]
        return vector_apis.embeddings(item.context, self._model.name, vectors, item.rows)

    def _ranking(self, item: EncoderItem) -> Any:
        """By the cosine of the query's vector and each document's."""
        query, *documents = (row.outputs[0] / max(float(np.linalg.norm(row.outputs[0])), 1e-12) for row in item.rows)
        scores = [float(query @ document) for document in documents]
        return vector_apis.ranking(item.context, self._model.name, scores, item.rows)

    def extract(self, output: Any, number: int, columns: slice, row: EncoderRow) -> Sequence[Any]:
        hidden: torch.Tensor = output[0][number, columns]
        return [self._pooling.pooled(hidden.float().cpu()) if self._pooling else hidden[None]]

    def answer(self, item: EncoderItem) -> Any:
        vectors, single = [row.outputs[0] for row in item.rows], item.context
        if item.content_type == media.NPY:
            return vectors[0] if single else vectors
        return vectors[0].tolist() if single else [each.tolist() for each in vectors]

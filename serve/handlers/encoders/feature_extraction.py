"""Feature extraction: a vector for each token, or for each text if the model's directory defines a pooling."""

from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from transformers import AutoModel

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest
from serve.handlers.encoders import pooling
from serve.handlers.encoders.forward import EncoderRow
from serve.handlers.encoders.task import EncoderItem, Task, TaskParameters, TokenizerArguments, Truncation
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions
from serve.http import media


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
    optional_weights = ("pooler.",)  # BERT's own pooling, trained for another task and not used here

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        self._pooling = None
        if model.task != pooling.FEATURES:
            self._pooling = pooling.read(model.directory)
        if self._pooling is None and model.task == pooling.SENTENCES:
            self._pooling = pooling.Pooling()
        super().__init__(model)
        if self._pooling and self._pooling.layers:
            self._pooling.check(self.config.hidden_size)
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

    def extract(self, output: Any, number: int, columns: slice, row: EncoderRow) -> Sequence[Any]:
        hidden: torch.Tensor = output[0][number, columns]
        return [self._pooling.pooled(hidden.float().cpu()) if self._pooling else hidden[None]]

    def answer(self, item: EncoderItem) -> Any:
        vectors, single = [row.outputs[0] for row in item.rows], item.context
        if item.content_type == media.NPY:
            return vectors[0] if single else vectors
        return vectors[0].tolist() if single else [each.tolist() for each in vectors]

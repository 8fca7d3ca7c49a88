"""Feature extraction: a vector for each token, or for each text where the model's directory says how to pool them."""

from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from transformers import AutoModel

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest
from serve.handlers.encoders import pooling, task
from serve.handlers.encoders.fill_mask import Tokenizing
from serve.handlers.encoders.forward import Row
from serve.handlers.encoders.text_classification import Truncation
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions


class Parameters(task.Parameters, frozen=True, kw_only=True):
    truncation: Truncation | None = None
    tokenize_kwargs: Tokenizing | None = None
    return_tensors: bool | None = None


class FeatureExtraction(task.Task):
    """`task`: "feature-extraction" gives tokens, as the pipeline does; "sentence-embeddings" one vector a text.

    Without one, modules.json decides, sentence-transformers' file.
    """

    auto_class = AutoModel
    kind = Parameters
    offers = (bodies.JSON, bodies.NPY)
    unused = ("pooler.",)  # BERT's own, for the task it was trained on; ours are the hidden states below it

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        self._pooling = None
        if model.task != pooling.FEATURES:
            self._pooling = pooling.read(model.directory)
        if self._pooling is None and model.task == pooling.SENTENCES:
            self._pooling = pooling.Pooling()
        super().__init__(model)
        if self._pooling and self._pooling.after:
            self._pooling.check(self.config.hidden_size)
        if self._pooling and self._pooling.limit:
            self.encoder.limit = min(self.encoder.limit, self._pooling.limit)
            self.tokenizer.model_max_length = self.encoder.limit

    def read(self, inputs: Any, parameters: Parameters, deadline: float) -> tuple[list[Row], Any]:
        if parameters.return_tensors:
            raise BadRequest("parameters.return_tensors: tensors do not travel", hint=f"Accept: {bodies.NPY} is near")
        said = parameters.tokenize_kwargs or Tokenizing()
        if parameters.truncation is not None:
            said = msgspec.structs.replace(said, truncation=parameters.truncation)
        if self._pooling:  # sentence-transformers cuts what is too long
            said = msgspec.structs.replace(said, truncation=True)
        chosen = task.settings(msgspec.structs.asdict(said), self.encoder.limit)
        texts = bodies.texts(inputs)
        if self._pooling and self._pooling.lower:
            texts = [text.lower() for text in texts]
        return [Row(self.tokens(deadline, text, **chosen), deadline) for text in texts], isinstance(inputs, str)

    def take(self, output: Any, number: int, kept: slice, row: Row) -> Sequence[Any]:
        hidden: torch.Tensor = output[0][number, kept]
        return [self._pooling.pooled(hidden.float().cpu()) if self._pooling else hidden[None]]

    def answer(self, item: task.Item) -> Any:
        vectors = [row.outputs[0] for row in item.rows]
        if item.content_type == bodies.NPY:
            return vectors[0] if item.what else vectors
        return vectors[0].tolist() if item.what else [each.tolist() for each in vectors]

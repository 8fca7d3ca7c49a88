"""Token classification: entities in a text, token by token or put together.

What comes before and after the pass is transformers' own, so that words are put together exactly as there.
"""

import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from transformers import AutoModelForTokenClassification
from transformers.pipelines.token_classification import TokenClassificationPipeline

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest
from serve.handlers.encoders import task
from serve.handlers.encoders.forward import Row
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions

# True of the model, not of the request: said once for each would fill the log.
warnings.filterwarnings("ignore", message="Tokenizer does not support real words")


LONGEST = 1 << 20  # characters of a text read in strides: a second for the tokenizer


class Parameters(task.Parameters, frozen=True, kw_only=True):
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: Annotated[list[str], Meta(max_length=1024)] | None = None
    stride: Annotated[int, Meta(ge=0)] | None = None
    is_split_into_words: bool = False
    delimiter: Annotated[str, Meta(max_length=64)] | None = None
    grouped_entities: bool | None = None  # these two by the names they had before aggregation_strategy
    ignore_subwords: bool | None = None


class TokenClassification(task.Task):
    auto_class = AutoModelForTokenClassification
    kind = Parameters

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        super().__init__(model)
        self._pipeline = TokenClassificationPipeline(model=self.encoder.network, tokenizer=self.tokenizer)

    def read(self, inputs: Any, parameters: Parameters, deadline: float) -> tuple[list[Row], Any]:
        before, after = self._settings(parameters)
        words = parameters.is_split_into_words
        single = isinstance(inputs, str)
        if single or (words and isinstance(inputs, list) and not all(isinstance(each, list) for each in inputs)):
            inputs = [inputs]
        texts = bodies.convert("inputs", list[list[str]] if words else list[str], inputs)
        if not texts or [] in texts:
            raise BadRequest("inputs is an empty list", hint='send {"inputs": "a text"}')
        rows: list[Row] = []
        pieces: list[list[dict[str, Any]]] = []
        for text in texts:
            self.check(deadline)
            if not words:
                text = self.encoder.shortened(text) if parameters.stride is None else _whole(text)
            if parameters.stride is not None:
                said = (parameters.delimiter or " ").join(text) if words else text
                self.check_windows(said, self._room() - parameters.stride)
                if len(rows) > task.MOST_WINDOWS:
                    raise task.too_many_windows(len(rows))
            pieces.append(list(self._pipeline.preprocess(text, **before)))
            for piece in pieces[-1]:
                kept = piece["attention_mask"][0].bool()  # pieces of one text are padded to one length
                row = {
                    name: piece[name][0][kept].tolist() for name in self.tokenizer.model_input_names if name in piece
                }
                rows.append(Row(row, deadline))
        return rows, (pieces, after, single)

    def take(self, output: Any, number: int, kept: slice, row: Row) -> Sequence[Any]:
        return [output.logits[number, kept]]

    def answer(self, item: task.Item) -> Any:
        pieces, after, single = item.what
        rows = iter(item.rows)
        answers = []
        for each in pieces:
            outputs = [
                {"word_ids": None, **piece, "logits": torch.from_numpy(next(rows).outputs[0])[None]} for piece in each
            ]
            entities = self._pipeline.postprocess(outputs, **after)
            answers.append([{**entity, "score": float(entity["score"])} for entity in entities])
        return answers[0] if single else answers

    def _settings(self, parameters: Parameters) -> tuple[dict[str, Any], dict[str, Any]]:
        strategy = parameters.aggregation_strategy
        if strategy is None and parameters.grouped_entities:
            strategy = "first" if parameters.ignore_subwords else "simple"
        stride = parameters.stride
        if stride is not None and stride >= self._room():
            raise BadRequest(f"parameters.stride is {stride}: it must be under {self._room()}")
        if stride is not None and strategy in (None, "none"):
            raise BadRequest("parameters.stride needs an aggregation_strategy", hint="such as simple")
        before, _, after = self._pipeline._sanitize_parameters(
            ignore_labels=parameters.ignore_labels,
            aggregation_strategy=strategy,
            is_split_into_words=parameters.is_split_into_words,
            stride=stride,
            delimiter=parameters.delimiter,
        )
        return before, after

    def _room(self) -> int:
        return int(self.encoder.limit - self.tokenizer.num_special_tokens_to_add())


def _whole(text: str) -> str:
    if len(text) > LONGEST:
        raise BadRequest(f"inputs has {len(text)} characters; at most {LONGEST} are read", hint="send it in parts")
    return text

"""Token classification: entities in a text, token by token or aggregated to words.

transformers' own pipeline does the work before and after the pass, so that words are aggregated exactly as there.
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
from serve.handlers.encoders.forward import EncoderRow
from serve.handlers.encoders.task import MAX_WINDOWS, EncoderItem, Task, TaskParameters, too_many_windows
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions

# It is true of the model, not of the request: a warning for each request would fill the log.
warnings.filterwarnings("ignore", message="Tokenizer does not support real words")

MAX_CHARACTERS = 1 << 20  # of a text that is read in strides: the tokenizer takes a second


class TokenClassificationParameters(TaskParameters, frozen=True, kw_only=True):
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: Annotated[list[str], Meta(max_length=1024)] | None = None
    stride: Annotated[int, Meta(ge=0)] | None = None
    is_split_into_words: bool = False
    delimiter: Annotated[str, Meta(max_length=64)] | None = None
    grouped_entities: bool | None = None  # this and the next: the former names of aggregation strategies
    ignore_subwords: bool | None = None


class TokenClassification(Task):
    auto_class = AutoModelForTokenClassification
    parameters = TokenClassificationParameters

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        super().__init__(model)
        self._pipeline = TokenClassificationPipeline(model=self.encoder.network, tokenizer=self.tokenizer)

    def read(
        self, inputs: Any, parameters: TokenClassificationParameters, deadline: float
    ) -> tuple[list[EncoderRow], Any]:
        before, after = self._pipeline_arguments(parameters)
        words = parameters.is_split_into_words
        single = isinstance(inputs, str)
        if single or (words and isinstance(inputs, list) and not all(isinstance(each, list) for each in inputs)):
            inputs = [inputs]
        texts = bodies.convert("inputs", list[list[str]] if words else list[str], inputs)
        if not texts or [] in texts:
            raise bodies.no_inputs()
        rows: list[EncoderRow] = []
        pieces: list[list[dict[str, Any]]] = []  # of each text
        for text in texts:
            bodies.check_deadline(deadline)
            if not words:
                text = self.encoder.shortened(text) if parameters.stride is None else _checked(text)
            if parameters.stride is not None:
                joined = (parameters.delimiter or " ").join(text) if words else text
                self.check_windows(joined, self._text_limit() - parameters.stride)
                if len(rows) > MAX_WINDOWS:
                    raise too_many_windows(len(rows))
            pieces.append(list(self._pipeline.preprocess(text, **before)))
            for piece in pieces[-1]:
                kept = piece["attention_mask"][0].bool()  # the pipeline pads the pieces of a text to one length
                encoding = {
                    name: piece[name][0][kept].tolist() for name in self.tokenizer.model_input_names if name in piece
                }
                rows.append(EncoderRow(encoding, deadline))
        return rows, (pieces, after, single)

    def extract(self, output: Any, number: int, columns: slice, row: EncoderRow) -> Sequence[Any]:
        return [output.logits[number, columns]]

    def answer(self, item: EncoderItem) -> Any:
        pieces, after, single = item.context
        rows = iter(item.rows)
        answers = []
        for each in pieces:
            outputs = [  # a tokenizer without tokenizer.json gives neither words nor offsets
                {
                    "word_ids": None,
                    "offset_mapping": None,
                    **piece,
                    "logits": torch.from_numpy(next(rows).outputs[0])[None],
                }
                for piece in each
            ]
            entities = self._pipeline.postprocess(outputs, **after)
            answers.append([{**entity, "score": float(entity["score"])} for entity in entities])
        return answers[0] if single else answers

    def _pipeline_arguments(self, parameters: TokenClassificationParameters) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of the pipeline's preprocess and postprocess."""
        strategy = parameters.aggregation_strategy
        if strategy is None and parameters.grouped_entities:
            strategy = "first" if parameters.ignore_subwords else "simple"
        stride = parameters.stride
        if stride is not None and stride >= self._text_limit():
            raise BadRequest(f"parameters.stride is {stride}: it must be under {self._text_limit()}")
        if stride is not None and strategy in (None, "none"):
            raise BadRequest(
                "parameters.stride needs an aggregation_strategy", hint='for example "aggregation_strategy": "simple"'
            )
        try:
            before, _, after = self._pipeline._sanitize_parameters(
                ignore_labels=parameters.ignore_labels,
                aggregation_strategy=strategy,
                is_split_into_words=parameters.is_split_into_words,
                stride=stride,
                delimiter=parameters.delimiter,
            )
        except ValueError as error:  # of a tokenizer without tokenizer.json: it does not know words
            raise BadRequest(f"parameters: {error}", hint="leave out aggregation_strategy and stride") from error
        return before, after

    def _text_limit(self) -> int:
        """Tokens of text in one window, special tokens not counted."""
        return int(self.encoder.limit - self.tokenizer.num_special_tokens_to_add())


def _checked(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise BadRequest(
            f"inputs has {len(text)} characters; the limit with a stride is {MAX_CHARACTERS}",
            hint="send the text in parts",
        )
    return text

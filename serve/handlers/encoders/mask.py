"""Fill-mask: the likeliest tokens where a text has the mask token."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor
from transformers import AutoModelForMaskedLM

from serve.errors import BadRequest, ModelUnusable
from serve.handlers.base import Model
from serve.handlers.encoders import task
from serve.handlers.encoders.classification import Length, Truncation
from serve.handlers.encoders.forward import Row
from serve.handlers.encoders.scores import softmax
from serve.handlers.huggingface import pipeline


class Tokenizing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    truncation: Truncation | None = None
    padding: bool | str | None = None
    max_length: Length | None = None


class Parameters(task.Parameters, frozen=True, kw_only=True):
    top_k: Length | None = None
    targets: str | Annotated[list[str], Meta(min_length=1)] | None = None
    tokenizer_kwargs: Tokenizing | None = None


class FillMask(task.Task):
    auto_class = AutoModelForMaskedLM
    kind = Parameters

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._mask = self.tokenizer.mask_token_id
        if self._mask is None:
            raise ModelUnusable(
                "the tokenizer has no mask token", hint="fill-mask needs one; see tokenizer_config.json"
            )
        self._at: Tensor | None = None
        head = self.encoder.network.get_output_embeddings()
        # A vocabulary of logits for every token of 32 long texts is 2 GB: the head sees the masks only.
        self.encoder.network.register_forward_pre_hook(self._find_masks, with_kwargs=True)
        head.register_forward_pre_hook(self._masks_only)

    def _find_masks(self, network: Any, arguments: Any, inputs: dict[str, Tensor]) -> None:
        found = inputs["input_ids"] == self._mask
        # The places of the masks come first, in their order; rows with fewer masks have other places behind them.
        self._at = found.int().argsort(dim=1, descending=True, stable=True)[:, : int(found.sum(1).max())]

    def _masks_only(self, head: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = arguments
        assert self._at is not None
        return (hidden[torch.arange(len(hidden), device=hidden.device)[:, None], self._at], *rest)

    def read(self, inputs: Any, parameters: Parameters, deadline: float) -> tuple[list[Row], Any]:
        said = parameters.tokenizer_kwargs or Tokenizing()
        chosen = task.settings(msgspec.structs.asdict(said), self.encoder.limit)
        rows = [Row(self.tokens(deadline, text, **chosen), deadline) for text in pipeline.texts(inputs)]
        for row in rows:
            if self._mask not in row.ids:
                raise BadRequest(
                    f"inputs has no mask token ({self.tokenizer.mask_token})" + " left when cut" * bool(chosen["cut"]),
                    hint=f"put {self.tokenizer.mask_token} where a word is wanted",
                )
        return rows, self._targets(parameters.targets)

    def take(self, output: Any, number: int, kept: slice) -> Sequence[Any]:
        return [output.logits[number]]

    def answer(self, item: task.Item) -> Any:
        answers = [self._answer(row, item.parameters.top_k or 5, item.what) for row in item.rows]
        return answers[0] if len(answers) == 1 else answers

    def _answer(self, row: Row, top_k: int, targets: list[int] | None) -> Any:
        places = [place for place, token in enumerate(row.ids) if token == self._mask]
        answers = []
        for place, logits in zip(places, row.outputs[0], strict=False):
            scores = softmax(logits)
            offered = np.arange(len(scores)) if targets is None else np.array(targets)
            best = offered[np.argsort(-scores[offered], kind="stable")[:top_k]]
            answers.append([self._proposal(row, place, int(token), float(scores[token]), places) for token in best])
        return answers[0] if len(answers) == 1 else answers

    def _proposal(self, row: Row, place: int, token: int, score: float, places: list[int]) -> dict[str, Any]:
        tokens = [*row.ids[:place], token, *row.ids[place + 1 :]]
        tokens = [each for each in tokens if each != self.tokenizer.pad_token_id]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            "sequence": self.tokenizer.decode(tokens, skip_special_tokens=len(places) == 1),  # else no mask is seen
        }

    def _targets(self, targets: str | list[str] | None) -> list[int] | None:
        if targets is None:
            return None
        words, vocabulary = [targets] if isinstance(targets, str) else targets, self.tokenizer.get_vocab()
        numbers = []
        for word in words:
            if word in vocabulary:
                numbers.append(vocabulary[word])
            else:  # its first token stands for it
                numbers += self.tokenizer(self.encoder.shortened(word), add_special_tokens=False)["input_ids"][:1]
        if not numbers:
            raise BadRequest("parameters.targets has no word of the model's vocabulary")
        return list(dict.fromkeys(numbers))

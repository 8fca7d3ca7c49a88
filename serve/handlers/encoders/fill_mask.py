"""Fill-mask: the most probable tokens in place of the mask token of a text."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor
from transformers import AutoModelForMaskedLM

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, ModelUnusable
from serve.handlers.encoders.forward import EncoderRow
from serve.handlers.encoders.task import EncoderItem, Length, Task, TaskParameters, TokenizerArguments
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions

MAX_MASKS = 64  # in one text: the pass computes a logit for each token of the vocabulary at each mask
MAX_PROPOSALS = 1 << 16  # of one request; the tokenizer decodes two texts for each, in 0.1 ms


class FillMaskParameters(TaskParameters, frozen=True, kw_only=True):
    top_k: Length | None = None
    targets: str | Annotated[list[str], Meta(min_length=1, max_length=1 << 14)] | None = None
    tokenizer_kwargs: TokenizerArguments | None = None


class FillMask(Task):
    auto_class = AutoModelForMaskedLM
    parameters = FillMaskParameters

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        super().__init__(model)
        self._mask = self.tokenizer.mask_token_id
        if self._mask is None:
            raise ModelUnusable(
                "the tokenizer has no mask token, which fill-mask needs",
                hint="set mask_token in tokenizer_config.json, or another task in model.toml",
            )
        self._positions: Tensor | None = None  # of the masks in the pass that runs now
        self._selected = False  # in the pass that runs now
        self._vocabulary = self.config.get_text_config().vocab_size
        head = self.encoder.network.get_output_embeddings()
        # Logits for every token of 32 long texts take 2 GB, so the head computes those of the masks only.
        self.encoder.network.register_forward_pre_hook(self._find_masks, with_kwargs=True)
        if head is not None:
            head.register_forward_pre_hook(self._select_masks)

    def _find_masks(self, network: Any, arguments: Any, inputs: dict[str, Tensor]) -> None:
        self._selected = False
        found = inputs["input_ids"] == self._mask
        # The positions of the masks come first, in their order; rows with fewer masks are filled up with others.
        self._positions = found.int().argsort(dim=1, descending=True, stable=True)[:, : int(found.sum(1).max())]

    def _select_masks(self, head: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = arguments
        assert self._positions is not None
        self._selected = True
        return (self._at_masks(hidden), *rest)

    def _at_masks(self, hidden: Tensor) -> Tensor:
        """[texts, tokens, size] -> [texts, masks, size]"""
        return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], self._positions]

    def read(self, inputs: Any, parameters: FillMaskParameters, deadline: float) -> tuple[list[EncoderRow], Any]:
        arguments = self.tokenizer_arguments(parameters.tokenizer_kwargs or TokenizerArguments())
        top_k, targets = parameters.top_k or 5, self._targets(parameters.targets)
        rows = [
            EncoderRow(self.tokens(deadline, text, **arguments), deadline, (top_k, targets))
            for text in bodies.texts(inputs)
        ]
        counts = [row.ids.count(self._mask) for row in rows]
        for count in counts:
            if count > MAX_MASKS:
                raise BadRequest(
                    f"a text has {count} mask tokens; the limit is {MAX_MASKS}", hint="send the text in parts"
                )
            if not count:
                cut = " in the part that truncation leaves" if arguments["truncation"] else ""
                raise BadRequest(
                    f"inputs has no mask token ({self.tokenizer.mask_token}){cut}",
                    hint=f"put {self.tokenizer.mask_token} in place of the word to predict",
                )
        offered = self._vocabulary if targets is None else len(targets)
        if (proposals := sum(counts) * min(top_k, offered)) > MAX_PROPOSALS:
            raise BadRequest(
                f"{sum(counts)} mask tokens times top_k are {proposals} proposals; the limit of a request is "
                f"{MAX_PROPOSALS}",
                hint="lower top_k, or send several requests; the server batches them",
            )
        return rows, None

    def extract(self, output: Any, number: int, columns: slice, row: EncoderRow) -> Sequence[Any]:
        """For each mask the scores and the ids of the best tokens; the scores of a whole vocabulary are too large."""
        top_k, targets = row.wanted
        logits: Tensor = output.logits[number]
        if not self._selected:  # MobileBERT multiplies by the weights of its head and does not call it
            assert self._positions is not None
            logits = logits[self._positions[number]]
        scores = logits[: row.ids.count(self._mask)].float().softmax(-1)
        ids = torch.arange(scores.shape[-1], device=scores.device)
        if targets is not None:
            ids = torch.tensor(targets, device=scores.device)
            scores = scores[:, ids]
        top = scores.topk(min(top_k, len(ids)))
        return [top.values, ids[top.indices]]

    def answer(self, item: EncoderItem) -> Any:
        answers = [self._answer(row) for row in item.rows]
        return answers[0] if len(answers) == 1 else answers

    def _answer(self, row: EncoderRow) -> Any:
        positions = [position for position, token in enumerate(row.ids) if token == self._mask]
        answers = [
            [self._proposal(row, position, token, score, positions) for score, token in zip(*best, strict=True)]
            for position, *best in zip(positions, *(each.tolist() for each in row.outputs), strict=True)
        ]
        return answers[0] if len(answers) == 1 else answers

    def _proposal(
        self, row: EncoderRow, position: int, token: int, score: float, positions: list[int]
    ) -> dict[str, Any]:
        tokens = [*row.ids[:position], token, *row.ids[position + 1 :]]
        tokens = [each for each in tokens if each != self.tokenizer.pad_token_id]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            # With several masks the others stay visible in the text.
            "sequence": self.tokenizer.decode(tokens, skip_special_tokens=len(positions) == 1),
        }

    def _targets(self, targets: str | list[str] | None) -> list[int] | None:
        """The ids of the target words; a word outside the vocabulary is represented by its first token."""
        if targets is None:
            return None
        ids: list[int] = []
        for word in [targets] if isinstance(targets, str) else targets:
            token = self.tokenizer.convert_tokens_to_ids(word)
            if token not in (None, self.tokenizer.unk_token_id):
                ids.append(token)
            else:
                ids += self.tokenizer(self.encoder.shortened(word), add_special_tokens=False)["input_ids"][:1]
        if not ids:
            raise BadRequest(
                "parameters.targets: unknown words: none is in the model's vocabulary", hint="see tokenizer.json"
            )
        return list(dict.fromkeys(ids))

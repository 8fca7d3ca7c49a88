"""Fill-mask: the likeliest tokens where a text has the mask token."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor
from transformers import AutoModelForMaskedLM

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, ModelUnusable
from serve.handlers.encoders import task
from serve.handlers.encoders.forward import Row
from serve.handlers.encoders.text_classification import Length, Truncation
from serve.handlers.huggingface import bodies
from serve.handlers.huggingface.options import HuggingFaceOptions

MOST_MASKS = 64  # in one text: for each the pass makes a vocabulary of numbers
MOST_PROPOSALS = 1 << 16  # of one request; each is two texts for the tokenizer to put together, 0.1 ms


class Tokenizing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    truncation: Truncation | None = None
    padding: bool | str | None = None
    max_length: Length | None = None


class Parameters(task.Parameters, frozen=True, kw_only=True):
    top_k: Length | None = None
    targets: str | Annotated[list[str], Meta(min_length=1, max_length=1 << 14)] | None = None
    tokenizer_kwargs: Tokenizing | None = None


class FillMask(task.Task):
    auto_class = AutoModelForMaskedLM
    kind = Parameters

    def __init__(self, model: ModelConfig[HuggingFaceOptions]) -> None:
        super().__init__(model)
        self._mask = self.tokenizer.mask_token_id
        if self._mask is None:
            raise ModelUnusable(
                "the tokenizer has no mask token", hint="fill-mask needs one; see tokenizer_config.json"
            )
        self._at: Tensor | None = None
        self._words = self.config.get_text_config().vocab_size
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
        wanted = parameters.top_k or 5, self._targets(parameters.targets)
        rows = [Row(self.tokens(deadline, text, **chosen), deadline, wanted) for text in bodies.texts(inputs)]
        counts = [row.ids.count(self._mask) for row in rows]
        for count in counts:
            if count > MOST_MASKS:
                raise BadRequest(f"a text has {count} mask tokens; at most {MOST_MASKS} are filled in")
            if not count:
                raise BadRequest(
                    f"inputs has no mask token ({self.tokenizer.mask_token})" + " left when cut" * bool(chosen["cut"]),
                    hint=f"put {self.tokenizer.mask_token} where a word is wanted",
                )
        offered = self._words if wanted[1] is None else len(wanted[1])
        if (proposals := sum(counts) * min(wanted[0], offered)) > MOST_PROPOSALS:
            raise BadRequest(
                f"{sum(counts)} mask tokens times top_k make {proposals} proposals, and one request may ask for "
                f"{MOST_PROPOSALS}",
                hint="lower top_k, or send several requests; they are batched together",
            )
        return rows, None

    def take(self, output: Any, number: int, kept: slice, row: Row) -> Sequence[Any]:
        """For each mask the chances of the likeliest tokens, and their numbers: a vocabulary of each is too much."""
        most, targets = row.wanted
        chances: Tensor = output.logits[number, : row.ids.count(self._mask)].float().softmax(-1)
        numbers = torch.arange(chances.shape[-1], device=chances.device)
        if targets is not None:
            numbers = torch.tensor(targets, device=chances.device)
            chances = chances[:, numbers]
        top = chances.topk(min(most, len(numbers)))
        return [top.values, numbers[top.indices]]

    def answer(self, item: task.Item) -> Any:
        answers = [self._answer(row) for row in item.rows]
        return answers[0] if len(answers) == 1 else answers

    def _answer(self, row: Row) -> Any:
        places = [place for place, token in enumerate(row.ids) if token == self._mask]
        answers = [
            [self._proposal(row, place, token, score, places) for score, token in zip(*best, strict=True)]
            for place, *best in zip(places, *(each.tolist() for each in row.outputs), strict=True)
        ]
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
        numbers: list[int] = []
        for word in [targets] if isinstance(targets, str) else targets:
            number = self.tokenizer.convert_tokens_to_ids(word)
            if number not in (None, self.tokenizer.unk_token_id):
                numbers.append(number)
            else:  # its first token stands for it
                numbers += self.tokenizer(self.encoder.shortened(word), add_special_tokens=False)["input_ids"][:1]
        if not numbers:
            raise BadRequest("parameters.targets has no word of the model's vocabulary")
        return list(dict.fromkeys(numbers))

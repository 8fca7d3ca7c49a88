"""Generation by transformers' own `generate`, for a prompt whose text the batch cannot make.

It is guidance, which is a second pass of the model, and beam search with a model that is not proven to be independent
of its batch. `generate` runs to its end: meanwhile no other request advances, and a client that disconnects is noticed
afterwards. The deadline is checked after each token.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from serve.handlers.generation import library
from serve.handlers.generation.decoder import end_tokens
from serve.handlers.generation.parameters import Prompt


class DeadlineCriteria(StoppingCriteria):
    """Stops each text at its deadline (time.monotonic()). `passed`: which deadlines had passed after the last token."""

    def __init__(self, deadlines: Sequence[float]) -> None:
        self._deadlines = deadlines
        self.passed = [False] * len(deadlines)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        self.passed = [deadline <= now for deadline in self._deadlines]
        # `generate` passes one row for each beam, or for each candidate of beam search, of which there are more.
        rows = input_ids.shape[0] // len(self.passed)
        return torch.tensor(self.passed, device=input_ids.device).repeat_interleave(rows)


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, deadline: float
) -> list[list[int]]:
    """The new tokens of the prompt's sequences, the best sequence first."""
    settings = prompt.settings
    padding = _padding(model)
    if settings.do_sample:
        if settings.seed is None:
            torch.seed()
        else:
            torch.manual_seed(settings.seed)
    ends = end_tokens(model) if settings.end_tokens is None else settings.end_tokens
    arguments = library.arguments(settings)
    if settings.stop:
        arguments |= {"stop_strings": list(settings.stop), "tokenizer": tokenizer}
    if not ends:
        arguments.pop("exponential_decay_length_penalty", None)  # it makes end tokens more probable, and there are none
    if prompt.source is not None:
        arguments["decoder_start_token_id"] = prompt.tokens[0]
    ids = torch.tensor([prompt.read], device=model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=padding,
        stopping_criteria=StoppingCriteriaList([DeadlineCriteria([deadline])]),
        **arguments,
    )
    return [_without_padding(row, ends, padding) for row in output[:, len(prompt.tokens) :].tolist()]


def _without_padding(tokens: list[int], ends: frozenset[int], padding: int) -> list[int]:
    """The tokens of a row up to its end; `generate` pads it to the length of the longest row."""
    at = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
    if at is None and padding not in ends:  # the row may have ended with a stop string
        at = next((i + 1 for i in range(len(tokens) - 1, -1, -1) if tokens[i] != padding), 0)
    return tokens[:at]


def _padding(model: PreTrainedModel) -> int:
    defaults = model.generation_config
    for token in (defaults.pad_token_id, defaults.eos_token_id):
        if token is not None:
            return token[0] if isinstance(token, list) else int(token)
    return 0

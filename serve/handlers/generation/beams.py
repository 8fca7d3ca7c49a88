"""Beam search, left to transformers: equal requests make one batch and one `generate`, which runs to its end.

While it runs nothing else advances; a caller that hangs up is only noticed after it. The deadline is looked at after
each token, for each prompt by itself.
"""

import time
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from serve.handlers.generation.answers import Prompt


class Deadlines(StoppingCriteria):
    """Ends the beams of each prompt at its own deadline."""

    def __init__(self, deadlines: Sequence[float], device: torch.device) -> None:
        self._each = torch.tensor(deadlines, dtype=torch.float64, device=device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        # transformers asks about all candidates of a prompt, more than its beams.
        return (self._each <= time.monotonic()).repeat_interleave(len(input_ids) // len(self._each))


def compatible(prompt: Prompt) -> Hashable:
    """Prompts with equal keys may share a `generate`; sampled beams draw from one stream of numbers, so alone."""
    settings = prompt.settings
    return (settings, id(prompt)) if settings.do_sample else settings


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], deadlines: Sequence[float]
) -> list[list[list[int]]]:
    """For each prompt its sequences of new tokens, best first. All prompts have equal settings."""
    settings = prompts[0].settings
    longest = max(len(prompt.tokens) for prompt in prompts)
    padding = _padding(model)
    arguments: dict[str, Any] = {}
    if settings.do_sample:
        arguments = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        if settings.seed is None:
            torch.seed()
        else:
            torch.manual_seed(settings.seed)
    if settings.stop:
        arguments |= {"stop_strings": list(settings.stop), "tokenizer": tokenizer}
    output = model.generate(
        torch.tensor([[padding] * (longest - len(p.tokens)) + p.tokens for p in prompts], device=model.device),
        attention_mask=torch.tensor(
            [[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in prompts], device=model.device
        ),
        max_new_tokens=settings.most,
        min_new_tokens=settings.least or None,
        num_beams=settings.beams,
        num_return_sequences=settings.sequences,
        do_sample=settings.do_sample,
        repetition_penalty=settings.repetition_penalty,
        pad_token_id=padding,
        stopping_criteria=StoppingCriteriaList([Deadlines(deadlines, model.device)]),
        **arguments,
    )
    made: list[list[int]] = output[:, longest:].tolist()
    return [made[i : i + settings.sequences] for i in range(0, len(made), settings.sequences)]


def _padding(model: PreTrainedModel) -> int:
    config = model.generation_config
    for token in (config.pad_token_id, config.eos_token_id):
        if token is not None:
            return token[0] if isinstance(token, list) else int(token)
    return 0

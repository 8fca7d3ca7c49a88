"""Generation by transformers' own `generate`: beam search, and parameters that the batch does not implement.

Prompts with equal settings share one `generate`. It runs to its end: meanwhile no other request advances, and a client
that disconnects is noticed afterwards. The deadline of each prompt is checked after each token.
"""

import time
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from serve.handlers.generation.decoder import end_tokens
from serve.handlers.generation.parameters import GenerationSettings, Prompt, generate_argument

# The processors of these parameters treat the padding before a shorter prompt as text.
PADDING_SENSITIVE = {
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "sequence_bias", "forced_bos_token_id"),
    *("begin_suppress_tokens", "watermarking_config"),
}


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


def compatible(prompt: Prompt) -> Hashable:
    """Prompts with equal keys may share a `generate`. A prompt that samples is alone: all rows share one generator."""
    settings = prompt.settings
    if settings.do_sample:
        return settings, id(prompt)
    by_length = (
        settings.no_repeat_ngram
        or settings.bad_words
        or any(name in PADDING_SENSITIVE for name, _ in settings.generate_only)
        or not PADDING_SENSITIVE.isdisjoint(settings.config_only)
    )
    return settings, len(prompt.tokens) if by_length else 0


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], deadlines: Sequence[float]
) -> list[list[list[int]]]:
    """The new tokens of each prompt's sequences, the best sequence first. All prompts have equal settings."""
    settings = prompts[0].settings
    longest = max(len(prompt.tokens) for prompt in prompts)
    padding = _padding(model)
    if settings.do_sample:
        if settings.seed is None:
            torch.seed()
        else:
            torch.manual_seed(settings.seed)
    ends = end_tokens(model) if settings.end_tokens is None else settings.end_tokens
    arguments = _arguments(settings)
    if settings.stop:
        arguments |= {"stop_strings": list(settings.stop), "tokenizer": tokenizer}
    if not ends:
        arguments.pop("exponential_decay_length_penalty", None)  # it makes end tokens more probable, and there are none
    output = model.generate(
        torch.tensor([[padding] * (longest - len(p.tokens)) + p.tokens for p in prompts], device=model.device),
        attention_mask=torch.tensor(
            [[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in prompts], device=model.device
        ),
        pad_token_id=padding,
        stopping_criteria=StoppingCriteriaList([DeadlineCriteria(deadlines)]),
        **arguments,
    )
    generated = [_without_padding(row, ends, padding) for row in output[:, longest:].tolist()]
    count = settings.num_sequences
    return [generated[i : i + count] for i in range(0, len(generated), count)]


def _arguments(settings: GenerationSettings) -> dict[str, Any]:
    """The arguments of `generate`, except those of stop strings."""
    arguments: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "min_new_tokens": settings.min_new_tokens or None,
        "num_beams": settings.num_beams,
        "num_return_sequences": settings.num_sequences,
        "do_sample": settings.do_sample,
        "repetition_penalty": settings.repetition_penalty,
        "no_repeat_ngram_size": settings.no_repeat_ngram,
    }
    if settings.do_sample:
        arguments |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        arguments |= {"min_p": settings.min_p or None}
    if settings.end_tokens is not None:
        arguments["eos_token_id"] = sorted(settings.end_tokens)
    if settings.suppress_tokens:
        arguments["suppress_tokens"] = list(settings.suppress_tokens)
    if settings.bad_words:
        arguments["bad_words_ids"] = generate_argument("bad_words_ids", settings.bad_words)
    if settings.max_time is not None:
        arguments["max_time"] = settings.max_time
    return arguments | {name: generate_argument(name, value) for name, value in settings.generate_only}


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

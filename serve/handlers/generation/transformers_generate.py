"""What is left to transformers: beam search, and parameters the batch does not know.

Equal requests make one `generate`. It runs to its end: while it runs nothing else advances, and a caller that hangs up
is only noticed after it. The deadline is looked at after each token, for each prompt by itself.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from serve.handlers.generation import decoder
from serve.handlers.generation.output import Prompt
from serve.handlers.generation.parameters import Resolved, argument
from serve.handlers.huggingface.pretrained import Deadlines

# Their processors look at the padding before a shorter prompt as if it were text.
PADDING_MATTERS = {
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "sequence_bias", "forced_bos_token_id"),
    *("begin_suppress_tokens", "watermarking_config"),
}


def compatible(prompt: Prompt) -> Hashable:
    """Prompts with equal keys may share a `generate`; those that sample draw from one stream of numbers, so alone."""
    settings = prompt.settings
    if settings.do_sample:
        return settings, id(prompt)
    looks_back = settings.ngram or settings.bad_words or any(name in PADDING_MATTERS for name, _ in settings.passed)
    return settings, len(prompt.tokens) if looks_back else 0


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], deadlines: Sequence[float]
) -> list[list[list[int]]]:
    """For each prompt its sequences of new tokens, best first. All prompts have equal settings."""
    settings = prompts[0].settings
    longest = max(len(prompt.tokens) for prompt in prompts)
    padding = _padding(model)
    if settings.do_sample:
        if settings.seed is None:
            torch.seed()
        else:
            torch.manual_seed(settings.seed)
    ends = decoder.end_tokens(model) if settings.ends is None else settings.ends
    arguments = _arguments(settings)
    if settings.stop:
        arguments |= {"stop_strings": list(settings.stop), "tokenizer": tokenizer}
    if not ends:
        arguments.pop("exponential_decay_length_penalty", None)  # it makes ends likelier, and there are none
    output = model.generate(
        torch.tensor([[padding] * (longest - len(p.tokens)) + p.tokens for p in prompts], device=model.device),
        attention_mask=torch.tensor(
            [[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in prompts], device=model.device
        ),
        pad_token_id=padding,
        stopping_criteria=StoppingCriteriaList([Deadlines(deadlines)]),
        **arguments,
    )
    made = [_to_the_end(row, ends, padding) for row in output[:, longest:].tolist()]
    return [made[i : i + settings.sequences] for i in range(0, len(made), settings.sequences)]


def _arguments(settings: Resolved) -> dict[str, Any]:
    """What `generate` is given, but for the stop strings."""
    arguments: dict[str, Any] = {
        "max_new_tokens": settings.most,
        "min_new_tokens": settings.least or None,
        "num_beams": settings.beams,
        "num_return_sequences": settings.sequences,
        "do_sample": settings.do_sample,
        "repetition_penalty": settings.repetition_penalty,
        "no_repeat_ngram_size": settings.ngram,
    }
    if settings.do_sample:
        arguments |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        arguments |= {"min_p": settings.min_p or None}
    if settings.ends is not None:
        arguments["eos_token_id"] = sorted(settings.ends)
    if settings.suppressed:
        arguments["suppress_tokens"] = list(settings.suppressed)
    if settings.bad_words:
        arguments["bad_words_ids"] = argument("bad_words_ids", settings.bad_words)
    if settings.max_time is not None:
        arguments["max_time"] = settings.max_time
    return arguments | {name: argument(name, value) for name, value in settings.passed}


def _to_the_end(tokens: list[int], ends: frozenset[int], padding: int) -> list[int]:
    """Without what fills a row up behind its end."""
    at = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
    if at is None and padding not in ends:  # it may have ended with a stop string
        at = next((i + 1 for i in range(len(tokens) - 1, -1, -1) if tokens[i] != padding), 0)
    return tokens[:at]


def _padding(model: PreTrainedModel) -> int:
    usual = model.generation_config
    for token in (usual.pad_token_id, usual.eos_token_id):
        if token is not None:
            return token[0] if isinstance(token, list) else int(token)
    return 0

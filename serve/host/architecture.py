"""What a Hugging Face model is for, told from its config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.errors import ModelUnusable
from serve.handlers import TASKS

LONGEST = 8 << 20
# Summarizers by trade; facebook/bart-large-cnn and google/pegasus-* say no more than their type in config.json.
SUMMARIZERS = frozenset({"bart", "pegasus", "pegasus_x", "bigbird_pegasus", "led"})
# The task a head is for, by the end of the architecture's name.
HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
}
# Keys of configs whose input is not text alone (Llava, Whisper...), though they end in ForConditionalGeneration too.
NOT_TEXT = ("vision_config", "audio_config", "num_mel_bins")


def read(directory: Path) -> Mapping[str, Any] | None:
    """Hugging Face's config.json, None where there is none. Raises ModelUnusable when it is not one JSON object."""
    path = directory / "config.json"
    if not path.is_file():
        return None
    if path.stat().st_size > LONGEST:
        raise ModelUnusable(f"config.json: longer than {LONGEST >> 20} MB")
    try:
        parsed = json.loads(path.read_bytes())  # not msgspec: transformers writes Infinity, which JSON has not
    except (ValueError, RecursionError) as bad:
        raise ModelUnusable(f"config.json: not JSON: {bad}") from None
    if not isinstance(parsed, dict):
        raise ModelUnusable("config.json: not a JSON object")
    return parsed


def task_of(config: Mapping[str, Any]) -> str | None:
    """The task for a config.json, None when we have none."""
    names = architectures(config)
    first = names[0] if names else ""
    if any(key in config for key in NOT_TEXT):
        return None
    head = next((task for end, task in HEADS.items() if first.endswith(end)), None)
    if head is not None:  # before all else: BartForSequenceClassification is an encoder-decoder too
        return head
    # T5WithLMHeadModel ends like GPT2LMHeadModel, so what the config says of itself comes first.
    both = config.get("is_encoder_decoder") is True
    if (both and not first.endswith("ForCausalLM")) or first.endswith(("ForConditionalGeneration", "MTModel")):
        return "summarization" if model_type(config) in SUMMARIZERS else "text2text-generation"
    if first.endswith(("ForCausalLM", "LMHeadModel")):
        return "text-generation"
    if model_type(config) and first.endswith("Model"):  # BertModel and its like: no head, so vectors
        return "feature-extraction"
    return None


def handler_of(task: str, said: str) -> str:
    """The handler that does a task. Raises ModelUnusable for a task nobody does; `said`: where it was asked for."""
    handler = TASKS.get("translation" if task.startswith("translation_") else task)
    if handler is None:
        raise ModelUnusable(f"{said}: nobody here does {task!r}; known: {', '.join(TASKS)}")
    return handler


def model_type(config: Mapping[str, Any]) -> str | None:
    """The type it says it is: gpt2, bart..."""
    said = config.get("model_type")
    return said if isinstance(said, str) and said else None


def architectures(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [each for each in named if isinstance(each, str)] if isinstance(named, list) else []

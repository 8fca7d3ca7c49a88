"""Adapters (LoRA and others of PEFT) in a model's directory. A runner would load the base model and leave them out.

The names are those of PEFT, of its predecessor adapter-transformers, of diffusers, of MLX and of llama.cpp.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from serve.catalog.tree import walk
from serve.errors import ModelUnusable

# Headers that name an adapter of the model (aws/model-hosting-container-standards, lora/constants.py).
ADAPTER_HEADERS = ("x-amzn-sagemaker-adapter-identifier", "x-amzn-sagemaker-adapter-alias")
CONFIGS = ("adapter_config.json", "adapter_fusion_config.json")
# A file of weights with the word adapter or lora in its name; `merged` weights are whole ones.
_WEIGHTS = re.compile(r"(?i)(?!.*merged)(.*[^a-z])?(adapters?|q?lora)([^a-z].*)?\.(safetensors|bin|pt|pth|npz|gguf)")
# Tensors of adapters, among those that an architecture has no place for.
_TENSORS = re.compile(r"(?i)lora|adapter|\bbase_layer\b|\bia3_|\bhada_|\blokr_|\boft_|\bvera_")
# Types of PEFT that change the input and not the weights, so that there is nothing to merge.
_PROMPTS = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"}
)
MERGE = "merge it into the model with PEFT's merge_and_unload, save that with save_pretrained, and remove the adapter"


def found(directory: Path) -> Path | None:
    """The first adapter in a directory or below, by its file; the model's own code/ is left out."""
    for entry in walk(directory, code=False):
        if entry.name in CONFIGS or (_WEIGHTS.fullmatch(entry.name) and entry.is_file()):
            return Path(entry)
    return None


def refused(directory: Path, adapter: Path, *, alone: bool) -> ModelUnusable:
    """The error for an adapter that `found` has found. `alone`: without its base model."""
    name = ascii(str(adapter.relative_to(directory)))[1:-1]
    what = "an adapter without its base model" if alone else "an adapter beside the model"
    kind = _peft_type(adapter)
    if kind in _PROMPTS:
        advice = f"an adapter of type {kind} cannot be merged into the weights: load both in code/inference.py"
    else:
        advice = f"{MERGE}; or load both in code/inference.py"
    return ModelUnusable(f"{name}: {what} (LoRA, PEFT); the server applies no adapters: {advice}")


def refuse_tensors(names: Iterable[str]) -> None:
    """Raise ModelUnusable for tensors of an adapter among those that the architecture does not have."""
    mine = sorted(name for name in names if _TENSORS.search(name))
    if mine:
        raise ModelUnusable(
            f"the weights hold an adapter, {mine[0][:100]!a} for example (tensors like it: {len(mine)}); the server "
            f"applies no adapters: {MERGE}"
        )


def _peft_type(adapter: Path) -> str:
    try:
        said = json.loads(adapter.with_name(CONFIGS[0]).read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    kind = said.get("peft_type") if isinstance(said, dict) else None
    return kind if isinstance(kind, str) else ""

"""A model directory, checked and loaded: safetensors only, nothing from the network, no code from the directory."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from serve.errors import DoesNotFit, ModelUnusable, ServeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# One of these holds a tokenizer's vocabulary; AutoTokenizer would otherwise make an empty one.
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")


def load(directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer. Float32 weights in float32 files stay mapped: they cost no private memory yet."""
    _check_config(directory)
    weights = _check_weights(directory)
    tokenizer = _tokenizer(directory)
    transformers.utils.logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except MemoryError as error:
        raise DoesNotFit(f"no memory for the weights in {weights}") from error
    except Exception as error:  # whatever transformers finds wrong; the load must end in one error that names the file
        if out_of_memory(error):
            raise DoesNotFit(f"no memory for the weights in {weights}") from error
        raise unusable(f"{weights}: {_line(error)}", "save the model again with save_pretrained()") from error
    # transformers only warns, and serves random numbers in their place.
    for what in ("missing_keys", "mismatched_keys"):
        if report[what]:
            names = ", ".join(sorted(map(str, report[what]))[:3])
            raise unusable(
                f"{weights}: {len(report[what])} weights of {type(model).__name__} are missing or of another shape "
                f"({names})",
                "check that config.json belongs to these weights, and that they were saved with the head",
            )
    return model.eval(), tokenizer


def data_type(options: Any) -> torch.dtype:
    """The `dtype` of model.toml's options; float32, the only one whose tokens equal the reference's, by default."""
    name = options.get("dtype", "float32")
    if name not in DTYPES:
        raise unusable(f"options.dtype is {name!r}", "it must be one of: " + ", ".join(DTYPES))
    return DTYPES[name]


def out_of_memory(error: BaseException) -> bool:
    """Whether this is any of torch's ways to say so."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def unusable(message: str, hint: str) -> ServeError:
    return ModelUnusable(message, hint=hint)


def position_limit(model: PreTrainedModel) -> int | None:
    """Prompt and new tokens together, or None when the model states none."""
    config = model.config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        limit: Any = getattr(config, name, None)
        if isinstance(limit, int) and limit > 1:
            return limit
    return None


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a text: one, several or none."""
    ends = model.generation_config.eos_token_id
    return frozenset([] if ends is None else ends if isinstance(ends, list) else [ends])


def _check_config(directory: Path) -> None:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
        kind = config.get("model_type")
    except FileNotFoundError as error:
        raise unusable(f"{path} is missing", "save the model with save_pretrained()") from error
    except (OSError, ValueError, AttributeError) as error:
        raise unusable(f"{path} cannot be read as a JSON object: {error}", "save it again") from error
    if kind in CONFIG_MAPPING_NAMES and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if "auto_map" in config:
        raise unusable(
            f"{path} names code of its own (auto_map) and transformers {transformers.__version__} has no class for "
            f"model type {kind!r}",
            "code from a model directory is not run; write a custom handler in code/inference.py instead",
        )
    raise unusable(
        f"{path}: transformers {transformers.__version__} has no causal language model of type {kind!r}",
        "check model_type, or choose another handler in model.toml",
    )


def _check_weights(directory: Path) -> str:
    """The name of the weights' file or index."""
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        return "model.safetensors"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise unusable(f"{index} cannot be read: {_line(error)}", "copy it again") from error
        for shard in shards:
            if not (directory / shard).is_file():
                raise unusable(f"{directory / shard} is missing, though {index.name} names it", "copy all shards")
        return index.name
    pickles = sorted(path.name for path in directory.glob("*.bin")) + sorted(p.name for p in directory.glob("*.pt"))
    if pickles:
        raise unusable(
            f"{directory / pickles[0]} is a pickle, which can run any code when it is opened",
            "convert it where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(directory)",
        )
    raise unusable(f"{directory / 'model.safetensors'} is missing", "save the model with save_pretrained()")


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    hint = "save it beside the model with tokenizer.save_pretrained()"
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise unusable(f"{directory / 'tokenizer.json'} is missing, and no other vocabulary is there", hint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above: a broken tokenizer raises anything
        raise unusable(f"the tokenizer in {directory} cannot be loaded: {_line(error)}", hint) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

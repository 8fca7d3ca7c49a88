"""Load a transformers model and its tokenizer from a directory, or say which of its files is at fault and what to do.

The library runs code from pickles and from the model's own `.py` files when it is let; here it is not, but for the
latter where the model's owner and the operator both say so. What it merely
warns about, weights left random and a tokenizer without words, is an error.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import StoppingCriteria
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from serve.catalog.model_config import ModelConfig
from serve.errors import DoesNotFit, ModelUnusable
from serve.handlers.huggingface import quantization
from serve.handlers.huggingface.options import HuggingFaceOptions


class Deadlines(StoppingCriteria):
    """`passed` tells which texts were late when it was last asked, after each token."""

    def __init__(self, deadlines: Sequence[float]) -> None:
        self._deadlines = deadlines
        self.passed = [False] * len(deadlines)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        self.passed = [deadline <= now for deadline in self._deadlines]
        rows = input_ids.shape[0] // len(self.passed)  # a row for each beam, or for each candidate, which are more
        return torch.tensor(self.passed, device=input_ids.device).repeat_interleave(rows)


TRUST = "trust_remote_code"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_INDEX = "model.safetensors.index.json"


def check(directory: Path, trusted: bool = False) -> dict[str, Any]:
    """The parsed config.json of a directory whose files can be read without running code from them; or `trusted`."""
    config = _json(directory / "config.json")
    if not trusted and config.get("model_type") not in CONFIG_MAPPING_NAMES:  # else the library's own class is used
        _refuse_own_code(directory / "config.json", config)
    if not trusted and (directory / "tokenizer_config.json").is_file():
        _refuse_own_code(directory / "tokenizer_config.json", _json(directory / "tokenizer_config.json"))
    for path in _weights(directory):
        try:
            with safe_open(path, framework="pt"):  # reads the header and compares it with the file's length
                pass
        except (SafetensorError, OSError) as error:
            raise ModelUnusable(
                f"{path.name} is not a whole safetensors file ({first_line(error)}); it has {_size(path)} bytes",
                hint="copy the file again; an interrupted upload leaves it short",
            ) from error
    return config


def _weights(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if index.is_file() and not (directory / "model.safetensors").is_file():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelUnusable(f"{index.name} has no weight_map")
        paths = [directory / Path(str(name)).name for name in sorted(set(map(str, shards.values())))]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise ModelUnusable(
                f"{index.name} names {missing[0]}, which is not there ({len(missing)} missing in all)",
                hint="copy all files of the weights",
            )
        return paths
    if paths := sorted(directory.glob("*.safetensors")):
        return paths
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise ModelUnusable(
            f"the weights are a pickle ({pickles[0]}), which can run code when opened",
            hint="convert them where you trust them: model.save_pretrained(directory) writes model.safetensors",
        )
    raise ModelUnusable(f"there is no model.safetensors, nor {_INDEX}", hint="save with model.save_pretrained")


def _refuse_own_code(path: Path, settings: dict[str, Any]) -> None:
    if settings.get("auto_map"):
        raise ModelUnusable(
            f"{path.name} has an auto_map: the model asks for Python code of its own to be run",
            hint=f"if you trust it: {TRUST} = true under [options] of model.toml, and HF_TRUST_REMOTE_CODE=true",
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelUnusable(f"there is no {path.name}", hint="save the model with save_pretrained") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnusable(f"{path.name} is not JSON: {first_line(error)}", hint="copy the file again") from error
    if not isinstance(settings, dict):
        raise ModelUnusable(f"{path.name} is not a JSON object", hint="save the model with save_pretrained")
    return settings


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(model: ModelConfig[HuggingFaceOptions], auto_class: Any, unused: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """The model, in eval mode on the GPU if there is one, and its tokenizer.

    `auto_class`: AutoModelForCausalLM... `unused`: beginnings of the names of weights that may be missing, for nothing
    comes of them.

    Raises ModelUnusable or DoesNotFit. Sets this process's number of torch threads. `[options] dtype` is the precision
    of the weights: on a processor float32, however they are stored, unless it says otherwise. `quantize = "int8"`
    holds those of linear layers in 8 bits.
    """
    dtype, quantized, trusted = _dtype(model), model.options.quantize is not None, _trusted(model)
    check(model.directory, trusted)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(max(1, model.threads))
    tokenizer = _tokenizer(model.directory, trusted)
    try:
        network, report = auto_class.from_pretrained(
            model.directory,
            local_files_only=True,
            trust_remote_code=trusted,
            use_safetensors=True,
            dtype="auto" if quantized else dtype,  # quantised from what is stored, without a copy in between
            output_loading_info=True,
        )
        # The library fills these with random numbers and goes on.
        if missing := [name for name in report["missing_keys"] if not name.startswith(unused)]:
            raise ModelUnusable(
                f"config.json describes {len(missing)} weights that the safetensors files do not have, "
                f"{min(missing)} for one",
                hint="save config.json and the weights together, with save_pretrained",
            )
        network.eval().requires_grad_(False)
        if quantized:
            quantization.quantize(network)
            if dtype != "auto":
                network.to(dtype)
        if torch.cuda.is_available():
            network.to("cuda")
    except (ModelUnusable, MemoryError):
        raise
    except Exception as error:  # the library lets through whatever its parsers and constructors raise
        if out_of_memory(error):
            raise DoesNotFit(f"there is no memory for the weights: {first_line(error)}") from error
        if "ignore_mismatched_sizes" in str(error):
            raise ModelUnusable("the shapes config.json asks for are not those in the safetensors files") from error
        raise ModelUnusable(
            f"{auto_class.__name__} cannot be built from config.json and the safetensors files: {first_line(error)}",
            hint="check that the files belong together and suit the model's task",
        ) from error
    return network, tokenizer


def out_of_memory(error: BaseException) -> bool:
    """Whether this is any of torch's ways to say so."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _dtype(model: ModelConfig[HuggingFaceOptions]) -> Any:
    name = model.options.dtype or ("auto" if torch.cuda.is_available() else "float32")
    return DTYPES.get(name, name)


def _trusted(model: ModelConfig[HuggingFaceOptions]) -> bool:
    """Whether the model's own Python code may run: its owner says so in model.toml, and the operator in a setting."""
    asked = model.options.trust_remote_code
    if asked and not model.remote_code:
        raise ModelUnusable(
            f"model.toml wants the model's own code run (options.{TRUST}), and the operator has not allowed it",
            hint="set HF_TRUST_REMOTE_CODE=true if you trust the code, or remove the option",
        )
    return asked


def _tokenizer(directory: Path, trusted: bool) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trusted
        )
        words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    except MemoryError:
        raise
    except Exception as error:  # as above; tokenizer.json alone can raise a bare Exception
        raise ModelUnusable(
            f"the tokenizer cannot be loaded (tokenizer.json, tokenizer_config.json): {first_line(error)}",
            hint="save it beside the weights with tokenizer.save_pretrained",
        ) from error
    if not words:  # without files the library makes up an empty one
        raise ModelUnusable(
            "there is no tokenizer: tokenizer.json is missing",
            hint="save it beside the weights with tokenizer.save_pretrained",
        )
    return tokenizer

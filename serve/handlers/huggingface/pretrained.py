"""Loads a transformers model and its tokenizer from a directory; an error names the file at fault and the remedy.

transformers can run code from pickles and from a model's own `.py` files. Pickles are never read here; a model's own
code runs only if both its owner (model.toml) and the operator (a setting) allow it. transformers only warns about
weights that it fills with random numbers, and about a tokenizer without a vocabulary. Both are errors here.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from serve.catalog import recognition
from serve.catalog.adapters import refuse_tensors
from serve.catalog.model_config import ModelConfig
from serve.errors import DoesNotFit, ModelUnusable
from serve.failures import described, exhausted
from serve.handlers.huggingface import linear, sentence_pieces
from serve.handlers.huggingface.options import HuggingFaceOptions

TRUST = "trust_remote_code"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_INDEX = "model.safetensors.index.json"
# Quantised weights: the keys of a config.json, the files of older tools, and the ends of the names of their tensors.
_QUANTIZED = ("quantization_config", "compression_config")
_QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quant_log.csv")
_SCALES = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".SCB", ".absmax", ".quant_map")


class Loaded(NamedTuple):
    """`packing`: faster layouts of the weights, to be made behind the load."""

    network: Any
    tokenizer: Any
    packing: linear.Packing


def load(
    model: ModelConfig[HuggingFaceOptions],
    auto_class: Any,
    optional_weights: tuple[str, ...] = (),
    *,
    obstacle: Callable[[Any], str | None],
    merge: Callable[[Any], None] = lambda _: None,
    gain: float = 0,
) -> Loaded:
    """The network, in eval mode and on the GPU if there is one, and its tokenizer.

    Sets the number of torch threads of this process. The option `dtype` is the precision of the weights, by default
    float32 on a CPU and as stored on a GPU; `quantize` holds the weights of linear layers in 8 or 16 bits.

    Args:
        auto_class: AutoModelForCausalLM or another class with `from_pretrained`.
        optional_weights: prefixes of weights that may be missing, because the task does not use them.
        obstacle: why a network is not proven to work in a batch; the weights of a proven one get their fastest layouts.
        merge: makes one product of layers of a proven network that read the same input.
        gain: see linear.pack.

    Raises:
        ModelUnusable: a file is missing, invalid, or does not fit the others; an option is invalid.
        DoesNotFit: out of memory.
    """
    dtype, quantized, trusted = _dtype(model), model.options.quantize is not None, _trusted(model)
    _check_files(model.directory, trusted)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(max(1, model.threads))
    tokenizer = tokenizer_of(model.directory, trusted)
    try:
        network, report = auto_class.from_pretrained(
            model.directory,
            local_files_only=True,
            trust_remote_code=trusted,
            use_safetensors=True,
            dtype="auto" if quantized else dtype,  # quantized from the stored precision, without a copy between
            output_loading_info=True,
        )
        refuse_tensors(report["unexpected_keys"])
        if missing := [name for name in report["missing_keys"] if not name.startswith(optional_weights)]:
            raise ModelUnusable(
                f"config.json describes {len(missing)} weights that the safetensors files do not have, for example "
                f"{min(missing)}",
                hint="save config.json and the weights together, with save_pretrained",
            )
        if not getattr(network.config, "num_hidden_layers", 1) > 0:
            raise ModelUnusable(
                f"config.json: a model of {network.config.num_hidden_layers} layers", hint="copy config.json again"
            )
        network.eval().requires_grad_(False)
        packing = lay_out(network, model, obstacle=obstacle, merge=merge, gain=gain)
        if torch.cuda.is_available():
            network.to("cuda")
    except (ModelUnusable, MemoryError):
        raise
    except BaseException as error:  # parsers and constructors of the library raise any class
        if resource := exhausted(error):
            raise DoesNotFit(f"the weights do not fit: {resource.message}", hint=resource.hint) from error
        if "ignore_mismatched_sizes" in str(error):
            raise ModelUnusable(
                "config.json and the safetensors files have different shapes",
                hint="save config.json and the weights together, with save_pretrained",
            ) from error
        raise ModelUnusable(
            f"{auto_class.__name__} cannot load config.json and the safetensors files: {first_line(error)}",
            hint="check that the files belong together and fit the task of the model",
        ) from error
    return Loaded(network, tokenizer, packing)


def lay_out(
    network: Any,
    model: ModelConfig[HuggingFaceOptions],
    *,
    obstacle: Callable[[Any], str | None],
    merge: Callable[[Any], None] = lambda _: None,
    gain: float = 0,
) -> linear.Packing:
    """Give the linear layers of a network the layouts that its options ask for, or the fastest; see `load`.

    Returns what is left to do behind the load.
    """
    proven, device = obstacle(network) is None, "cuda" if torch.cuda.is_available() else "cpu"
    form = model.options.quantize
    packed = form is None and proven and model.options.pack is not False and linear.packable(network)
    if proven:
        linear.fuse_activations(network)
        if (form or packed) and device == "cpu":
            merge(network)
    if form is not None:
        linear.quantize(network, form)
        if (dtype := _dtype(model)) != "auto":
            network.to(dtype)
    elif device == "cpu":
        linear.check_speed(network)
        if packed:
            return linear.pack(network, always=model.options.pack is True, gain=gain, memory=model.run_dir)
    return linear.Packing()


def read_json(directory: Path, name: str, kind: type, remedy: str) -> Any:
    """The value, a `kind`, of the JSON file `name` in a model's directory. Raises ModelUnusable with that name."""
    try:
        value = json.loads((directory / name).read_bytes())
    except FileNotFoundError as error:
        raise ModelUnusable(f"{name} is missing", hint=remedy) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnusable(f"{name} is not JSON: {first_line(error)}", hint="copy the file again") from error
    if not isinstance(value, kind):
        raise ModelUnusable(f"{name} is not a JSON {'object' if kind is dict else 'array'}", hint=remedy)
    return value


def _check_files(directory: Path, trusted: bool) -> None:
    """Raise ModelUnusable for files that are missing or cut short, or that ask for code to be run without `trusted`."""
    remedy = "save the model with save_pretrained"
    config = read_json(directory, "config.json", dict, remedy)
    if not trusted:
        # Of a known model_type, the class is the library's, whatever auto_map says.
        if config.get("model_type") not in CONFIG_MAPPING_NAMES:
            _refuse_own_code("config.json", config)
        if (directory / "tokenizer_config.json").is_file():
            settings = read_json(directory, "tokenizer_config.json", dict, remedy)
            _refuse_own_code("tokenizer_config.json", settings)
    _refuse_quantized(directory, config)
    for path in _weights(directory):
        try:
            with safe_open(path, framework="pt") as file:  # reads the header and compares it with the size of the file
                names = file.keys()
        except (SafetensorError, OSError) as error:
            size = path.stat().st_size if path.exists() else 0
            raise ModelUnusable(
                f"{path.name} is not a complete safetensors file ({first_line(error)}); it has {size} bytes",
                hint="copy the file again; an interrupted upload leaves it short",
            ) from error
        if scale := next((name for name in names if name.endswith(_SCALES)), None):
            raise _quantized(f"{path.name} has the tensor {scale[:100]} of quantised weights")


def _refuse_quantized(directory: Path, config: dict[str, Any]) -> None:
    """Raise ModelUnusable for weights of fewer bits that need another library, or that transformers would misread.

    transformers ignores a quant_method that it does not know, and takes such weights for the values themselves.
    """
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for said in [part[key] for part in parts for key in _QUANTIZED if part.get(key)]:
        method = said.get("quant_method") if isinstance(said, dict) else None
        raise _quantized(f"config.json says that the weights are quantised ({method or 'unknown method'})")
    for name in _QUANTIZED_FILES:
        if (directory / name).is_file():
            raise _quantized(f"{name}: the weights are quantised")


def _quantized(reason: str) -> ModelUnusable:
    return ModelUnusable(
        f"{reason}: GPTQ, AWQ, bitsandbytes, fp8 and similar formats are not supported",
        hint='serve the weights that they were made from; quantize = "int8" under [options] of model.toml stores these '
        "in 8 bits. Or serve the quantised weights by a server for GPUs, such as vLLM",
    )


def _weights(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if index.is_file() and not (directory / "model.safetensors").is_file():
        shards = read_json(directory, _INDEX, dict, "copy all files of the weights").get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelUnusable(f"{index.name} has no weight_map", hint="copy all files of the weights")
        paths = [directory / Path(str(name)).name for name in sorted(set(map(str, shards.values())))]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise ModelUnusable(
                f"{index.name} names {missing[0]}, which is missing (missing files: {len(missing)})",
                hint="copy all files of the weights",
            )
        return paths
    if paths := recognition.weights(directory):
        return paths
    if pickles := recognition.pickled(directory):
        raise ModelUnusable(
            f"the weights are a pickle ({pickles[0].name}), which can run code when it is loaded",
            hint="convert them where you trust them: model.save_pretrained(directory) writes model.safetensors",
        )
    raise ModelUnusable(
        f"the weights are missing: neither model.safetensors nor {_INDEX} exists",
        hint="save the model with save_pretrained",
    )


def _refuse_own_code(name: str, settings: dict[str, Any]) -> None:
    if settings.get("auto_map"):
        raise ModelUnusable(
            f"{name} has an auto_map: the model needs Python code of its own to run",
            hint=f"if you trust it: {TRUST} = true under [options] of model.toml, and HF_TRUST_REMOTE_CODE=true",
        )


def first_line(error: BaseException) -> str:
    """The class of an error and the first line of its text."""
    lines = described(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _dtype(model: ModelConfig[HuggingFaceOptions]) -> Any:
    name = model.options.dtype or ("auto" if torch.cuda.is_available() else "float32")
    return DTYPES.get(name, name)


def _trusted(model: ModelConfig[HuggingFaceOptions]) -> bool:
    """Whether the model's own Python code may run: model.toml and the operator's setting must both allow it."""
    asked = model.options.trust_remote_code
    if asked and not model.remote_code:
        raise ModelUnusable(
            f"model.toml sets options.{TRUST}, and the operator has not allowed a model's own code to run",
            hint="set HF_TRUST_REMOTE_CODE=true if you trust the code, or remove the option",
        )
    return asked


def _try(tokenizer: Any) -> None:
    """Encode and decode a text: tables of tokenizer.json may be read, and panic at their first use."""
    with suppress(Exception):  # a vocabulary of few letters, without a token for others
        tokenizer.decode(tokenizer("a é 1", verbose=False).input_ids)


def tokenizer_of(directory: Path, trusted: bool) -> Any:
    remedy = "save it beside the weights with tokenizer.save_pretrained"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trusted
        )
        words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
        _try(tokenizer)
    except MemoryError:
        raise
    except BaseException as error:  # any class, as above; tokenizer.json alone can raise a bare Exception, and panics
        raise ModelUnusable(
            f"the tokenizer cannot be loaded (tokenizer.json, tokenizer_config.json): {first_line(error)}", hint=remedy
        ) from error
    if not words:  # transformers makes an empty tokenizer where the files are missing
        raise ModelUnusable("the tokenizer is missing: tokenizer.json does not exist", hint=remedy)
    sentence_pieces.check(directory, tokenizer)
    return tokenizer

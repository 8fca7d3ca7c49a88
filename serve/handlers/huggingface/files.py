"""What lies in a model's directory, looked at before the library reads it: whole, no pickles, no code of its own."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from serve.errors import ModelUnusable

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

"""Directories of models, as far as telling them apart goes: files with names and a few bytes, no weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve.catalog.scan import describe
from serve.errors import ModelUnusable

GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
BART = {"architectures": ["BartForConditionalGeneration"], "model_type": "bart", "is_encoder_decoder": True}
BOOSTER = '{"learner":{"attributes":{}},"version":[3,2,0]}'


def put(directory: Path, **files: str) -> Path:
    """A directory with these files; `code__x_py` is code/x.py, as keywords have neither / nor dot."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def xgboost(directory: Path, toml: str = "") -> Path:
    return put(directory, model_ubj="{", model_toml=toml)


def hugging(directory: Path, config: dict[str, Any], toml: str = "") -> Path:
    put(directory, config_json=json.dumps(config), model_toml=toml)
    (directory / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    return directory


def refusal(directory: Path) -> str:
    with pytest.raises(ModelUnusable) as caught:
        describe("m", directory)
    assert caught.value.model == "m"
    return caught.value.message

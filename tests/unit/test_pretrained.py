"""An invalid file of a model is named, and none of the model's own code runs."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils.quantization_config import QuantizationMethod

from serve.errors import ModelUnusable
from tests.unit.test_generation_toys import handler_of, save_toy


def remove(directory: Path, name: str) -> None:
    (directory / name).unlink()


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def incomplete(directory: Path) -> None:
    config(directory, n_layer=3)


def remote_code(directory: Path) -> None:
    config(directory, model_type="mystery", auto_map={"AutoModelForCausalLM": "modeling_mystery.Mystery"})
    (directory / "modeling_mystery.py").write_text("raise SystemExit('this must never run')")


def charsmap(directory: Path, table: bytes) -> None:
    """A normalizer whose table tokenizers either cannot read or reads beyond its end, at the first text."""
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    path.write_text(json.dumps(tokenizer))


def shard_missing(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda d: remove(d, "config.json"), "config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json"),
        (lambda d: config(d, model_type="bert-but-not-really"), "config.json"),
        (lambda d: remove(d, "model.safetensors"), "model.safetensors"),
        (lambda d: [p.unlink() for p in d.glob("tokenizer*")], "tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer"),
        (lambda d: charsmap(d, b""), "tokenizer.json.*: tokenizers panicked: Precompiled"),
        (
            lambda d: charsmap(d, bytes([4, 0, 0, 0, 255, 255, 255, 127])),
            "tokenizer.json.*: tokenizers panicked: index",
        ),
        (truncate, "model.safetensors"),
        (pickle_only, "pytorch_model.bin"),
        (incomplete, "config.json describes"),
        (remote_code, "auto_map"),
        (shard_missing, "model-00001-of-00002.safetensors"),
    ],
)
def test_unusable_files_are_named_with_what_to_do(tmp_path: Path, break_it: Any, named: str) -> None:
    break_it(save_toy(tmp_path))

    with pytest.raises(ModelUnusable, match=named) as error:
        handler_of(tmp_path)

    assert error.value.hint


def test_model_toml_alone_does_not_let_code_run(tmp_path: Path) -> None:
    """`trust_remote_code` has no effect without the operator's setting."""
    remote_code(save_toy(tmp_path))
    with pytest.raises(ModelUnusable, match="the operator has not allowed") as refused:
        handler_of(tmp_path, options={"trust_remote_code": True})
    assert "HF_TRUST_REMOTE_CODE" in refused.value.hint


METHODS = [*(method.value for method in QuantizationMethod), "modelopt", "unheard-of"]


@pytest.mark.parametrize("method", METHODS)
def test_quantised_weights_are_refused_at_the_load(tmp_path: Path, method: str) -> None:
    """Of every method that transformers knows, and of those that it ignores: it would take the weights for values."""
    config(save_toy(tmp_path), quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ModelUnusable, match=rf"quantised \({method}\)") as refused:
        handler_of(tmp_path)
    assert "weights that they were made from" in refused.value.hint


def nested(directory: Path) -> None:
    config(directory, text_config={"quantization_config": {"quant_method": "fp8"}})


def scaled(directory: Path) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    name = next(each for each in weights if each.endswith("attn.weight"))
    save_file(weights | {f"{name}_scale_inv": torch.ones(1)}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("quantize", "named"),
    [
        (nested, r"quantised \(fp8\)"),
        (lambda d: (d / "quantize_config.json").write_text("{}"), "quantize_config.json"),
        (scaled, "attn.weight_scale_inv"),
    ],
)
def test_quantised_weights_are_recognised_without_a_quantization_config(
    tmp_path: Path, quantize: Any, named: str
) -> None:
    """In a part of the config, by a file of the tool, or by the scales among the weights."""
    quantize(save_toy(tmp_path))
    with pytest.raises(ModelUnusable, match=named):
        handler_of(tmp_path)

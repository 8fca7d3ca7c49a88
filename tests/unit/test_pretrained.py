"""An invalid file of a model is named, and none of the model's own code runs."""

import json
from pathlib import Path
from typing import Any

import pytest

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

"""Sentence embeddings: one vector a text, as a sentence-transformers directory has it computed."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from serve.errors import ModelUnusable
from serve.handlers.encoders.feature_extraction import FeatureExtraction
from tests.unit import tiny_encoders as tiny
from tests.unit.configs import config_of
from tests.unit.test_encoders import LONG, ONE, TWO, ask, reply, same


@pytest.mark.parametrize(
    ("pooling", "pooled"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda hidden: hidden.mean(0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda hidden: hidden[0]),
        ({"pooling_mode_max_tokens": True}, lambda hidden: hidden.amax(0)),
        ({"pooling_mode": "lasttoken"}, lambda hidden: hidden[-1]),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            lambda hidden: torch.cat([hidden[0], hidden.mean(0)]),
        ),
    ],
    ids=lambda value: None if callable(value) else str(value),  # a function's address is another one in each process
)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_sentence_is_one_vector(tmp_path: Path, pooling: dict[str, Any], pooled: Any, normalize: bool) -> None:
    """By 1_Pooling/config.json, without padding; a longer text is cut to max_seq_length."""
    directory = tiny.sentences(tmp_path, normalize=normalize, **pooling)
    handler = FeatureExtraction(config_of(FeatureExtraction, name="x", directory=directory, task="sentence-embeddings"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    network = transformers.AutoModel.from_pretrained(directory, add_pooling_layer=False).eval()

    texts = [ONE, TWO, LONG]
    wanted = []
    for text in texts:
        with torch.no_grad():
            encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=16)
            vector = pooled(network(**encoded).last_hidden_state[0])
        wanted.append((vector / vector.norm() if normalize else vector).tolist())

    assert same(ask(handler, texts), wanted)
    assert same(ask(handler, ONE), wanted[0])
    array = np.load(io.BytesIO(reply(handler, {"inputs": texts}, accept="application/x-npy").body))  # type: ignore[arg-type]
    assert array.dtype == np.float32
    assert same(array.tolist(), wanted)


def test_dense_layers_follow_the_pooling(tmp_path: Path) -> None:
    """Each as plain torch computes it, in the order of modules.json, before the vector is made one of length 1."""
    directory = tiny.sentences(tmp_path)
    wanted = torch.tensor(embeddings(directory, normalized=False))
    tiny.dense(directory, "2_Dense", 16, 8, "torch.nn.modules.activation.Tanh")
    tiny.dense(directory, "3_Dense", 8, 4, "torch.nn.modules.linear.Identity", bias=False)
    tiny.modules(directory, "", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize")
    first, second = (load_file(directory / name / "model.safetensors") for name in ("2_Dense", "3_Dense"))

    wanted = torch.tanh(wanted @ first["linear.weight"].T + first["linear.bias"]) @ second["linear.weight"].T

    assert same(embeddings(directory), (wanted / wanted.norm(dim=1, keepdim=True)).tolist())


def embeddings(directory: Path, *, normalized: bool = True) -> Any:
    if not normalized:
        tiny.modules(directory, "", "1_Pooling")
    return ask(FeatureExtraction(config_of(FeatureExtraction, name="x", directory=directory)), [ONE, TWO])


@pytest.mark.parametrize(
    ("activation", "order", "weights", "message"),
    [
        ("torch.nn.Tanh", ["2_Dense", "1_Pooling"], "model.safetensors", "in an unsupported place: 'Dense'"),
        (
            "my.own.Activation",
            ["1_Pooling", "2_Dense"],
            "model.safetensors",
            "unsupported activation_function: 'my.own.Activation'",
        ),
        ("torch.nn.Tanh", ["1_Pooling", "2_Dense"], "pytorch_model.bin", "2_Dense has no model.safetensors"),
        ("torch.nn.Tanh", ["1_Pooling", "2_Dense"], None, "do not make a linear layer"),
    ],
    ids=str,
)
def test_a_dense_layer_that_cannot_be_served_is_named(
    tmp_path: Path, activation: str, order: list[str], weights: str | None, message: str
) -> None:
    """With what to do; a pickle is never opened."""
    directory = tiny.sentences(tmp_path)
    tiny.dense(directory, "2_Dense", 16, 8, activation)
    tiny.modules(directory, "", *order)
    file = directory / "2_Dense" / "model.safetensors"
    if weights is None:
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.rename(file.with_name(weights))

    with pytest.raises(ModelUnusable, match=message) as refused:
        FeatureExtraction(config_of(FeatureExtraction, name="x", directory=directory))

    assert refused.value.hint


def test_a_dense_layer_of_another_width_is_found_at_the_load(tmp_path: Path) -> None:
    """And not by the first request."""
    directory = tiny.sentences(tmp_path)
    tiny.dense(directory, "2_Dense", 24, 8, "torch.nn.Tanh")
    tiny.modules(directory, "", "1_Pooling", "2_Dense")

    with pytest.raises(ModelUnusable, match="do not fit the model's vectors of 16"):
        FeatureExtraction(config_of(FeatureExtraction, name="x", directory=directory))

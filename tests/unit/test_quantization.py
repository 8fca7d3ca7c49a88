"""8-bit weights: near the original ones, the same output for a row in any batch, a quarter of the bytes."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from serve.errors import ModelUnusable
from serve.handlers.encoders.feature_extraction import FeatureExtraction
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.huggingface import pretrained
from serve.handlers.huggingface.quantization import MIN_OUTPUTS, Int8Linear, linear_layers
from serve.handlers.seq2seq.handler import Seq2Seq
from tests.live import tiny
from tests.unit import tiny_encoders
from tests.unit.configs import config_of
from tests.unit.test_encoders import ask as encode
from tests.unit.test_generation_toys import ask as generate


@pytest.mark.parametrize(("inside", "outside"), [(64, 128), (128, 64), (48, 16), (33, 17)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_quantised_layer_is_near_the_layer(inside: int, outside: int, bias: bool) -> None:
    """Within what rounding the weights costs: the input's rounding, to 16 bits, does not show."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(inside, outside, bias=bias)
    rows = torch.randn(2, 9, inside)
    rows[0, 0, 0] = 1000.0  # one large activation must not drown the others
    quantised = Int8Linear(layer.weight.detach(), layer.bias.detach() if bias else None)

    scales = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    rounded = torch.nn.functional.linear(rows, (layer.weight / scales).round() * scales, layer.bias)

    got = quantised(rows)
    assert got.shape == (2, 9, outside)
    assert (got - rounded).norm() / rounded.norm() < 1e-4
    assert 0 < (got - layer(rows)).norm() / layer(rows).norm() < 0.02


@pytest.mark.parametrize("count", [1, 2, 5, 70])
def test_a_row_is_the_same_in_any_batch(count: int) -> None:
    """A row of large values beside it changes nothing."""
    torch.manual_seed(0)
    layer = Int8Linear(torch.randn(32, 64), torch.randn(32))
    rows = torch.randn(count, 64)
    beside = torch.cat([rows, 1e6 * torch.randn(3, 64), torch.zeros(1, 64)])
    alone = torch.cat([layer(row[None]) for row in rows])
    assert torch.allclose(layer(beside)[:count], alone, rtol=1e-5, atol=1e-5)
    assert not layer(torch.zeros(1, 64)).isnan().any()


def test_a_replaced_layer_is_freed_before_the_next_one() -> None:
    """So that packing or quantizing holds at most one layer twice."""
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    replaced: list[weakref.ref[torch.nn.Module]] = []
    for layer in linear_layers(model):
        assert not any(each() for each in replaced)
        replaced.append(weakref.ref(layer.module))
        layer.replace(torch.nn.Identity())
    assert len(replaced) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_output_has_the_precision_of_the_input(dtype: torch.dtype) -> None:
    """So that the layers around it need no change."""
    assert Int8Linear(torch.randn(16, 16), None)(torch.randn(3, 16, dtype=dtype)).dtype is dtype


def test_all_layers_but_a_classifiers_last_are_quantised(tmp_path: Path) -> None:
    """Embeddings keep the precision of `dtype`."""
    directory = tiny_encoders.classifier(tmp_path)
    options = {"quantize": "int8", "dtype": "bfloat16"}
    network, _ = pretrained.load(
        config_of("text_classification", directory, options), AutoModelForSequenceClassification
    )
    left = [part for part in network.modules() if isinstance(part, torch.nn.Linear)]
    assert [part.out_features < MIN_OUTPUTS for part in left] == [True]
    assert len([part for part in network.modules() if isinstance(part, Int8Linear)]) == 6 * 2 + 1
    assert {each.dtype for each in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("options", [{"quantize": "int8"}, {"dtype": "bfloat16"}, {"dtype": "float16"}], ids=str)
def test_vectors_are_near_those_of_whole_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    """The same direction, in one request or in several."""
    directory = tiny_encoders.sentences(tmp_path)
    whole = FeatureExtraction(config_of(FeatureExtraction, name="x", directory=directory))
    small = FeatureExtraction(config_of(FeatureExtraction, name="x", directory=directory, options=options))
    texts = ["ba be bobe dako.", "This is lo", "ba " * 10]
    for text, together in zip(texts, encode(small, texts), strict=True):
        alone, wanted = (torch.tensor(encode(each, text)) for each in (small, whole))
        assert torch.dot(alone, wanted) > 0.99
        assert torch.dot(alone, torch.tensor(together)) > (0.9999 if "quantize" in options else 0.99)


def test_text_is_generated_with_quantised_weights(tmp_path: Path) -> None:
    """By decoders (GPT-2's transposed weights) and encoder-decoders."""
    tiny.gpt2(tmp_path / "gpt2")
    tiny.bart(tmp_path / "bart")
    options = {"quantize": "int8"}
    writer = TextGeneration(config_of(TextGeneration, name="x", directory=tmp_path / "gpt2", options=options))
    (written,) = generate(writer, {"inputs": "w1 w2", "parameters": {"max_new_tokens": 5}})
    assert len(written["generated_text"].split()) > 2
    summarizer = Seq2Seq(config_of(Seq2Seq, name="x", directory=tmp_path / "bart", options=options))
    (written,) = generate(summarizer, {"inputs": "w1 w2"})
    assert list(written) == ["summary_text"]
    for handler, layers in ((writer.engine.model, 4 + 1), (summarizer.engine.model, 6 + 10 + 1)):
        assert len([part for part in handler.modules() if isinstance(part, Int8Linear)]) == layers


def test_another_way_of_quantising_is_refused(tmp_path: Path) -> None:
    """424, with the supported values."""
    with pytest.raises(ModelUnusable, match=r"options\.quantize: unsupported value 'int4'; use one of: int8$"):
        config_of("text_classification", tmp_path, {"quantize": "int4"})

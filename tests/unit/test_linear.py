"""A linear layer is the same function in each layout, and of any number of rows."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from serve.errors import ModelUnusable
from serve.handlers.encoders.feature_extraction import FeatureExtraction
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.huggingface import layouts, pretrained
from serve.handlers.huggingface.layouts import Activation, Int8, Layout, Packed, Plain
from serve.handlers.huggingface.linear import MIN_OUTPUTS, Linear, linear_layers
from serve.handlers.seq2seq.handler import Seq2Seq
from tests.live import tiny
from tests.unit import tiny_encoders
from tests.unit.configs import config_of
from tests.unit.test_encoders import ask as encode
from tests.unit.test_generation_toys import ask as generate

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda each: each,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda each: functional.gelu(each, approximate="tanh"),
    "silu": functional.silu,
}
# Its layout, the precision of the model, and the largest error of the output, of the largest output.
LAYOUTS: dict[str, tuple[Callable[[Tensor, Tensor | None], Layout], torch.dtype, float]] = {
    "plain": (Plain, torch.float32, 1e-5),
    "packed": (Packed, torch.float32, 1e-5),
    "plain bfloat16": (Plain, torch.bfloat16, 0.02),
    "packed bfloat16": (Packed, torch.bfloat16, 0.02),
    "int8": (Int8, torch.float32, 0.02),
    "int8 in bfloat16": (Int8, torch.bfloat16, 0.03),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_each_layout_is_the_function_that_torch_computes_in_double_precision(layout: str, data: st.DataObject) -> None:
    """For any shape, number of rows, activation, bias, residual, and for the transposed weights of GPT-2."""
    make, dtype, error = LAYOUTS[layout]
    draw = data.draw
    inputs, outputs = draw(st.integers(1, 130)), draw(st.integers(1, 130))
    leading = draw(st.sampled_from([(1,), (2,), (3,), (5,), (33,), (70,), (1, 1), (2, 3), (3, 1, 4)]))
    activation = draw(st.sampled_from(list(ACTIVATIONS)))
    made = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    weight = torch.randn(outputs, inputs, generator=made).to(dtype) / inputs**0.5
    if draw(st.booleans()):
        weight = weight.t().contiguous().t()
    bias = torch.randn(outputs, generator=made).to(dtype) if draw(st.booleans()) else None
    residual = torch.randn(*leading, outputs, generator=made).to(dtype) if draw(st.booleans()) else None
    rows = torch.randn(*leading, inputs, generator=made).to(dtype)

    got = make(weight, bias)(rows, activation, None if residual is None else residual.clone())

    wanted = functional.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    wanted = ACTIVATIONS[activation](wanted)
    if residual is not None:
        wanted = wanted + residual.double()
    assert got.dtype is dtype
    assert got.shape == wanted.shape
    assert (got.double() - wanted).abs().max() <= error * (1 + wanted.abs().max())


@pytest.mark.parametrize("base", [254, 126])
@pytest.mark.parametrize(("inside", "outside"), [(64, 128), (128, 64), (48, 16), (33, 17)])
def test_rounding_the_weights_is_the_only_error_of_8_bits(
    inside: int, outside: int, base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounding of the input does not show, even where one large activation is a hundred times the others."""
    monkeypatch.setattr(layouts, "input_base", lambda: base)
    torch.manual_seed(0)
    weight, rows = torch.randn(outside, inside), torch.randn(9, inside)
    rows[0, 0] = 100.0
    scales = weight.abs().amax(1, keepdim=True) / 127

    got = Int8(weight, None)(rows)

    rounded = functional.linear(rows, (weight / scales).round() * scales)
    assert (got - rounded).norm(dim=1).div(rounded.norm(dim=1)).max() < 4e-4 * (1 if base == 254 else 4)
    assert 1e-3 < (got - functional.linear(rows, weight)).norm() / rounded.norm() < 0.02


@pytest.mark.parametrize("count", [1, 2, 5, 70])
def test_a_row_is_the_same_in_any_batch(count: int) -> None:
    """A row of large values beside it changes nothing."""
    torch.manual_seed(0)
    layer = Int8(torch.randn(32, 64), torch.randn(32))
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


def test_all_layers_but_a_classifiers_last_are_quantised(tmp_path: Path) -> None:
    """Embeddings keep the precision of `dtype`."""
    directory = tiny_encoders.classifier(tmp_path)
    options = {"quantize": "int8", "dtype": "bfloat16"}
    network, _ = pretrained.load(
        config_of("text_classification", directory, options), AutoModelForSequenceClassification
    )
    left = [part for part in network.modules() if isinstance(part, torch.nn.Linear)]
    assert [part.out_features < MIN_OUTPUTS for part in left] == [True]
    assert len([part for part in network.modules() if isinstance(part, Linear)]) == 6 * 2 + 1
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
        assert len([part for part in handler.modules() if isinstance(part, Linear)]) == layers


def test_another_way_of_quantising_is_refused(tmp_path: Path) -> None:
    """424, with the supported values."""
    with pytest.raises(ModelUnusable, match=r"options\.quantize: unsupported value 'int4'; use one of: int8$"):
        config_of("text_classification", tmp_path, {"quantize": "int4"})

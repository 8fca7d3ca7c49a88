"""A linear layer is the same function in each layout, and of any number of rows."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
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
from serve.handlers.huggingface import layout_times, layouts, linear, pretrained
from serve.handlers.huggingface.layout_times import Memory, Times, packed_by_rows
from serve.handlers.huggingface.layouts import Activation, Int8, Layout, Packed, Plain
from serve.handlers.huggingface.linear import MIN_OUTPUTS, Linear
from serve.handlers.seq2seq.handler import Seq2Seq
from tests.live import tiny
from tests.unit import tiny_encoders
from tests.unit.configs import config_of
from tests.unit.test_encoders import ask as encode
from tests.unit.test_generation_toys import ask as generate


class Toy(torch.nn.Module):  # type: ignore[misc]
    """Some layers, one after the other, with what `pack` asks of a model."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda each: each,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda each: functional.gelu(each, approximate="tanh"),
    "silu": functional.silu,
}


def _plain(weight: Tensor, bias: Tensor | None) -> Plain:
    """In two parts, as the merged layers of a network."""
    cut = len(weight) // 3
    if not cut:
        return Plain([(weight, bias)])
    return Plain(
        [(weight[:cut], None if bias is None else bias[:cut]), (weight[cut:], None if bias is None else bias[cut:])]
    )


# Its layout, the precision of the model, and the largest error of the output, of the largest output.
LAYOUTS: dict[str, tuple[Callable[[Tensor, Tensor | None], Layout], torch.dtype, float]] = {
    "plain": (_plain, torch.float32, 1e-5),
    "packed": (Packed, torch.float32, 1e-5),
    "plain bfloat16": (_plain, torch.bfloat16, 0.02),
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


@pytest.mark.parametrize("lay_out", [linear.quantize, lambda model: linear.pack(model, always=True)])
def test_at_most_one_layer_is_held_twice(lay_out: Callable[[Any], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """When a new form is made, the layers that are done are gone."""
    model = Toy([torch.nn.Linear(16, 16) for _ in range(3)])
    originals = [weakref.ref(layer) for layer in model.layers]
    alive: list[int] = []

    def counting(make: Any) -> Any:
        def make_counted(*given: Any) -> None:
            alive.append(sum(original() is not None for original in originals))
            make(*given)

        return make_counted

    for kind in (Packed, Int8):
        monkeypatch.setattr(kind, "__init__", counting(kind.__init__))
    lay_out(model)
    assert alive == [3, 2, 1]


def test_all_layers_but_a_classifiers_last_are_quantised(tmp_path: Path) -> None:
    """Embeddings keep the precision of `dtype`."""
    directory = tiny_encoders.classifier(tmp_path)
    options = {"quantize": "int8", "dtype": "bfloat16"}
    network, _ = pretrained.load(
        config_of("text_classification", directory, options),
        AutoModelForSequenceClassification,
        obstacle=lambda _: None,
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
    for handler, layers in (
        (writer.engine.model, 4 + 1),
        (summarizer.engine.model, 4 + 7 + 1),
    ):  # queries, keys and values of a layer are one
        assert len([part for part in handler.modules() if isinstance(part, Linear)]) == layers


def test_another_way_of_quantising_is_refused(tmp_path: Path) -> None:
    """424, with the supported values."""
    with pytest.raises(ModelUnusable, match=r"options\.quantize: unsupported value 'int4'; use one of: int8$"):
        config_of("text_classification", tmp_path, {"quantize": "int4"})


def test_layers_side_by_side_are_one_product_of_the_same_outputs() -> None:
    """As the queries, keys and values of attention."""
    torch.manual_seed(0)
    parts = [torch.nn.Linear(16, width) for width in (24, 8, 17)]
    model = Toy([linear.SideBySide(parts)])
    rows = torch.randn(5, 16)
    with torch.inference_mode():
        wanted = model(rows)
        assert linear.pack(model, always=True) == 1
        assert torch.allclose(model(rows), wanted, atol=1e-5)
    assert isinstance(model.layers[0], Linear)


def times(plain: Sequence[float], packed: Sequence[float]) -> Times:
    return Times(tuple(plain), tuple(packed))


def test_the_faster_layout_multiplies_few_rows() -> None:
    """Figures of an Intel with AMX (plain for 1 row) and of an AMD (packed for all), GPT-2, ms."""
    intel, amd = times([10.9, 16, 21], [18, 12, 17]), times([27, 67, 72], [22, 19, 29])
    assert packed_by_rows(intel, gain=0) == [False, False, True, True]
    assert packed_by_rows(amd, gain=0) == [True]


def test_a_copy_of_the_weights_must_save_time() -> None:
    """A few percent are no reason to double the memory of an encoder."""
    even, little, slow = [10, 20, 30], [9.5, 19, 29], [30, 40, 50]
    assert packed_by_rows(times(even, little), gain=0.08) == [False]
    assert packed_by_rows(times(even, little), gain=0) == [True]
    assert packed_by_rows(times(even, slow), gain=0.08) == [False]


@given(st.lists(st.floats(1e-6, 1), min_size=6, max_size=6), st.sampled_from([0, 0.08]))
def test_one_row_gets_a_layout_that_is_not_clearly_slower(found: list[float], gain: float) -> None:
    measured = times(found[:3], found[3:])
    by_rows = packed_by_rows(measured, gain=gain)
    plain, packed = measured.plain[0], measured.packed[0]
    if by_rows != [False]:
        assert (packed if by_rows[0] else plain) <= min(plain, packed) * 1.06
        assert by_rows[-1]


def test_times_are_measured_once_for_a_shape_and_kept_for_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged file is written again."""
    measured: list[tuple[int, ...]] = []

    def measure(weights: Sequence[Tensor]) -> Times:
        measured.append(tuple(weights[0].shape))
        return times([1, 2, 3], [3, 2, 1])

    monkeypatch.setattr(layout_times, "measured", measure)
    (tmp_path / layout_times.FILE).write_text("{")
    one, other = torch.zeros(8, 4), torch.zeros(8, 5)
    first = Memory(tmp_path)
    assert first.times([one]) == first.times([one]) == Memory(tmp_path).times([one]) == times([1, 2, 3], [3, 2, 1])
    Memory(tmp_path).times([other])
    Memory(tmp_path).times([one, one])
    assert measured == [(8, 4), (8, 5)]
    Memory(None).times([one])
    assert measured == [(8, 4), (8, 5), (8, 4)]


def test_each_layout_of_a_layer_serves_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain for one row, packed for more, equal outputs."""
    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(linear, "_mapped_weights", lambda: [range(1 << 62)])  # each weight counts as mapped
    monkeypatch.setattr(layout_times, "measured", lambda _: times([1, 9, 9], [2, 1, 1]))
    served: list[tuple[str, int]] = []

    def noting(kind: Any, compute: Any) -> Any:
        def compute_noted(self: Any, rows: Tensor, *given: Any) -> Any:
            served.append((kind.__name__, len(rows)))
            return compute(self, rows, *given)

        return compute_noted

    for kind in (Plain, Packed):
        monkeypatch.setattr(kind, "__call__", noting(kind, kind.__call__))
    model = Toy([torch.nn.Linear(16, 16)])
    (layer,) = model.layers
    assert linear.pack(model) == 1
    for count in (1, 2, 5, 64, 500):
        rows = torch.randn(count, 16)
        assert torch.allclose(model(rows), layer(rows), atol=1e-5)
    assert served == [("Plain", 1), *(("Packed", count) for count in (2, 5, 64, 500))]


@pytest.mark.parametrize(("slowness", "refused"), [(129.0, True), (4.3, False)])
def test_only_a_product_of_8_bits_without_a_kernel_is_refused(
    slowness: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest reference loop that was measured, and the slowest kernel; the largest layer is timed."""
    timed: list[int] = []

    def slow(weight: Tensor, _rows: int) -> float:
        timed.append(len(weight))
        return slowness

    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(linear, "int8_slowness", slow)
    model = Toy([torch.nn.Linear(16, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 16)])
    if refused:
        with pytest.raises(ModelUnusable, match=r"options\.quantize: on this processor.* 129\.0 times"):
            linear.quantize(model)
    else:
        assert linear.quantize(model) == 3
    assert timed == [64]


_PRODUCTS = """
import torch
from serve.handlers.huggingface.layouts import Int8, input_base
print("base", input_base())
for inputs, outputs in ((64, 128), (576, 1536), (576, 192)):
    layer = Int8(torch.randn(outputs, inputs), None)
    for rows in (1, 2, 16):
        layer(torch.randn(rows, inputs))
"""


@pytest.mark.parametrize(("instructions", "base"), [("DEFAULT", None), ("AVX512_CORE_VNNI", None), ("AVX2", 126)])
def test_products_of_8_bits_have_a_kernel_on_each_instruction_set(instructions: str, base: int | None) -> None:
    """oneDNN's reference loops are hundreds of times slower. On AVX2, eight bits of input would overflow."""
    environ = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "ONEDNN_VERBOSE": "1"}
    lines = subprocess.run(
        [sys.executable, "-c", _PRODUCTS], env=environ, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    products = [line for line in lines if line.startswith("onednn_verbose") and ",exec,cpu,matmul," in line]
    assert len(products) >= 9
    assert not [line for line in products if ",ref" in line.split("matmul", 1)[1]]
    assert base is None or f"base {base}" in lines

"""A linear layer is the same function in each layout, and of any number of rows."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
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
from serve.handlers.huggingface.layout_times import MANY, WORTH_HALF, Memory, Times, fastest_by_rows
from serve.handlers.huggingface.layouts import Activation, Half, Int8, Layout, Packed, Plain, fits_half
from serve.handlers.huggingface.linear import MIN_OUTPUTS, Linear
from serve.handlers.seq2seq.handler import Seq2Seq
from tests.live import tiny
from tests.unit import tiny_encoders
from tests.unit.configs import config_of
from tests.unit.test_encoders import ask as encode
from tests.unit.test_generation_toys import ask as generate


class Toy(torch.nn.Module):  # type: ignore[misc]
    """Some layers, one after the other, with what `pack` asks of a model."""

    dtype, device, config = torch.float32, torch.device("cpu"), SimpleNamespace(model_type="toy")

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
    "half": (Half, torch.float32, 2e-3),
    "half in bfloat16": (Half, torch.bfloat16, 0.02),
    "int8": (Int8, torch.float32, 0.02),
    "int8 in bfloat16": (Int8, torch.bfloat16, 0.03),
}
if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    del LAYOUTS["packed bfloat16"]  # as `packable` says
if not layouts.half_is_supported():
    del LAYOUTS["half"], LAYOUTS["half in bfloat16"]


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


@pytest.mark.parametrize("base", sorted({layouts.input_base(), 126}))  # 254 overflows without VNNI
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


def finish(packing: linear.Packing) -> dict[str, int]:
    """Do what is left behind a load; returns how many layers have each layout."""
    while packing.advance():
        pass
    assert packing.bytes == 0
    return dict(packing.layouts)


@pytest.mark.parametrize(
    "lay_out",
    [
        lambda model: linear.quantize(model, "int8"),
        lambda model: linear.quantize(model, "float16"),
        lambda model: finish(linear.pack(model, always=True)),
        lambda model: finish(linear.pack(model)),
    ],
    ids=["int8", "float16", "packed at once", "packed behind the load"],
)
def test_at_most_one_layer_is_held_twice(lay_out: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """When a new form is made, the layers that are done are gone."""
    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(layout_times, "measured", lambda *_, **__: times([2, 2, 2], [1, 1, 1]))
    monkeypatch.setattr(linear, "slowness", lambda *_: 1.0)
    model = Toy([torch.nn.Linear(16, 16) for _ in range(3)])
    originals = []
    for layer in model.layers:
        memory = np.ones((16, 16), np.float32)
        layer.weight = torch.nn.Parameter(torch.from_numpy(memory))
        originals.append(weakref.ref(memory))  # a tensor lives on in its views, whatever becomes of its object
        del memory
    alive: list[int] = []

    def counting(make: Any) -> Any:
        def make_counted(*given: Any) -> None:
            alive.append(sum(original() is not None for original in originals))
            make(*given)

        return make_counted

    layouts.half_is_supported()
    for kind in (Packed, Half, Int8):
        monkeypatch.setattr(kind, "__init__", counting(kind.__init__))
    lay_out(model)
    assert alive == [3, 2, 1]


def test_all_layers_but_a_classifiers_last_are_quantised(tmp_path: Path) -> None:
    """Embeddings keep the precision of `dtype`."""
    directory = tiny_encoders.classifier(tmp_path)
    options = {"quantize": "int8", "dtype": "bfloat16"}
    network, *_ = pretrained.load(
        config_of("text_classification", directory, options),
        AutoModelForSequenceClassification,
        obstacle=lambda _: None,
    )
    left = [part for part in network.modules() if isinstance(part, torch.nn.Linear)]
    assert [part.out_features < MIN_OUTPUTS for part in left] == [True]
    assert len([part for part in network.modules() if isinstance(part, Linear)]) == 6 * 2 + 1
    assert {each.dtype for each in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "options", [{"quantize": "int8"}, {"quantize": "float16"}, {"dtype": "bfloat16"}, {"dtype": "float16"}], ids=str
)
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
    with pytest.raises(ModelUnusable, match=r"options\.quantize: unsupported value 'int4'; use one of: int8, float16$"):
        config_of("text_classification", tmp_path, {"quantize": "int4"})


def test_layers_side_by_side_are_one_product_of_the_same_outputs() -> None:
    """As the queries, keys and values of attention."""
    torch.manual_seed(0)
    parts = [torch.nn.Linear(16, width) for width in (24, 8, 17)]
    model = Toy([linear.SideBySide(parts)])
    rows = torch.randn(5, 16)
    with torch.inference_mode():
        wanted = model(rows)
        assert finish(linear.pack(model, always=True)) == {"packed": 1}
        assert torch.allclose(model(rows), wanted, atol=1e-5)
    assert isinstance(model.layers[0], Linear)


def times(plain: Sequence[float], packed: Sequence[float], half: Sequence[float] = ()) -> Times:
    return Times(tuple(plain), tuple(packed), tuple(half))


def test_the_faster_layout_multiplies_few_rows() -> None:
    """Figures of an Intel with AMX (plain for 1 row) and of an AMD (packed for all), GPT-2, ms."""
    intel, amd = times([10.9, 16, 21], [18, 12, 17]), times([27, 67, 72], [22, 19, 29])
    assert fastest_by_rows(intel, mapped=True, gain=0) == ["plain", "plain", "packed", "packed"]
    assert fastest_by_rows(amd, mapped=True, gain=0) == ["packed"]
    assert fastest_by_rows(intel, mapped=False, gain=0) == ["packed"], "private memory holds one form"


def test_a_copy_of_the_weights_must_save_time() -> None:
    """A few percent are no reason to double the memory of an encoder."""
    even, little, slow = [10, 20, 30], [9.5, 19, 29], [30, 40, 50]
    assert fastest_by_rows(times(even, little), mapped=True, gain=0.08) == ["plain"]
    assert fastest_by_rows(times(even, little), mapped=True, gain=0) == ["packed"]
    assert fastest_by_rows(times(even, slow), mapped=True, gain=0.08) == ["plain"]


def test_half_of_the_memory_may_cost_a_little_time() -> None:
    """The mapped weight multiplies many rows; where there is none, Half does."""
    near, far = times([10, 20, 30], [8, 10, 12], [5, 12, 18]), times([10, 20, 30], [8, 10, 12], [9, 16, 20])
    assert fastest_by_rows(near, mapped=False, gain=0) == ["half"]
    assert fastest_by_rows(near, mapped=True, gain=0) == [*["half"] * (MANY - 1), "plain"]
    assert fastest_by_rows(far, mapped=False, gain=0) == ["packed"]


@given(st.lists(st.floats(1e-6, 1), min_size=9, max_size=9), st.booleans(), st.booleans(), st.sampled_from([0, 0.08]))
def test_one_row_gets_a_layout_that_is_not_clearly_slower(
    found: list[float], fits: bool, mapped: bool, gain: float
) -> None:
    """Half may be slower where it saves memory."""
    measured = times(found[:3], found[3:6], found[6:] if fits else ())
    chosen = fastest_by_rows(measured, mapped=mapped, gain=gain)
    if "half" in chosen:
        ratios = [half / packed for half, packed in zip(measured.half, measured.packed, strict=True)]
        assert fits
        assert min(ratios) <= WORTH_HALF
    elif mapped and chosen != ["plain"]:
        times_of = {"plain": measured.plain[0], "packed": measured.packed[0]}
        assert times_of[chosen[0]] <= min(times_of.values()) * 1.06
        assert chosen[-1] == "packed"
    else:
        assert chosen == (["plain"] if mapped else ["packed"])


@given(st.integers(0, 1 << 30), st.floats(-30, 30), st.sampled_from([torch.bfloat16, torch.float16]))
@settings(max_examples=60, deadline=None)
def test_weights_that_were_saved_in_16_bits_lose_nothing_in_half(seed: int, width: float, dtype: torch.dtype) -> None:
    """The products are those of float32: as near to the exact ones as a product of torch, within the order of sums."""
    made = torch.Generator().manual_seed(seed)
    width = max(-8, min(8, width)) if dtype is torch.float16 else width
    weight = (torch.randn(24, 96, generator=made) * 2.0**width).to(dtype).float()
    rows = torch.randn(3, 96, generator=made)
    assert fits_half(weight)
    exact = functional.linear(rows.double(), weight.double())
    bound = functional.linear(rows.abs().double(), weight.abs().double()) * 96 * 2.0**-24
    assert bool(((Half(weight, None)(rows).double() - exact).abs() <= bound).all())


def test_weights_of_32_bits_do_not_fit_half() -> None:
    """Nor one row of them, nor a row so much smaller than the others that it would lose digits, nor NaN."""
    torch.manual_seed(0)
    fitting = torch.randn(16, 64).bfloat16().float()
    assert fits_half(fitting)
    for row in (torch.randn(64), fitting[0] * 2.0**-40, torch.full((64,), torch.nan)):
        weight = fitting.clone()
        weight[7] = row
        assert not fits_half(weight)


def test_times_are_measured_once_for_a_shape_and_kept_for_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged file is written again."""
    measured: list[tuple[int, ...]] = []

    def measure(weights: Sequence[Tensor], *, half: bool) -> Times:
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
    monkeypatch.setattr(layout_times, "measured", lambda *_, **__: times([1, 9, 9], [2, 1, 1]))
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
    packing = linear.pack(model)
    assert packing.bytes == 16 * 16 * 4
    for count in (1, 500):  # right behind the load
        rows = torch.randn(count, 16)
        assert torch.allclose(model(rows), layer(rows), atol=1e-5)
    assert finish(packing) == {"plain": 1, "packed": 1}
    for count in (1, 2, 5, 64, 500):
        rows = torch.randn(count, 16)
        assert torch.allclose(model(rows), layer(rows), atol=1e-5)
    plain = [("Plain", count) for count in (1, 500, 1)]
    assert served == [*plain, *(("Packed", count) for count in (2, 5, 64, 500))]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_decoder_saved_in_16_bits_holds_halves(stored: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder, which multiplies many rows, does not, and weights of 32 bits do not. Nor do layers so narrow that
    whole blocks of inputs would take more memory than 32 bits.
    """
    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(layout_times, "measured", lambda *_, half, **__: times([3] * 3, [2] * 3, [1] * 3 * half))

    def laid_out(gain: float, inputs: int = 256) -> dict[str, int]:
        torch.manual_seed(0)
        layers = [torch.nn.Linear(inputs, inputs).to(stored).float() for _ in range(2)]
        return finish(linear.pack(Toy(layers), gain=gain))

    halves = stored is torch.bfloat16 and layouts.half_is_supported()
    assert laid_out(0) == ({"half": 2} if halves else {"packed": 2})
    assert laid_out(0.08) == laid_out(0, inputs=255) == {"packed": 2}


def test_without_memory_for_them_faster_layouts_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers that have none stay plain, and answer."""
    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(linear, "_mapped_weights", lambda: [range(1 << 62)])
    monkeypatch.setattr(layout_times, "measured", lambda *_, **__: times([2] * 3, [1] * 3))
    model = Toy([torch.nn.Linear(16, 16) for _ in range(3)])
    rows = torch.randn(5, 16)
    wanted = model(rows)
    packing = linear.pack(model)
    assert packing.advance()

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Packed, "__init__", full)
    assert finish(packing) == {"packed": 1}
    assert torch.allclose(model(rows), wanted, atol=1e-5)


@pytest.mark.parametrize(("slowness", "refused"), [(129.0, True), (4.3, False)])
def test_only_a_product_of_8_bits_without_a_kernel_is_refused(
    slowness: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest reference loop that was measured, and the slowest kernel; the largest layer is timed."""
    timed: list[int] = []

    def slow(_: Any, weight: Tensor, _rows: int) -> float:
        timed.append(len(weight))
        return slowness

    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(linear, "slowness", slow)
    model = Toy([torch.nn.Linear(16, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 16)])
    if refused:
        with pytest.raises(ModelUnusable, match=r"options\.quantize = \"int8\": on this processor.* 129\.0 times"):
            linear.quantize(model, "int8")
    else:
        assert linear.quantize(model, "int8") == 3
    assert timed == [64]


@pytest.mark.parametrize(("dtype", "refused"), [(torch.bfloat16, True), (torch.float16, True), (torch.float32, False)])
def test_a_16_bit_precision_that_is_slower_than_float32_is_refused(
    dtype: torch.dtype, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors without its instructions. The remedy is named."""
    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(linear, "slowness", lambda *_: 19.6)
    model = Toy([torch.nn.Linear(16, 16).to(dtype)])
    model.dtype = dtype
    if refused:
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(ModelUnusable, match=rf'options\.dtype = "{name}".* 19\.6 times') as error:
            linear.check_speed(model)
        assert 'quantize = "float16"' in error.value.hint
        monkeypatch.setattr(linear, "slowness", lambda *_: 0.5)
    linear.check_speed(model)


@pytest.mark.parametrize("model_type", sorted(linear.READ_WEIGHTS))
def test_a_model_that_computes_with_its_weights_keeps_them(model_type: str) -> None:
    model = Toy([torch.nn.Linear(16, 16)])
    model.config = SimpleNamespace(model_type=model_type)
    assert not linear.packable(model)
    with pytest.raises(ModelUnusable, match=rf"models of type {model_type} compute with their weights"):
        linear.quantize(model, "int8")


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

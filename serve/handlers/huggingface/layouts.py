"""The forms in which the weight of a linear layer lies in memory, each with the fastest product that it allows.

- `Plain`: the tensor as it was loaded. Mapped from a safetensors file it is page cache, and takes no private memory.
- `Packed`: blocked once for oneDNN, in float32 or bfloat16; the activation and the residual are part of the product.
- `Half`: 16 bits for each weight, widened in registers by FBGEMM; products and sums are those of float32.
- `Int8`: a byte for each weight, multiplied on the processor's integer units.

All of them compute [..., in] -> [..., out] in the precision of the input.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu"]

# oneDNN chooses the blocking for a number of rows; the result is right for every number. 64 is the best choice for 2 to
# 64 rows (24 layers of GPT-2's sizes, one core: 12.8 ms at 1 row, 13.2 at 4, 19.2 at 16; blocked for 16 rows 13.3,
# 14.5, 19.9).
TYPICAL_ROWS = 64
WEIGHT_LEVELS = 127
HALF_BLOCK = 512  # inputs: 576 of them (SmolLM2) take 1.8 times the bytes that they need, 768 (GPT-2) 1.3 times


class _Form(NamedTuple):
    """An activation: as a function in place, and as oneDNN's post-operation and its algorithm."""

    apply: Callable[[Tensor], Tensor]
    post_operation: str
    algorithm: str


_FORMS: dict[Activation, _Form] = {
    "none": _Form(lambda each: each, "none", ""),
    "relu": _Form(functional.relu_, "relu", ""),
    "gelu": _Form(torch.ops.aten.gelu_, "gelu", "none"),
    "gelu_tanh": _Form(lambda each: torch.ops.aten.gelu_(each, approximate="tanh"), "gelu", "tanh"),
    "silu": _Form(lambda each: functional.silu(each, inplace=True), "swish", ""),
}


class Layout(Protocol):
    def __call__(self, rows: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        """The activation of the product, plus the residual, which has the shape of the output."""


class Plain:
    def __init__(self, parts: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """`parts`: weights and biases whose outputs are side by side."""
        self._parts = parts

    def __call__(self, rows: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        products = [functional.linear(rows, weight, bias) for weight, bias in self._parts]
        product = _FORMS[activation].apply(products[0] if len(products) == 1 else torch.cat(products, -1))
        return product if residual is None else product.add_(residual)


class Packed:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        # A transposed weight (GPT-2's) is passed as it is: a contiguous copy first takes half as much time again.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
        self._bias = bias

    def __call__(self, rows: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        product: Tensor
        if residual is not None and activation == "none":
            product = torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self._packed, self._bias, "add")
            return product
        form = _FORMS[activation]
        product = torch.ops.mkldnn._linear_pointwise(
            rows, self._packed, self._bias, form.post_operation, [], form.algorithm
        )
        return product if residual is None else product.add_(residual)


class Half:
    """Weights as float16, times a power of two that makes use of its range. Everything else is computed in float32.

    A step with few rows reads the weights at the speed of memory, so that half of the bytes take about half of the
    time. A checkpoint that was saved in bfloat16 or float16 loses nothing: see `fits_half`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.float()
        factor = _half_factor(weight)
        scaled_bias = None if bias is None else bias.float() * factor
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight * factor, scaled_bias)
        self._scale = 1 / factor

    def __call__(self, rows: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows.float(), self._packed)
        if residual is not None and activation == "none":
            return torch.add(residual, product.to(rows.dtype), alpha=self._scale)
        product = _FORMS[activation].apply(product.mul_(self._scale)).to(rows.dtype)
        return product if residual is None else product.add_(residual)


def half_bytes(outputs: int, inputs: int) -> int:
    """What a weight takes in Half: FBGEMM rounds the inputs up to whole blocks."""
    return 2 * outputs * -(-inputs // HALF_BLOCK) * HALF_BLOCK


def fits_half(weight: Tensor) -> bool:
    """Whether a float32 weight [out, in] loses nothing in Half that a product in float32 would show.

    The values of bfloat16 have 8 significant bits, and float16 holds them from its largest down to 2**-33 of it. What
    is lost below that is less than the rounding of float32 in the largest weight of the same output.
    """
    factor = _half_factor(weight)

    def lost(rows: Tensor) -> bool:
        scaled = rows * factor
        error = (scaled - scaled.half()).abs_()  # computed in float32
        return not bool((error.amax(1) <= scaled.abs_().amax(1) * 2.0**-24).all())  # NaN is lost too

    return not lost(weight[:1]) and not lost(weight)  # the first row decides for most of the weights that do not fit


def _half_factor(weight: Tensor) -> float:
    """The power of two by which the largest weight comes to 2**14 at least, and under 2**15.

    It is not so large that a bias, which is multiplied by it as well, could overflow.
    """
    largest = max(-float(weight.min()), float(weight.max()))
    return float(2.0 ** min(15 - math.frexp(largest)[1], 64)) if 0 < largest < math.inf else 1.0


@cache
def half_is_supported() -> bool:
    """Whether this processor has the product of Half: FBGEMM is for x86 with AVX2 only."""
    try:
        layer = Half(torch.eye(16), None)
        return torch.equal(layer(torch.eye(16)), torch.eye(16))
    except RuntimeError:
        return False


class Int8:
    """A scale for each output channel of the weight, and one for each row of the input, computed for each pass.

    One scale for the whole input, as in torch's own dynamic quantization, would make an answer depend on the other
    requests of the batch. An input row becomes two rows of small integers, its rounded values and what the rounding
    left: for models with a few very large activations (Llama and its like) one row alone would lose the small ones
    (docs/decisions/0009-weights.md).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._outputs, self._inputs = weight.shape
        weight = weight.float()
        self._scales = weight.abs().amax(1).clamp_min_(1e-12).div_(WEIGHT_LEVELS)
        rounded = (weight / self._scales[:, None]).round_().to(torch.int8).contiguous()
        # Without a number of rows, oneDNN would block the weights again in each pass.
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, [TYPICAL_ROWS, self._inputs])
        self._zeros = torch.zeros(self._outputs, dtype=torch.long)
        self._bias = None if bias is None else bias.float()
        self._base = input_base()

    def __call__(self, rows: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        inputs = rows.reshape(-1, self._inputs)
        if inputs.dtype is not torch.float32:
            inputs = inputs.float()
        count, base = len(inputs), self._base
        # A value is a number of two digits, each from -base / 2 to base / 2.
        scales = torch.linalg.vector_norm(inputs, float("inf"), 1, True).clamp_min_(1e-12).div_(base * base // 2)
        values = inputs / scales
        coarse = (values / base).round_()
        digits = torch.cat([coarse, values.sub_(coarse, alpha=base)])
        zero = base // 2 + 1
        product = _unsigned_product(
            digits.add_(zero + 0.5).to(torch.uint8), zero, self._packed, self._scales, self._zeros
        )
        product = torch.add(product[count:], product[:count], alpha=base)
        product = product.mul_(scales) if self._bias is None else torch.addcmul(self._bias, product, scales)
        product = _FORMS[activation].apply(product).to(rows.dtype).reshape(*rows.shape[:-1], self._outputs)
        return product if residual is None else product.add_(residual)


@cache
def input_base() -> int:
    """The base of the two integers of an input: 254, or 126 where sums of products would overflow.

    Processors without VNNI multiply unsigned by signed bytes and add two products in 16 bits, which is too few for
    255 x 127 x 2; oneDNN then saturates silently ("Nuances of int8 Computations" in its documentation). 127 x 127 x 2
    fits.
    """
    inputs = 256
    weight = torch.ops.onednn.qlinear_prepack(torch.full((64, inputs), WEIGHT_LEVELS).to(torch.int8), [4, inputs])
    largest = torch.full((4, inputs), 255, dtype=torch.uint8)
    product = _unsigned_product(largest, 128, weight, torch.ones(64), torch.zeros(64, dtype=torch.long))
    return 254 if bool((product == 127.0 * WEIGHT_LEVELS * inputs).all()) else 126


def _unsigned_product(rows: Tensor, zero: int, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """(rows - zero) x weight x scales, as float32.

    Unsigned rows, because with signed ones oneDNN has no kernel for AVX-512 without AMX, and takes a plain loop: 22 ms
    for 576 x 576, where unsigned ones take 0.05.
    """
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(rows, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    )
    return product

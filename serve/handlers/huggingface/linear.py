"""The linear layer of every served network: it has its weight in one or two layouts, and takes the faster one.

A load leaves the weights as they are, plain, so that the first request does not wait. The faster layouts are made
behind it, layer by layer. A plain weight that is mapped from its file is page cache: it may stay beside another layout
at no cost. A plain weight in private memory is freed as soon as its new form exists, so that at most one layer is held
twice.
"""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from serve.errors import ModelUnusable
from serve.failures import exhausted
from serve.handlers.huggingface.layout_times import Memory, Name, fastest_by_rows, one_thread, slowness
from serve.handlers.huggingface.layouts import (
    Activation,
    Half,
    Int8,
    Layout,
    Packed,
    Plain,
    fits_half,
    half_bytes,
    half_is_supported,
)

log = logging.getLogger(__name__)

# A layer with fewer outputs is the last of a classifier: it is small, and its precision is that of the answer.
MIN_OUTPUTS = 16
SMALL = 1 << 20  # weights of a model that is too small to be measured: it is packed
# Times that of a float32 product, at 16 rows of one layer: a slower product of 8 bits has no kernel and is not served.
# Kernels took 0.6 to 4.3 (nine shapes; AMX, AVX512-VNNI, AVX2), the reference loop 129 to 247. One layer says no more:
# its weights stay in the cache, and the whole of SmolLM2 is 2.2 times faster where its layers alone seem slower.
SLOWEST = 20.0
# The same for a 16-bit precision of the whole model: bfloat16 without its instructions takes 20 times (AVX512-VNNI),
# and 0.3 to 0.6 with them.
SLOWEST_16_BIT = 3.0


# Model types whose code computes with the weights of linear layers: they stay as they are.
READ_WEIGHTS = frozenset({"jamba", "layoutlmv3", "neomme"})


class Linear(nn.Module):
    """[..., in] -> [..., out]: `activation(input x weight + bias) + residual`, in the precision of the input.

    The layout that multiplies depends on the number of rows, which is the product of all dimensions but the last.
    """

    def __init__(self, inputs: int, outputs: int, by_rows: list[Layout], weight: Tensor | None) -> None:
        """`by_rows`: the layout for 1, 2... rows; the last one serves all larger numbers.

        `weight`: what code of transformers finds as the weight. It looks at its precision in places.
        """
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = weight
        self._by_rows = by_rows

    def change(self, by_rows: list[Layout]) -> None:
        """Take other layouts from the next call on. Another thread may do this."""
        self._by_rows = by_rows

    def forward(self, hidden: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        by_rows = self._by_rows
        rows = hidden.numel() // self.in_features
        return by_rows[min(rows, len(by_rows)) - 1](hidden, activation, residual)


class SideBySide(nn.Module):
    """Linear layers over one input, whose outputs are side by side. `pack` and `quantize` make one Linear of them."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([layer(hidden) for layer in self.layers], -1)


class LinearLayer(NamedTuple):
    """A linear layer of a model, and where it is: attribute `name` of the module `parent`."""

    parent: nn.Module
    name: str
    parts: list[tuple[Tensor, Tensor | None]]  # weights [out, in] and biases, side by side

    @property
    def shape(self) -> tuple[int, int]:
        return sum(len(weight) for weight, _ in self.parts), self.parts[0][0].shape[1]

    def joined(self) -> tuple[Tensor, Tensor | None]:
        """Its weight [out, in] and its bias; copies where there are several parts."""
        return joined(self.parts)

    def replace(self, by_rows: list[Layout], weight: Tensor | None) -> Linear:
        """`weight`: see Linear."""
        outputs, inputs = self.shape
        layer = Linear(inputs, outputs, by_rows, weight)
        setattr(self.parent, self.name, layer)
        return layer


def joined(parts: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases side by side, as those of one layer."""
    if len(parts) == 1:
        return parts[0]
    biases = [bias for _, bias in parts if bias is not None]
    return torch.cat([weight for weight, _ in parts]), torch.cat(biases) if biases else None


def linear_layers(model: nn.Module) -> Iterator[LinearLayer]:
    """Each linear layer of a model, GPT-2's transposed Conv1D included.

    Layers may be replaced on the way. No reference to a replaced layer is kept, so that the caller holds at most one
    layer twice.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, Conv1D, SideBySide)
    ]
    lists = {id(module.layers) for module in model.modules() if type(module) is SideBySide}  # parts of one layer
    places = [(parent, name) for parent, name in places if id(parent) not in lists]
    for parent, name in places:
        yield LinearLayer(parent, name, _parts(getattr(parent, name)))


def _parts(module: Any) -> list[tuple[Tensor, Tensor | None]]:
    if type(module) is SideBySide:
        return [part for layer in module.layers for part in _parts(layer)]
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    return [(weight.t() if type(module) is Conv1D else weight, bias)]


def packable(model: PreTrainedModel) -> bool:
    """Whether oneDNN supports the model's device and precision, and the model calls its layers."""
    supported: bool = torch.backends.mkldnn.is_available() and model.config.model_type not in READ_WEIGHTS
    if model.dtype is torch.bfloat16:
        supported = supported and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported and model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)


class Packing:
    """The layers of a network that get faster layouts behind its load."""

    def __init__(self) -> None:
        self.bytes = 0  # the most private memory that the rest will add
        self.layouts: Counter[str] = Counter()  # the layers that have got each layout
        self._waiting: deque[Callable[[], set[Name]]] = deque()
        self._sizes: deque[int] = deque()
        self._seconds = 0.0

    def add(self, make: Callable[[], set[Name]], size: int) -> None:
        """`make` gives one layer its layouts, and returns which. `size`: the private bytes that it adds at most."""
        self._waiting.append(make)
        self._sizes.append(size)
        self.bytes += size

    def advance(self) -> bool:
        """Give one layer its layouts; returns whether layers are left. Without memory, the rest stays plain."""
        if not self._waiting:
            return False
        began = time.thread_time()
        try:
            with torch.inference_mode(), one_thread():
                self.layouts.update(self._waiting.popleft()())
        except Exception as error:
            if (resource := exhausted(error)) is None:
                raise
            log.warning("weights stay as they are, and are multiplied more slowly", extra={"error": resource.message})
            self._waiting.clear()
            self.bytes = 0
            return False
        self.bytes -= self._sizes.popleft()
        self._seconds += time.thread_time() - began
        if not self._waiting:
            log.info("weights laid out", extra={"seconds": round(self._seconds, 2), **self.layouts})
        return bool(self._waiting)


def pack(model: PreTrainedModel, *, always: bool = False, gain: float = 0, memory: Path | None = None) -> Packing:
    """Give each linear layer of a CPU model its faster layouts: a small model's at once, else by the Packing.

    A head that shares its weight with the embedding gets a copy; the embedding keeps the weight.

    Args:
        always: all layers are packed at once, without measuring. A plain weight serves no rows.
        gain: the part of the time that a copy of a mapped weight must save, for its private memory. More than 0: a
            model that multiplies many rows, for which Half is not considered.
        memory: the directory that keeps measured times.
    """
    mapped = _mapped_weights()

    def is_mapped(layer: LinearLayer) -> bool:
        return all(any(part.data_ptr() in addresses for addresses in mapped) for part, _ in layer.parts)

    packing, kinds, times = Packing(), dict[Any, list[Tensor]](), Memory(memory)
    small = sum(math.prod(layer.shape) for layer in linear_layers(model)) <= SMALL
    halves = gain == 0 and model.dtype is torch.float32 and half_is_supported()
    for layer in linear_layers(model):
        weight = layer.parts[0][0]
        held = is_mapped(layer)
        seen = weight if held and len(layer.parts) == 1 else weight.new_empty(0)
        if always or small:
            layer.replace([Packed(*layer.joined())], seen)
            packing.layouts["packed"] += 1
        else:
            made = layer.replace([Plain(layer.parts)], seen)
            alike = kinds.setdefault((*layer.shape, len(layer.parts), weight.stride(0) == 1, held), [])
            alike.append(weight)
            change = partial(_change, made, layer.parts, alike, times, halves=halves, mapped=held, gain=gain)
            packing.add(change, math.prod(layer.shape) * weight.itemsize if held else 0)
        del weight, seen
    return packing


def _change(
    layer: Linear,
    parts: list[tuple[Tensor, Tensor | None]],
    alike: list[Tensor],
    times: Memory,
    *,
    halves: bool,
    mapped: bool,
    gain: float,
) -> set[Name]:
    """Give a layer the layouts that are measured to be its fastest; returns which.

    `parts`: its plain weights. `alike`: those of the layers of its kind that are still plain, this one first.
    """
    weight, bias = joined(parts)
    fits = halves and half_bytes(*weight.shape) <= weight.nbytes and fits_half(weight)
    chosen = fastest_by_rows(times.times(alike, half=fits), mapped=mapped, gain=gain)
    made: dict[Name, Layout] = {}
    for name in set(chosen):
        made[name] = Plain(parts) if name == "plain" else (Half if name == "half" else Packed)(weight, bias)
    layer.change([made[name] for name in chosen])
    del alike[0]
    return set(chosen)


def _mapped_weights() -> list[range]:
    """The addresses of mapped safetensors files: weights there are page cache, shared and evictable."""
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = line.split(" ", 1)[0].split("-")
            spans.append(range(int(start, 16), int(end, 16)))
    return spans


def quantize(model: PreTrainedModel, form: Literal["int8", "float16"]) -> int:
    """Replace the linear layers of a model on the CPU by Int8 or Half ones, and return how many were replaced.

    Embeddings and norms keep their precision. Raises ModelUnusable for a model on a GPU, one that computes with the
    weights themselves, and where the processor has no fast product.
    """
    option = f'model.toml: options.quantize = "{form}"'
    if model.device.type != "cpu":
        raise ModelUnusable(
            "model.toml: options.quantize is supported on CPUs only, and this model is on a GPU",
            hint="remove the option",
        )
    if model.config.model_type in READ_WEIGHTS:
        raise ModelUnusable(
            f"{option}: models of type {model.config.model_type} compute with their weights outside of linear layers",
            hint="remove the option",
        )
    if form == "float16" and not half_is_supported():
        raise ModelUnusable(
            f"{option} needs an x86 processor with AVX2",
            hint='remove the option, or set dtype = "bfloat16" instead',
        )
    layers = [layer for layer in linear_layers(model) if layer.shape[0] >= MIN_OUTPUTS]
    if form == "int8" and sum(math.prod(layer.shape) for layer in layers) > SMALL:
        times = slowness(lambda piece: Int8(piece, None), _largest(layers), 16)
        if times > SLOWEST:
            raise ModelUnusable(
                f"{option}: on this processor, a product of 8 bits takes {times:.1f} times the time of one of float32",
                hint="remove the option; or use an instance with AVX512-VNNI or AMX (m5, c5 and later)",
            )
    del layers
    layout = Int8 if form == "int8" else Half
    count = 0
    for layer in linear_layers(model):
        if layer.shape[0] >= MIN_OUTPUTS:
            layer.replace([layout(*layer.joined())], None)
            count += 1
    return count


def check_speed(model: PreTrainedModel) -> None:
    """Raise ModelUnusable where products in a CPU model's own 16-bit precision are far slower than in float32."""
    layers = list(linear_layers(model))
    if model.device.type != "cpu" or model.dtype not in (torch.bfloat16, torch.float16):
        return
    if sum(math.prod(layer.shape) for layer in layers) <= SMALL:
        return
    dtype, packs = model.dtype, packable(model)

    def product(piece: Tensor) -> Callable[[Tensor], Tensor]:
        low = piece.to(dtype)
        layout = Packed(low, None) if packs else Plain([(low, None)])
        return lambda rows: layout(rows.to(dtype))

    times = slowness(product, _largest(layers), 16)
    if times > SLOWEST_16_BIT:
        name = str(dtype).removeprefix("torch.")
        raise ModelUnusable(
            f'model.toml: options.dtype = "{name}": on this processor, a product takes {times:.1f} times the time of'
            " one of float32",
            hint='set quantize = "float16" instead: weights in 16 bits, multiplied in float32; or remove the option',
        )


def _largest(layers: Sequence[LinearLayer]) -> Tensor:
    return max(layers, key=lambda layer: math.prod(layer.shape)).parts[0][0]


def fuse_activations(model: PreTrainedModel) -> None:
    """Replace GPT-2's GELU by one kernel: the original runs eight, one of them a slow power (136 us for one row)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))

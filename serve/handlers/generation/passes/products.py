"""The products of a pass: linear layers with what follows them in one kernel, and layers over one input as one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import activations

from serve.handlers.huggingface.layouts import Activation
from serve.handlers.huggingface.linear import Linear

_FUSED: dict[type[nn.Module], Activation] = {
    activations.NewGELUActivation: "gelu_tanh",
    activations.GELUTanh: "gelu_tanh",
    activations.GELUActivation: "gelu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    activations.SiLUActivation: "silu",
}
_APPLIED = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda hidden: functional.gelu(hidden, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


def fused(activation: nn.Module) -> Activation | None:
    """The name of an activation that a Product computes too; None if it computes no such activation."""
    if type(activation) is nn.GELU:
        return "gelu" if activation.approximate == "none" else "gelu_tanh"
    return _FUSED.get(type(activation))


class Product:
    """A linear layer of a model over [rows, in]."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._fuses = type(layer) is Linear

    def __call__(self, hidden: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        if self._fuses:
            fused_output: Tensor = self._layer.forward(hidden, activation, residual)
            return fused_output
        output: Tensor = self._layer(hidden)
        if activation != "none":
            output = _APPLIED[activation](output)
        return output if residual is None else output.add_(residual)


class Merged(nn.Module):
    """Linear layers over one input, as one product. Each of them remains a module of the model: a Part."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.bounds = [0]
        for layer in layers:
            self.bounds.append(self.bounds[-1] + layer.out_features)
        self.product: nn.Module = nn.Linear(layers[0].in_features, self.bounds[-1], device="meta")
        self.product.weight = _parameter([layer.weight for layer in layers])
        self.product.bias = None if layers[0].bias is None else _parameter([layer.bias for layer in layers])
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def part(self, number: int, hidden: Tensor) -> Tensor:
        """The output of one layer. The layers are called one after the other with the same input."""
        if self._input is not hidden:
            self._input, self._output = hidden, self.product(hidden)
        assert self._output is not None
        part = self._output[..., self.bounds[number] : self.bounds[number + 1]]
        if number + 2 == len(self.bounds):
            self._input = self._output = None
        return part


class Part(nn.Module):
    """A layer of a Merged."""

    def __init__(self, merged: Merged, number: int) -> None:
        super().__init__()
        self.merged, self.number = merged, number

    def forward(self, hidden: Tensor) -> Tensor:
        return self.merged.part(self.number, hidden)


def merge(parent: nn.Module, names: Sequence[str]) -> None:
    """Replace linear layers of a module, which are called with one input in this order, by the parts of a Merged."""
    layers = [getattr(parent, name) for name in names]
    if all(type(layer) is nn.Linear for layer in layers) and len({layer.bias is None for layer in layers}) == 1:
        merged = Merged(layers)
        for number, name in enumerate(names):
            setattr(parent, name, Part(merged, number))


class Joined:
    """The outputs of layers over one input side by side, [rows, out of all]."""

    def __init__(self, layers: Sequence[Any]) -> None:
        first = layers[0]
        whole = type(first) is Part and all(type(each) is Part and each.merged is first.merged for each in layers)
        self._products = [Product(first.merged.product)] if whole else [Product(layer) for layer in layers]

    def __call__(self, hidden: Tensor) -> Tensor:
        if len(self._products) == 1:
            return self._products[0](hidden)
        return torch.cat([product(hidden) for product in self._products], -1)


def _parameter(parts: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), requires_grad=False)

"""ONNX models in ONNX Runtime: `*.onnx`, and the files of its external weights.

Requests share a batch if the first dimensions of all inputs and outputs are open and the same. The option
`batch = false` disables batches, for models whose rows depend on one another.
"""

import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from serve.catalog.model_config import ModelConfig
from serve.catalog.recognition import chosen, onnx_files
from serve.errors import BadRequest, ModelUnusable, ServeError
from serve.failures import exhausted
from serve.formats.open_inference import Tensor
from serve.handlers.arrays import tensors
from serve.handlers.arrays.options import OnnxOptions
from serve.handlers.arrays.tensors import Input, Item
from serve.handlers.base import Reply, Request
from serve.http import media

TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": np.dtype(object),
    **{f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class Onnx:
    records = (media.CSV,)
    arrays = media.NPZ

    def __init__(self, model: ModelConfig[OnnxOptions]) -> None:
        # Since 1.29 ONNX Runtime reports each load to Microsoft, on a thread of its own (microsoft/onnxruntime#27379).
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime  # not at the top: it is an extra

        self._model = model
        path = chosen(onnx_files(model.directory), "model.onnx", model.options.file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, model.threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Waiting threads sleep: docs/decisions/0007-threads.md.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        there = onnxruntime.get_available_providers()
        providers = [each for each in ("CUDAExecutionProvider", "CPUExecutionProvider") if each in there]
        state = onnxruntime.capi.onnxruntime_pybind11_state
        self._wrong = (state.InvalidArgument, state.Fail, state.RuntimeException)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers)
        except MemoryError:
            raise
        except Exception as error:  # a class of its own for each fault of a file
            raise ModelUnusable(f"{path.name}: ONNX Runtime cannot load it: {str(error)[:400]}") from error
        self._inputs = [_input(each, path.name) for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]
        self._declared = [each for each in self._session.get_outputs() if each.type in TYPES]
        self._batches = model.options.batch and stackable(
            [each.shape for each in self._session.get_inputs()],
            # A sequence of maps, the output of scikit-learn's classifiers, has an entry per row and no shape.
            [each.shape for each in self._session.get_outputs() if each.type.startswith("tensor")],
        )

    def signature(self) -> tuple[list[Tensor], list[Tensor]]:
        outputs = [Tensor(each.name, TYPES[each.type], tensors.sizes(each.shape)) for each in self._declared]
        return [each.tensor() for each in self._inputs], outputs

    def decode(self, request: Request) -> Item:
        return tensors.decoded(request, self._inputs, self._model)

    def compatible(self, item: Item) -> Hashable:
        return item.key() if self._batches else item

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError]:
        try:
            found = self._session.run(self._outputs, tensors.stacked(items))
        except self._wrong as error:
            if exhausted(error):
                raise
            # Unequal shapes, or an index out of range: only the input differs between requests, so it is the cause.
            raise BadRequest(f"the model does not take this input: {str(error)[:400]}") from error
        return tensors.replies(items, dict(zip(self._outputs, found, strict=True)))


def stackable(inputs: Sequence[Sequence[Any]], outputs: Sequence[Sequence[Any]]) -> bool:
    """Whether the first dimension of all shapes is open and the same; an output's may have no name."""
    firsts = {shape[0] if shape else 0 for shape in inputs}
    if len(firsts) != 1 or isinstance(first := firsts.pop(), int):
        return False
    return all(len(shape) and shape[0] in (first, None) for shape in outputs)


def _input(declared: Any, file: str) -> Input:
    if declared.type not in TYPES:
        raise ModelUnusable(f"{file}: input {declared.name!r} has the unsupported type {declared.type}")
    shape = tuple(each if isinstance(each, int) else None for each in declared.shape)
    return Input(name=declared.name, dtype=TYPES[declared.type], shape=shape)

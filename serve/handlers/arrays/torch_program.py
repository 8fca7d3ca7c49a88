"""Programs of torch: `*.pt2` of torch.export.save, and TorchScript in `*.pt` or `*.pth`; no pickles.

An exported program declares its inputs; requests share a batch if the first dimension is open. TorchScript declares
neither types nor shapes: the option `dtype` sets the type (float32 by default), and `batch = true` enables batches.
"""

import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from serve.catalog.model_config import ModelConfig
from serve.catalog.recognition import chosen, torch_programs
from serve.errors import BadRequest, ModelUnusable, ServeError
from serve.failures import exhausted
from serve.formats.open_inference import Tensor
from serve.handlers.arrays import tensors, torch_archive
from serve.handlers.arrays.options import TorchOptions
from serve.handlers.arrays.tensors import Input, Item
from serve.handlers.base import Reply, Request
from serve.http import media

log = logging.getLogger(__name__)


class TorchProgram:
    records = (media.CSV,)
    arrays = media.NPZ

    def __init__(self, model: ModelConfig[TorchOptions]) -> None:
        torch.set_num_threads(max(1, model.threads))
        self._model = model
        files = torch_programs(model.directory)
        path = chosen(files, "model.pt2", model.options.file)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        load = _exported if path.suffix == ".pt2" else _scripted
        try:
            self._run, self._inputs, self._batches = load(str(path), model, self._device)
        except (ServeError, MemoryError, torch.OutOfMemoryError):
            raise
        except BaseException as error:
            raise ModelUnusable(f"{path.name}: torch cannot load it: {str(error)[:400]}") from error

    def signature(self) -> tuple[list[Tensor], list[Tensor]]:
        """The inputs. A program does not declare the names of its outputs."""
        return [each.tensor() for each in self._inputs], []

    def decode(self, request: Request) -> Item:
        return tensors.decoded(request, self._inputs, self._model)

    def compatible(self, item: Item) -> Hashable:
        return item.key() if self._batches else item

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError]:
        arrays = [torch.from_numpy(each).to(self._device) for each in tensors.stacked(items).values()]
        try:
            with torch.inference_mode():
                found = self._run(*arrays)
        except (RuntimeError, IndexError, AssertionError) as error:
            if exhausted(error):
                raise
            # Unequal shapes, or an index out of range: only the input differs between requests, so it is the cause.
            if len(items) == 1:
                log.warning("a request failed in the model", exc_info=error)
            last = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise BadRequest(f"the model does not take this input: {last[:300]}") from error
        return tensors.replies(items, _named(found), numbered=not isinstance(found, dict))


Loaded = tuple[Callable[..., Any], list[Input], bool]


def _exported(path: str, model: ModelConfig[TorchOptions], device: torch.device) -> Loaded:
    torch_archive.check(model.directory / path)
    program = torch.export.load(path)
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = []
    for name in program.graph_signature.user_inputs:
        value = nodes.get(str(name))
        if not isinstance(value, torch.Tensor):
            raise ModelUnusable(f"input {name!r} is not a tensor: all inputs of a program must be tensors")
        inputs.append(Input(name=str(name), dtype=_dtype(value.dtype), shape=tuple(map(_open, value.shape))))
    outputs = [nodes.get(str(name)) for name in program.graph_signature.user_outputs]
    firsts = {
        str(each.shape[0]) if isinstance(each, torch.Tensor) and each.ndim and _open(each.shape[0]) is None else ""
        for each in (*(nodes[each.name] for each in inputs), *outputs)
    }
    batches = model.options.batch is not False and len(firsts) == 1 and "" not in firsts
    module = program.module().to(device)
    return module, inputs, batches


def _scripted(path: str, model: ModelConfig[TorchOptions], device: torch.device) -> Loaded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is deprecated
        module = torch.jit.load(path, map_location=device).eval()
    dtype = np.dtype(model.options.dtype)
    arguments = module.forward.schema.arguments[1:]
    taken = [each for each in arguments if not each.has_default_value()]
    for each in taken:
        if str(each.type) != "Tensor":
            raise ModelUnusable(f"input {each.name!r} is a {each.type}: all inputs of a program must be tensors")
    inputs = [Input(name=each.name, dtype=dtype, shape=None) for each in taken]
    return module, inputs, model.options.batch is True


def _open(size: Any) -> int | None:
    return int(size) if isinstance(size, int) else None


def _dtype(dtype: torch.dtype) -> np.dtype[Any]:
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        raise ModelUnusable(f"an input has the type {dtype}, which numpy does not have") from None


def _named(found: Any) -> dict[str, Any]:
    if isinstance(found, torch.Tensor):
        return {"output": _array(found)}
    if isinstance(found, dict):
        return {str(name): _array(each) for name, each in found.items()}
    return {f"output_{number}": _array(each) for number, each in enumerate(found)}


def _array(tensor: torch.Tensor) -> Any:
    tensor = tensor.cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()

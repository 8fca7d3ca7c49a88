"""ONNX models and torch programs: input is checked and named, callers share a batch, nothing unsafe is loaded."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from serve.catalog.scan import describe
from serve.errors import BadRequest, ModelUnusable, NotAcceptable, UnsupportedMediaType
from serve.handlers.arrays import torch_archive
from serve.handlers.arrays.onnx import Onnx, stackable
from serve.handlers.arrays.torch_program import TorchProgram
from serve.handlers.base import Request
from tests.unit.configs import config_of

JSON, CSV, NPY, NPZ = "application/json", "text/csv", "application/x-npy", "application/x-npz"
Built = Onnx | TorchProgram
ROOT = Path(__file__).parents[2]


def onnx_model(directory: Path, *, first: Any = "batch", two: bool = False) -> None:
    """y = x + x for rows of 3; with `two`, y = x + z and n = z."""
    wide = [first, 3]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, wide)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, wide)]
    nodes = [helper.make_node("Add", ["x", "z" if two else "x"], ["y"])]
    if two:
        inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, wide))
        outputs.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, wide))
        nodes.append(helper.make_node("Identity", ["z"], ["n"]))
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    directory.mkdir(exist_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), directory / "model.onnx"
    )


class Double(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


class Pick(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor, index: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"picked": x[index], "half": x.bfloat16()}


def exported(directory: Path, *, open_batch: bool = True) -> Path:
    shapes = {"x": {0: torch.export.Dim("batch")}} if open_batch else None
    directory.mkdir(exist_ok=True)
    torch.export.save(
        torch.export.export(Double(), (torch.ones(2, 3),), dynamic_shapes=shapes), directory / "model.pt2"
    )
    return directory / "model.pt2"


def onnx_sum(directory: Path) -> None:
    """Of two inputs, whose lengths must be the same and may be any."""
    directory.mkdir()
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"n{name}"]) for name in "abc")
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "g", [a, b], [c])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), directory / "model.onnx")


def scripted(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    torch.jit.save(torch.jit.trace(Double(), torch.ones(2, 3)), str(directory / "model.pt"))


def built(directory: Path, **options: Any) -> Built:
    """By the handler that the directory's files choose."""
    (directory / "model.toml").write_text("")
    model = config_of(describe("m", directory).handler, directory, options)
    return Onnx(model) if model.handler == "onnx" else TorchProgram(model)


def item(handler: Built, body: bytes, content_type: str = JSON, accept: str = "") -> Any:
    return handler.decode(Request(body=body, content_type=content_type, accept=accept))


def answers(handler: Built, items: Sequence[Any]) -> list[Any]:
    return [reply.body for reply in handler.predict(items)]  # type: ignore[union-attr]


def packed(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


EVERY: list[Callable[[Path], Any]] = [onnx_model, exported, scripted]


@pytest.mark.parametrize("make", EVERY)
def test_one_input_is_read_from_every_format(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """And written in every one."""
    make(tmp_path)
    handler = built(tmp_path)
    for body, content_type in [
        (b"[[1, 2, 3.5]]", JSON),
        (b'{"inputs": [[1, 2, 3.5]], "model_type": "m"}', JSON),
        (b'{"inputs": {"x": [[1, 2, 3.5]]}}', JSON),
        (b'{"x": [[1, 2, 3.5]]}', ""),
        (b"1,2,3.5\n", CSV),
        (npy(np.array([[1, 2, 3.5]], np.float64)), NPY),
        (packed(x=np.array([[1, 2, 3.5]], np.float32)), NPZ),
    ]:
        assert answers(handler, [item(handler, body, content_type)]) == [b"[[2.0,4.0,7.0]]"]
    assert answers(handler, [item(handler, b"1,2,3.5", CSV, CSV)]) == [b"2.0,4.0,7.0\n"]
    back = np.load(io.BytesIO(answers(handler, [item(handler, b"1,2,3.5", CSV, NPY)])[0]))
    assert (back.dtype, back.tolist()) == (np.float32, [[2.0, 4.0, 7.0]])


@pytest.mark.parametrize("make", [onnx_model, exported])
@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b"[[1, 2]]", JSON, "input 'x' has shape (1, 2); the model takes (any, 3)"),
        (b"[1, 2, 3]", JSON, "input 'x' has shape (3); the model takes (any, 3)"),
        (b"[[1, 2, 3], [1]]", JSON, "input 'x' is not an array of float32"),
        (b'[["a", 2, 3]]', JSON, "input 'x' is not an array of float32"),
        (b'{"y": [[1, 2, 3]]}', JSON, "inputs given: y; the model has: x"),
        (b"{}", JSON, "inputs given: none; the model has: x"),
        (b"null", JSON, "input 'x' has shape (); the model takes (any, 3)"),
        (b"1,2,3\n4,x,6", CSV, "row 2, column 2: 'x' is not a number"),
        (npy(np.ones((1, 3), np.complex64)), NPY, "input 'x' is complex64; the model takes float32"),
        (packed(y=np.ones(3)), NPZ, "inputs given: y; the model has: x"),
        (b"PK", NPZ, "the body is not a .npz file"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_named(
    make: Callable[[Path], Any], tmp_path: Path, body: bytes, content_type: str, said: str
) -> None:
    """What came, and what the model takes; before it is run."""
    make(tmp_path)
    with pytest.raises(BadRequest) as refused:
        item(built(tmp_path), body, content_type)
    assert said in refused.value.message


def test_onnx_runtime_calls_nobody(tmp_path: Path) -> None:
    """Its telemetry, on by default, has a thread of its own; a model of one thread is a process of one."""
    onnx_model(tmp_path)
    code = (
        "import os, pathlib; from serve.catalog.scan import describe; from serve.handlers.arrays.onnx import Onnx;"
        f"Onnx(describe('m', pathlib.Path({str(tmp_path)!r}))); print(len(os.listdir('/proc/self/task')))"
    )
    environ = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("1\n", "")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    """415 in, 406 out."""
    onnx_model(tmp_path)
    handler = built(tmp_path)
    with pytest.raises(UnsupportedMediaType):
        item(handler, b"", "image/png")
    with pytest.raises(NotAcceptable):
        item(handler, b"[[1, 2, 3]]", JSON, "image/png")


def test_several_inputs_and_outputs_go_by_name(tmp_path: Path) -> None:
    """Whole numbers where a program indexes with them, and fractions not."""
    onnx_model(tmp_path / "onnx", two=True)
    handler = built(tmp_path / "onnx")
    two = json.dumps({"inputs": {"x": [[1, 2, 3]], "z": [[1, 1, 1]]}}).encode()
    assert answers(handler, [item(handler, two)]) == [b'{"y":[[2.0,3.0,4.0]],"n":[[1.0,1.0,1.0]]}']
    (refused,) = handler.predict([item(handler, two, JSON, CSV)])
    assert isinstance(refused, NotAcceptable)
    with pytest.raises(BadRequest, match="the model has 2 inputs: x, z"):
        item(handler, b"[[1, 2, 3]]")

    onnx_sum(tmp_path / "sum")
    handler = built(tmp_path / "sum")
    with pytest.raises(BadRequest, match=r"the model does not take this input: .* 2 by 3"):
        handler.predict([item(handler, b'{"a": [1, 2, 3], "b": [1, 2]}')])

    (tmp_path / "torch").mkdir()
    program = torch.export.export(Pick(), (torch.ones(4), torch.zeros(2, dtype=torch.int64)))
    torch.export.save(program, tmp_path / "torch" / "model.pt2")
    handler = built(tmp_path / "torch")
    body = b'{"x": [1, 2, 3, 4], "index": [%b, 0]}'
    assert answers(handler, [item(handler, body % b"3")]) == [b'{"picked":[4.0,1.0],"half":[1.0,2.0,3.0,4.0]}']
    with pytest.raises(BadRequest, match="input 'index' is not an array of int64: fractions"):
        item(handler, body % b"1.5")
    with pytest.raises(BadRequest, match="the model does not take this input: "):
        handler.predict([item(handler, body % b"9")])


@pytest.mark.parametrize("make", [onnx_model, exported])
def test_callers_share_a_batch_where_the_first_dimension_is_open(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """One run for all of one shape, and each gets its own rows; `batch = false` keeps them apart."""
    make(tmp_path)
    handler = built(tmp_path)
    bodies = [b"[[1, 1, 1]]", b"[[2, 2, 2], [3, 3, 3]]", b"[[4, 4, 4]]"]
    items = [item(handler, body) for body in bodies]
    assert len({handler.compatible(each) for each in items}) == 1
    assert answers(handler, items) == [b"[[2.0,2.0,2.0]]", b"[[4.0,4.0,4.0],[6.0,6.0,6.0]]", b"[[8.0,8.0,8.0]]"]
    apart = built(tmp_path, batch=False)
    assert len({apart.compatible(item(apart, body)) for body in bodies}) == 3


def test_a_first_dimension_that_is_fixed_or_unknown_is_no_batch(tmp_path: Path) -> None:
    """TorchScript says nothing of shapes: there `batch = true` does."""
    onnx_model(tmp_path / "onnx", first=2)
    exported(tmp_path / "torch", open_batch=False)
    scripted(tmp_path / "script")
    for name in ("onnx", "torch", "script"):
        handler = built(tmp_path / name)
        items = [item(handler, b"[[1, 1, 1], [2, 2, 2]]") for _ in range(2)]
        assert len({handler.compatible(each) for each in items}) == 2
        with pytest.raises(BadRequest, match="has shape") if name != "script" else pytest.raises(NotImplementedError):
            item(handler, b"[[1, 1, 1]]")
            raise NotImplementedError
    handler = built(tmp_path / "script", batch=True, dtype="int64")
    items = [item(handler, b"[[1, 1, 1]]") for _ in range(2)]
    assert len({handler.compatible(each) for each in items}) == 1
    assert answers(handler, items) == [b"[[2,2,2]]"] * 2


@pytest.mark.parametrize(
    ("inputs", "outputs", "stack"),
    [
        ([["n", 3]], [["n"]], True),
        ([["n", 3], ["n"]], [["n"], [None]], True),
        ([[None]], [[None]], True),
        ([["n"], ["m"]], [["n"]], False),
        ([["n"]], [[1]], False),
        ([["n"]], [[]], False),
        ([["n"], []], [["n"]], False),
        ([[1]], [[1]], False),
        ([], [], False),
    ],
)
def test_what_can_be_laid_one_upon_another(inputs: Any, outputs: Any, stack: bool) -> None:
    """Every first dimension open, and the same one."""
    assert stackable(inputs, outputs) is stack


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.onnx", b"no model", "model.onnx: ONNX Runtime cannot load it"),
        ("model.pt2", b"no model", "model.pt2: not a torch.export archive"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, content: bytes, said: str) -> None:
    """With what is wrong with it."""
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelUnusable, match=said):
        built(tmp_path)


def test_several_files_need_a_choice(tmp_path: Path) -> None:
    """By `file` of the options, unless one has the usual name."""
    onnx_model(tmp_path)
    (tmp_path / "model.onnx").rename(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"no model")
    with pytest.raises(ModelUnusable, match=r"several model files found: a.onnx, b.onnx; select one"):
        built(tmp_path)
    built(tmp_path, file="a.onnx")
    with pytest.raises(ModelUnusable, match=r"model file not found: 'c.onnx'"):
        built(tmp_path, file="c.onnx")


def test_a_pickle_is_no_program(tmp_path: Path) -> None:
    """torch.save's files end like TorchScript's; they are told apart by what is in them."""
    torch.save(torch.ones(1), tmp_path / "model.pt")
    with pytest.raises(ModelUnusable, match=r"model.pt: a pickle runs code"):
        built(tmp_path)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("its code has run",)


def _saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _with(path: Path, name: str, change: Callable[[str], str | bytes]) -> None:
    """The archive once more, one member changed, or added."""
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    changed = change(members.get(name, b"").decode(errors="replace"))
    members[name] = changed.encode() if isinstance(changed, str) else changed
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for each, content in members.items():
            archive.writestr(each, content)


ADD = "torch.ops.aten.add.Tensor"


@pytest.mark.parametrize(
    ("member", "change", "said"),
    [
        (
            "models/model.json",
            lambda text: text.replace("torch.ops.aten.add.Tensor", "torch.os.system"),
            "torch.os.sys",
        ),
        ("models/model.json", lambda text: text.replace("torch.ops.aten.add.Tensor", "torch.load"), "torch.load"),
        (
            "models/model.json",
            lambda text: text.replace("torch.ops.aten.add.Tensor", "_operator.call"),
            "_operator.call",
        ),
        ("models/model.json", lambda text: text.replace("Symbol('", "exec('"), "is not arithmetic"),
        ("models/model.json", lambda text: text.replace("Symbol('", "().__class__('"), "is not arithmetic"),
        (
            "data/constants/model_constants_config.json",
            lambda _: '{"config": {"a": {"path_name": "opaque_obj_0"}}}',
            "opaq",
        ),
        ("data/weights/model_weights_config.json", lambda _: '{"config": {"a": {"use_pickle": true}}}', "as a pickle"),
        ("data/weights/model.pt", lambda _: _saved(_Evil()), "does not write data/weights/model.pt"),
        ("data/aotinductor/model/a.so", lambda _: b"ELF", "does not write data/aotinductor/model/a.so"),
        ("data/sample_inputs/model.pt", lambda _: _saved(_Evil()), "not a torch.export archive"),
    ],
)
def test_an_exported_program_that_could_run_code_is_not_loaded(
    tmp_path: Path, member: str, change: Callable[[str], str | bytes], said: str
) -> None:
    """torch.export.load would: each of these is refused before it is asked to."""
    path = exported(tmp_path)
    torch_archive.check(path)
    _with(path, f"model/{member}", change)
    with pytest.raises(ModelUnusable) as refused:
        built(tmp_path)
    assert said in refused.value.message

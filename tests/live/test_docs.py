"""Every command in README and docs that needs no Docker, no AWS and no minutes works against a running server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import skops.io
import torch
import xgboost
from onnx import TensorProto, helper
from sklearn.linear_model import LinearRegression

from tests.live.conftest import Start
from tests.live.stack import ROOT, Server, wait_until
from tests.pages import Block, blocks
from tests.patience import PATIENCE
from tests.unit import tiny_encoders

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SERVE_", "SAGEMAKER_"))}
# curl exits 0 on an HTTP error; a command of the documentation must not get one.
PRELUDE = 'set -euo pipefail\ncurl() { command curl --silent --show-error --fail-with-body "$@"; }\n'
RUN = [block for block in blocks() if not block.not_run]
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
OWN_CODE = "def model_fn(model_dir):\n    return {}\n\ndef predict_fn(words, model):\n    return words\n"


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    """The sample models, and a small model for each handler, under the names that the pages use."""
    models = shared_models
    made = ["--only", "gpt2", "bart", "abalone-1", "abalone-2"]
    subprocess.run([sys.executable, "-m", "local_test.make_models", str(models), *made], cwd=ROOT, check=True)
    # SmolLM2 has 270 MB and comes from the network; the commands do not depend on what it writes.
    shutil.copytree(models / "gpt2", models / "smollm2")
    _edit(models / "smollm2" / "tokenizer_config.json", chat_template=CHAT)
    rows = np.random.default_rng(0).random((50, 3), np.float32)
    booster = xgboost.train({"nthread": 1, "verbosity": 0}, xgboost.DMatrix(rows, rows.sum(1), nthread=1), 3)
    (models / "house-prices").mkdir()
    booster.save_model(models / "house-prices" / "model.ubj")
    tiny_encoders.classifier(models / "reviews")
    tiny_encoders.tagger(models / "names")
    tiny_encoders.answerer(models / "answers")
    tiny_encoders.masked(models / "masks")
    tiny_encoders.inference(models / "topics")
    (models / "topics" / "model.toml").write_text('task = "zero-shot-classification"\n')
    tiny_encoders.sentences(models / "vectors")
    for name in ("line", "graph", "program"):
        (models / name).mkdir()
    skops.io.dump(LinearRegression().fit(np.eye(2), [1.0, 2.0]), models / "line" / "model.skops")
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", 1]) for each in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), models / "graph" / "model.onnx")
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(torch.nn.Linear(1, 1), (torch.ones(2, 1),), dynamic_shapes=shapes)
    torch.export.save(program, models / "program" / "model.pt2")
    (models / "mine" / "code").mkdir(parents=True)
    (models / "mine" / "code" / "inference.py").write_text(OWN_CODE)
    return start_shared(models)


@pytest.fixture(scope="module")
def workspace(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a reader has it, writable, with the sample models where `make run` puts them."""
    directory = tmp_path_factory.mktemp("repository")
    for each in ROOT.iterdir():
        if each.name != "local_test" and not each.name.startswith("."):
            (directory / each.name).symlink_to(each)
    (directory / "local_test").mkdir()
    for each in (ROOT / "local_test").iterdir():
        if each.name != "models":
            (directory / "local_test" / each.name).symlink_to(each)
    (directory / "local_test" / "models").symlink_to(server.models)
    return directory


@pytest.mark.parametrize("block", [each for each in RUN if each.language == "sh"], ids=str)
def test_a_command_works(server: Server, workspace: Path, block: Block) -> None:
    """As it is written, but for the port. Blocks of one page are run in order and may build on one another."""
    environ = {
        **CLEAN,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "URL": f"http://localhost:{server.port}",
    }
    command = ["bash", "-c", PRELUDE + _on_port(block, server)]
    done = subprocess.run(command, cwd=workspace, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    if block.fails:
        assert done.returncode != 0
        assert json.loads(done.stdout)["code"] == block.fails
    else:
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("block", [each for each in RUN if each.language == "python"], ids=str)
def test_a_python_example_works(
    server: Server, workspace: Path, block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It raises nothing, and prints something unless it writes a file."""
    monkeypatch.chdir(workspace)
    exec(compile(_on_port(block, server), str(block), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out or "my/models" in block.text


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The emulator's command; what it says to export."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "local_test.platform", "--port", "0", "--runtime", "process", "--json"]
    command += ["--state", str(tmp_path / "state")]
    with out.open("w") as stdout:
        running = subprocess.Popen(command, cwd=ROOT, env=CLEAN, stdout=stdout)
    try:
        wait_until(lambda: "\n" in out.read_text() or running.poll() is not None)
        yield json.loads(out.read_text().splitlines()[0])
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(PATIENCE)


@pytest.mark.parametrize("block", [each for each in RUN if each.language == "console"], ids=str)
def test_a_session_with_the_emulator_prints_what_the_page_shows(
    workspace: Path, emulator: dict[str, str], block: Block
) -> None:
    """Hashes, times and dates aside; `...` stands for any lines."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shown, printed = [], []
    for step in f"\n{block.text}".split("\n$ ")[1:]:
        command, *output = step.split("\n")
        shown.append((command, _pattern(output)))
        if command.startswith("export "):
            assert {each.split("=")[0] for each in command.split()[1:]} == {
                name for name in emulator if name.startswith("AWS_")
            }
            command = "true"
        environ = {**CLEAN, **emulator, "PATH": path}
        done = subprocess.run(
            ["bash", "-c", f"{{ {command}; }} 2>&1"],
            cwd=workspace,
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
        printed.append(done.stdout)
    for (command, pattern), text in zip(shown, printed, strict=True):
        assert re.fullmatch(pattern, text), f"{command}\n{text}"


def _pattern(lines: list[str]) -> str:
    pattern = "".join("(.*\n)*" if line == "..." else re.escape(line) + "\n" for line in lines)
    pattern = re.sub(r"(?<=\\-)[0-9a-f]{8}\b", "[0-9a-f]{8}", pattern)
    pattern = re.sub(r"\d+\\-\d+\\-\d+\\ \d+:\d+", r"[\\d-]+ [\\d:]+", pattern)
    return re.sub(r"\d+\\ ms", r"\\d+ ms", pattern)


def _on_port(block: Block, server: Server) -> str:
    return block.text.replace("localhost:8080", f"localhost:{server.port}")


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

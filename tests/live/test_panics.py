"""Own code may raise any class, and a library in Rust may panic: the caller at fault gets an error, others none."""

import json
import time
from pathlib import Path

import pytest
import xgboost

from tests.live import tiny
from tests.live.conftest import Start
from tests.live.platform_side import load
from tests.live.stack import Server, wait_until

# Raises what the request names, in the function that it names; answers with its process id.
RAISES = """
import _thread, os, threading, tokenizers

class Own(BaseException): pass
class Unprintable(Exception):
    def __str__(self): raise SystemExit(3)
class HalfPair(Exception):
    def __str__(self): return "half \\ud800"

def panic():
    decoder = tokenizers.decoders.Strip("x", 0, 5)
    decoder.decode(["xx"])

def fail(kind):
    if kind == "panic": panic()
    if kind == "exit": raise SystemExit("bye")
    if kind == "interrupt": raise KeyboardInterrupt
    if kind == "interrupt_main": _thread.interrupt_main(); return
    if kind == "generator": raise GeneratorExit("closed")
    if kind == "own": raise Own("mine")
    if kind == "unprintable": raise Unprintable
    if kind == "half": raise HalfPair
    if kind == "thread":
        thread = threading.Thread(target=fail, args=("panic",)); thread.start(); thread.join()

def input_fn(body, content_type):
    import json
    data = json.loads(body)
    if data["in"] == "input": fail(data["kind"])
    return data

def predict_fn(data, model):
    if data["in"] == "predict": fail(data["kind"])
    return data

def output_fn(data, accept):
    if data["in"] == "output": fail(data["kind"])
    if data["in"] == "stream":
        def chunks():
            yield "begun"
            fail(data["kind"])
        return chunks()
    return str(os.getpid())
"""

LOADS = {
    "exits": ("import sys\nsys.exit(3)", "code/inference.py cannot be imported: SystemExit: 3"),
    "interrupted": (
        "def model_fn(model_dir): raise KeyboardInterrupt\ndef predict_fn(data, model): return 1",
        "inference.py model_fn raised KeyboardInterrupt",
    ),
    "panics": (
        (
            "import tokenizers\ndef model_fn(model_dir): tokenizers.decoders.Strip('x', 0, 5).decode(['xx'])\n"
            "def predict_fn(data, model): return 1"
        ),
        "inference.py model_fn raised tokenizers panicked: index out of bounds",
    ),
}


def own(models: Path, name: str, code: str) -> None:
    directory = models / name / "code"
    directory.mkdir(parents=True)
    (directory / "inference.py").write_text(code)


def lost_branch(directory: Path) -> None:
    """An XGBoost model whose last split leads beyond the nodes; most rows do not come there."""
    tiny.xgboost_model(directory)
    (file,) = directory.iterdir()
    booster = xgboost.Booster(model_file=file)
    model = json.loads(booster.save_raw("json"))
    tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
    last = max(node for node, child in enumerate(tree["left_children"]) if child != -1)
    tree["left_children"][last] = tree["right_children"][last] = 100_000_000
    file.unlink()
    (directory / "model.json").write_text(json.dumps(model))


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    own(shared_models, "raises", RAISES)
    for name, (code, _) in LOADS.items():
        own(shared_models, name, code)
    lost_branch(shared_models / "lost-branch")
    return start_shared(shared_models)


@pytest.mark.parametrize("place", ["input", "predict", "output"])
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("panic", "tokenizers panicked: index out of bounds"),
        ("exit", "SystemExit: bye"),
        ("interrupt", "KeyboardInterrupt"),
        ("generator", "GeneratorExit: closed"),
        ("own", "Own: mine"),
        ("unprintable", "Unprintable: (its message cannot be read: SystemExit)"),
        ("half", "HalfPair: half \\ud800"),
    ],
)
def test_what_own_code_raises_is_told_to_its_caller_alone(server: Server, kind: str, says: str, place: str) -> None:
    """Whatever its class. The process serves on; the log has the trace."""
    before = server.invoke("raises", {"in": "", "kind": ""}).body
    failed = server.invoke("raises", {"in": place, "kind": kind})
    assert failed.status == 500
    assert f"inference.py {place}_fn raised {says}" in failed.json["message"]
    assert server.invoke("raises", {"in": "", "kind": ""}).body == before
    assert server.model("raises")["deaths"] == 0
    events = wait_until(lambda: server.events(f"{place}_fn failed"))
    assert all("line" in each["traceback"] for each in events)


@pytest.mark.parametrize("kind", ["panic", "exit", "interrupt", "generator", "own", "unprintable"])
def test_a_stream_that_raises_ends_broken(server: Server, kind: str) -> None:
    """Its head has been sent: the end of the connection, without the last chunk, is all that is left."""
    before = server.invoke("raises", {"in": "", "kind": ""}).body
    body = json.dumps({"in": "stream", "kind": kind}).encode()
    head = b"POST /models/raises/invoke HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer = server.raw(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert b" 200 " in answer.split(b"\r\n")[0]
    assert b"begun" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert server.invoke("raises", {"in": "", "kind": ""}).body == before


@pytest.mark.parametrize("kind", ["interrupt_main", "thread"])
def test_threads_of_own_code_do_not_end_its_process(server: Server, kind: str) -> None:
    """Neither by the signal of Ctrl-C, which Python raises in the main thread, nor by a panic."""
    before = server.invoke("raises", {"in": "", "kind": ""}).body
    assert server.invoke("raises", {"in": "predict", "kind": kind}).body == before
    assert server.invoke("raises", {"in": "", "kind": ""}).body == before


@pytest.mark.parametrize("name", list(LOADS))
def test_a_load_that_raises_names_the_function(server: Server, name: str) -> None:
    """424, as for any other fault of the files, and a pause."""
    answer = server.invoke(name, {})
    assert (answer.status, answer.json["model"]) == (424, name)
    assert LOADS[name][1] in answer.json["message"]
    assert server.model(name)["state"] == "failed"


def test_a_file_that_crashes_its_library_fails_at_the_load(server: Server) -> None:
    """A branch that leads nowhere would end the process under the caller whose row takes it."""
    answer = server.invoke("lost-branch", "1,2", "text/csv")
    assert answer.status == 500
    assert "exited during the load: killed by SIG" in answer.json["message"]
    shown = server.model("lost-branch")
    assert (shown["state"], shown["deaths"]) == ("failed", 0)


def test_exit_handlers_and_threads_do_not_hold_a_model_back(start: Start, models: Path) -> None:
    """In an interpreter of its own, for the packages of its model, as in a fork: its unload takes no time."""
    own(
        models,
        "clings",
        "import atexit, threading, time\nimport helper\n"
        "atexit.register(time.sleep, 3600)\nthreading.Thread(target=time.sleep, args=(3600,)).start()\n"
        "def predict_fn(data, model): return helper.NAME",
    )
    (models / "clings" / "code" / "lib").mkdir()
    (models / "clings" / "code" / "lib" / "helper.py").write_text("NAME = 'helped'")
    server = start(models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models)
    assert load(server, "clings", models / "clings").status == 200
    assert server.request("POST", "/models/clings/invoke", "{}", {"Content-Type": "application/json"}).json == "helped"
    began = time.monotonic()
    assert server.request("DELETE", "/models/clings").status == 200
    assert time.monotonic() - began < 30  # requests in flight would be given 60 s, then the process is killed

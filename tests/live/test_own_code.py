"""Models with their own code run side by side: each has its own modules and its own versions of packages."""

import http.client
import json
import zipfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.live import tiny
from tests.live.conftest import Start
from tests.live.stack import Server, wait_until
from tests.patience import PATIENCE

PROGRAM = "inference.py"
STREAM = """
def predict_fn(data, model):
    for each in data: yield each
def output_fn(prediction, accept): return (each.upper() for each in prediction)
"""

# What the forkserver hides from the frameworks, and what transformers takes from scipy.
IMPORTS = """
import pandas, pyarrow, scipy.optimize, sklearn.linear_model, xgboost
from transformers.loss import loss_for_object_detection
def predict_fn(data, model):
    fitted = xgboost.XGBRegressor(n_estimators=1).fit(pandas.DataFrame({"a": [1, 2]}), [1, 2])
    return [scipy.optimize.linear_sum_assignment([[0, 1], [1, 0]])[1].tolist(), len(fitted.predict([[1]])),
            callable(loss_for_object_detection.linear_sum_assignment)]
"""

CUSTOM = "X-Amzn-SageMaker-Custom-Attributes"
ANSWERS = """
def predict_fn(data, model, context):
    context.set_response_status(data["status"], data.get("phrase", ""))
    for name, value in data.get("headers", {}).items(): context.set_response_header(0, name, value)
    return data["status"]
"""


def own(models: Path, name: str, files: Mapping[str, str]) -> None:
    """A model of these files in code/."""
    for file, text in files.items():
        path = models / name / "code" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def wheel(models: Path, model: str, name: str, version: str, requires: str = "") -> None:
    """A package whose module has its version, as a wheel beside a model's requirements."""
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    directory = models / model / "code" / "wheels"
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    models = shared_models
    for name in ("ada", "bob"):
        code = "import helper\ndef predict_fn(data, model): print('printed by', helper.NAME); return helper.NAME"
        own(models, name, {PROGRAM: code, "helper.py": f"NAME = {name!r}"})
    for version in ("1.0", "2.0"):
        name = f"needs-{version[0]}"
        code = "import tinyapp, tinybase\ndef predict_fn(data, model): return [tinyapp.VERSION, tinybase.VERSION]"
        own(models, name, {PROGRAM: code, "requirements.txt": f"tinyapp=={version}\nnumpy\n"})
        wheel(models, name, "tinyapp", version, f"tinybase>={version}")
        wheel(models, name, "tinybase", f"{version}.1")
    own(models, "lacks", {PROGRAM: "import absent", "requirements.txt": "tinyapp==9\n"})
    tiny.xgboost_model(models / "trees")
    code = "import xgboost\ndef predict_fn(data, model): return xgboost.MINE"
    own(models, "vendors", {PROGRAM: code, "lib/xgboost/__init__.py": "MINE = 'vendored'"})
    own(models, "imports", {PROGRAM: IMPORTS})
    own(models, "streams", {PROGRAM: STREAM})
    own(models, "threads", {PROGRAM: "import os\ndef predict_fn(data, model): return os.environ['OMP_NUM_THREADS']"})
    (models / "threads" / "model.toml").write_text("threads = 3\n")
    transform = "def transform_fn(model, body, content_type, accept):\n    yield 'a'\n    yield body"
    own(models, "transforms", {PROGRAM: transform})
    own(models, "answers", {PROGRAM: ANSWERS})
    # PIP_NO_INDEX: what is not beside the requirements is looked for nowhere.
    return start_shared(models, SERVE_ALLOW_PIP="true", PIP_NO_INDEX="1")


def test_modules_of_the_same_name_are_each_models_own(server: Server) -> None:
    """In alternation, so that neither finds the other's imports."""
    assert [server.invoke(name, "0").json for name in ("ada", "bob", "ada")] == ["ada", "bob", "ada"]


def test_printed_text_is_in_the_log(server: Server) -> None:
    """At once, not when the process ends."""
    server.invoke("bob", "0")
    wait_until(lambda: any("printed by bob" in each["text"] for each in server.events("output")))


def test_two_models_have_two_versions_of_one_package(server: Server) -> None:
    """They are installed from the wheels beside the models, with dependencies; again only after a change."""
    answers = {name: server.invoke(name, "0").json for name in ("needs-1", "needs-2")}
    assert answers == {"needs-1": ["1.0", "1.0.1"], "needs-2": ["2.0", "2.0.1"]}
    installed = {event["model"]: sorted(event["packages"]) for event in server.events("installed packages")}
    assert installed == {
        "needs-1": ["tinyapp==1.0", "tinybase==1.0.1"],
        "needs-2": ["tinyapp==2.0", "tinybase==2.0.1"],
    }
    assert not list(server.models.rglob("*.dist-info"))


def test_a_failed_installation_states_its_cause(server: Server) -> None:
    """With pip's last line."""
    refused = server.invoke("lacks", "0")
    assert refused.status == 424
    assert refused.json["message"] == (
        "code/requirements.txt cannot be installed: No matching distribution found for tinyapp==9"
    )


def test_a_vendored_package_hides_one_that_the_server_has_in_memory(server: Server) -> None:
    """Even one that the forkserver has imported."""
    assert server.invoke("trees", "1,2,3,4", "text/csv").status == 200
    assert server.invoke("vendors", "0").json == "vendored"


def test_code_may_import_what_the_handlers_do_without(server: Server) -> None:
    """Packages that the forkserver hides from the frameworks, to be smaller, are hidden from no model's code."""
    assert server.invoke("imports", "0").json == [[0, 1], 1, True]


def test_imported_libraries_use_the_threads_of_the_model(server: Server) -> None:
    """OpenMP reads the number when torch or another library is imported, which may be in model_fn."""
    assert server.invoke("threads", "0").json == "3"


def test_generators_stream_from_every_function(server: Server) -> None:
    """Chunk by chunk, without a length."""
    for name, body, chunks in (("streams", '["b", "c"]', b"BC"), ("transforms", "[1]", b"a[1]")):
        answer = server.invoke(name, body)
        assert (answer.body, answer.headers["transfer-encoding"]) == (chunks, "chunked")


@pytest.mark.peer("inference-toolkit")
def test_each_status_of_the_code_reaches_the_client(server: Server) -> None:
    """Every final status from 200 to 599, nginx's own jumps among them, with the body and the headers of the code."""
    server.invoke("answers", {"status": 200})
    wrong = []
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)) as connection:
        for status in range(200, 600):
            body = json.dumps({"status": status, "phrase": "told so", "headers": {"X-Mine": str(status)}})
            connection.request("POST", "/models/answers/invoke", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = "" if status in (204, 205, 304) else str(status)
            found = (answer.status, answer.reason, answer.headers["X-Mine"], answer.read().decode())
            if found != (status, "told so", str(status), text):
                wrong.append(found)
    assert wrong == []


def test_headers_of_the_code_reach_the_client_and_orders_to_nginx_do_not(server: Server) -> None:
    """Those of sessions do; a header that would direct nginx, or end the head, is a 500."""
    headers = {
        "X-Amzn-SageMaker-New-Session-Id": "a1; Expires=2026-11-28T12:00:00Z",
        CUSTOM: "mine",
        "Cache-Control": "no-store",
        "Content-Type": "text/x-mine",
    }
    answer = server.invoke("answers", {"status": 200, "headers": headers}, **{CUSTOM: "the caller's"})
    assert answer.headers.items() >= {name.lower(): value for name, value in headers.items()}.items()
    for name, value in (("X-Accel-Redirect", "/models"), ("Transfer-Encoding", "chunked"), ("X-A", "b\r\nX-C: d")):
        refused = server.invoke("answers", {"status": 200, "headers": {name: value}})
        assert (refused.status, "x-c" in refused.headers) == (500, False)
        assert f"header {name}" in refused.json["message"]


def test_a_model_that_the_body_names_has_its_status_too(server: Server) -> None:
    """Through a web worker, those included by which nginx tells its own failures."""
    for status in (200, 204, 404, 418, 419, 424, 500, 502, 503, 504, 507):
        body = {"model_type": "answers", "status": status, "headers": {"X-Mine": str(status)}}
        answer = server.invoke(None, body)
        text = b"" if status == 204 else str(status).encode()
        assert (answer.status, answer.headers["x-mine"], answer.body) == (status, str(status), text)


@pytest.mark.peer("batch-transform", differs="a body of lines is one answer, whose status and headers are one")
def test_the_status_of_one_line_is_that_of_the_body(server: Server) -> None:
    """A record whose code sets 400 or above fails the body of lines with this status, and the line is named."""
    lines = b'{"status": 201}\n{"status": 422}\n{"status": 200}\n'
    failed = server.invoke("answers", lines, "application/jsonlines")
    assert (failed.status, failed.json["message"]) == (422, "line 2: 422")
    kept = server.invoke("answers", b'{"status": 201, "headers": {"X-A": "b"}}\n' * 2, "application/jsonlines")
    assert (kept.status, kept.body, "x-a" in kept.headers) == (200, b"201\n201\n", False)

"""The emulator's page: which requests are for it, its files, and its state from answers of the API."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError
from werkzeug.test import Client, create_environ

from local_test.platform.page import state
from local_test.platform.page.app import STATIC, Page

VENDOR = STATIC / "vendor"
HTML = {"HTTP_ACCEPT": "text/html,*/*"}


def environ(path: str, host: str = "127.0.0.1:4566", method: str = "GET", **more: str) -> dict[str, Any]:
    made: dict[str, Any] = create_environ(path, f"http://{host}", method=method)
    return {**made, **more}


def taken(*arguments: str, html: bool = False, signed: bool = False) -> bool:
    return Page.takes(environ(*arguments, **(HTML if html else {})), signed=signed)


def test_a_browser_gets_the_page_and_a_client_of_s3_its_buckets() -> None:
    """`GET /` is ListBuckets, unless it is unsigned and asks for HTML. A bucket's host name is in front of the rest."""
    assert taken("/", html=True)
    assert taken("/", "localhost:4566", html=True)
    assert taken("/", "[::1]:4566", html=True)
    assert taken("/_platform/main.js")
    assert not taken("/")
    assert not taken("/", signed=True, html=True)
    assert not taken("/bucket/key", html=True)
    assert not taken("/", "bucket.localhost:4566", html=True)
    assert not taken("/_platform/api/state", "other.example", html=True)
    assert not taken("/_platform/main.js", "127.0.0.1:4566", "POST")


def no_page() -> Page:
    def client(*_: object, **__: object) -> object:
        raise AssertionError("a file needs no client")

    return Page(client, lambda _: [], list, lambda: 0)


@pytest.mark.parametrize("name", sorted(str(each.relative_to(STATIC)) for each in STATIC.rglob("*") if each.is_file()))
def test_each_file_is_served_with_a_strict_policy(name: str) -> None:
    """Scripts and styles only from the platform itself, none of them in line."""
    answer = Client(no_page()).get(f"/_platform/{name}")

    assert answer.status_code == 200
    assert answer.data == (STATIC / name).read_bytes()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", ["nothing.js", "../app.py", "vendor", "%2e%2e/app.py", "/etc/passwd"])
def test_nothing_but_its_files_is_served(name: str) -> None:
    assert Client(no_page()).get(f"/_platform/{name}").status_code == 404


def test_the_libraries_are_those_of_their_packages() -> None:
    """packages.json has the version and integrity of each package, and a digest of each file that is kept of it."""
    packages = json.loads((VENDOR / "packages.json").read_text())
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-")
        files = {path.name: path.read_bytes() for path in (VENDOR / name).iterdir()}
        digests = {
            file: f"sha256-{base64.b64encode(hashlib.sha256(data).digest()).decode()}" for file, data in files.items()
        }
        assert digests == package["files"], name
        assert "LICENSE" in files
    assert {path.name for path in VENDOR.iterdir() if path.is_dir()} == packages.keys()


def test_the_page_loads_nothing_from_elsewhere() -> None:
    own = [path for path in STATIC.rglob("*") if path.is_file() and VENDOR not in path.parents]
    assert not [path.name for path in own if "https://" in path.read_text()]


class Refusing:
    """A client of a service whose every request is refused; counted."""

    requests = 0

    def __getattr__(self, operation: str) -> Any:
        def refuse(**_: object) -> None:
            self.requests += 1
            raise ClientError({"Error": {"Code": "ValidationException", "Message": "not supported"}}, operation)

        return refuse


def test_the_platform_is_asked_again_only_after_a_change() -> None:
    """What it refuses is empty. Each thing that a browser shows has a state of its own."""
    client, versions = Refusing(), [1]
    page = Client(Page(lambda *_, **__: client, lambda _: [], list, lambda: versions[-1]))
    first = page.get("/_platform/api/state?show=")
    asked = client.requests
    again = page.get("/_platform/api/state?show=", headers={"If-None-Match": first.headers["ETag"]})

    assert first.json == {"endpoints": [], "jobs": [], "pipelines": [], "events": [], "show": "", "shown": None}
    assert (again.status_code, client.requests) == (304, asked)
    page.get("/_platform/api/state?show=endpoint/e")
    assert client.requests > asked
    asked = client.requests
    versions.append(2)
    page.get("/_platform/api/state?show=")
    assert client.requests > asked


PIPELINE = {
    "Steps": [
        {"Name": "Process", "Type": "Processing", "Arguments": {}},
        {
            "Name": "Train",
            "Type": "Training",
            "DisplayName": "Train the model",
            "Arguments": {"InputDataConfig": [{"S3Uri": {"Get": "Steps.Process.ProcessingOutputConfig.Outputs['a']"}}]},
        },
        {
            "Name": "Good",
            "Type": "Condition",
            "DependsOn": ["Process"],
            "Arguments": {
                "Conditions": [
                    {"LeftValue": {"Std:JsonGet": {"PropertyFile": {"Get": "Steps.Train.PropertyFiles.f"}}}}
                ],
                "IfSteps": [
                    {
                        "Name": "Register",
                        "Type": "RegisterModel",
                        "Arguments": {"Url": {"Get": "Steps.Train.Artifact"}},
                    },
                    {"Name": "Transform", "Type": "Transform", "Arguments": {"Model": {"Get": "Steps.Register.Arn"}}},
                ],
                "ElseSteps": [{"Name": "Stop", "Type": "Fail", "Arguments": {"ErrorMessage": "worse"}}],
            },
        },
    ]
}


def test_the_graph_has_an_edge_for_each_dependency() -> None:
    """DependsOn, properties of other steps, and the branches of conditions, of which each first step has one."""
    graph = state.graph(PIPELINE)

    assert [each["name"] for each in graph["nodes"]] == ["Process", "Train", "Good", "Register", "Transform", "Stop"]
    assert (graph["nodes"][1]["title"], graph["nodes"][1]["type"]) == ("Train the model", "Training")
    assert {(each["from"], each["to"], each["label"]) for each in graph["edges"]} == {
        ("Process", "Train", ""),
        ("Process", "Good", ""),
        ("Train", "Good", ""),
        ("Train", "Register", ""),
        ("Good", "Register", "true"),
        ("Register", "Transform", ""),
        ("Good", "Stop", "false"),
    }
    (condition,) = [each["step"] for each in graph["nodes"] if each["name"] == "Good"]
    assert list(condition["Arguments"]) == ["Conditions"]


def test_metrics_come_from_the_log_by_their_definitions() -> None:
    """Each line that matches has a value. What is no number, or no regular expression, is left out."""
    definitions = [
        {"Name": "train:rmse", "Regex": r"train-rmse:([0-9.]+)"},
        {"Name": "loss", "Regex": r"loss=(\S+)"},
        {"Name": "bad", "Regex": r"("},
        {"Name": "none", "Regex": r"none=(\d)"},
    ]
    lines = ["[0] train-rmse:2.5 loss=nan", "[1] train-rmse:1.25 loss=inf", "loss=0.5", "loss=0.25", "the end"]

    curves = state.curves(definitions, [{"message": line} for line in lines])

    assert curves == {"train:rmse": [2.5, 1.25], "loss": [0.5, 0.25]}


def test_a_state_changes_while_something_is_in_progress() -> None:
    """Anywhere in it, but not by a word in another place."""
    assert state.changing({"endpoints": [{"status": "Creating"}]})
    assert state.changing({"shown": {"steps": [{"StepStatus": "Executing"}]}})
    assert not state.changing({"endpoints": [{"status": "InService", "name": "Creating"}]})


def test_times_are_numbers_in_json() -> None:
    assert state.as_json({"at": datetime(1970, 1, 2, tzinfo=UTC)}) == b'{"at":86400.0}'

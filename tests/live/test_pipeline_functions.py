"""The function of the pipelines' Lambda steps, and the runtime that runs it here."""

import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.aws import Aws
from deploy.errors import Failed
from deploy.pipelines import installation, lambda_function
from deploy.status import described
from local_test.pipelines import function
from local_test.pipelines.function import Function, FunctionFailed, Running
from local_test.pipelines.runner import LocalAws
from local_test.recipes import abalone
from tests.live.pipelines_side import BUCKET, HANDLERS, account, invoked, prepared, rows, zipped
from tests.live.stack import wait_until


@pytest.fixture(scope="module")
def here() -> Iterator[LocalAws]:
    with account() as played:
        yield played


def called(work: Path, name: str, seconds: int = 300, running: Running | None = None) -> Any:
    made = Function(
        code=zipped(HANDLERS),
        handler=f"handlers.{name}",
        environment={},
        seconds=seconds,
        work=work,
        running=running or Running(),
    )
    return made.call({"what": "bucket"})


def test_a_function_that_raises_fails_its_step_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(FunctionFailed, match="Lambda: ValueError: no bucket"):
        called(tmp_path, "fail")


def test_a_handler_that_is_missing_is_the_functions_error(tmp_path: Path) -> None:
    """Lambda's emulator answers 400 without a body; the reason is in the runtime's log."""
    with pytest.raises(FunctionFailed, match=r"Lambda: \S+: .*none"):
        called(tmp_path, "none")


def test_a_function_is_stopped_at_its_limit(tmp_path: Path) -> None:
    with pytest.raises(FunctionFailed, match=r"Task timed out after 2\.00 seconds"):
        called(tmp_path, "sleep", seconds=2)


@pytest.mark.parametrize("emulated", [False, True])
def test_a_stop_ends_a_running_function(tmp_path: Path, emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not emulated:
        monkeypatch.setattr(function, "is_emulated", lambda: False)
    elif not function.is_emulated():
        pytest.skip("AWS's emulator of Lambda's runtime is not here: make lambda")
    running = Running()

    def stop() -> None:
        wait_until(lambda: list(tmp_path.glob("*/code/begun")))
        running.stop()

    with ThreadPoolExecutor() as threads:
        stopped = threads.submit(stop)
        with pytest.raises(FunctionFailed):
            called(tmp_path, "sleep", seconds=3600, running=running)
        stopped.result()


def test_an_emulator_that_exits_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "EMULATOR", Path("/bin/false"))
    with pytest.raises(FunctionFailed, match="Lambda's emulator has exited"):
        called(tmp_path, "left")


@pytest.mark.skipif(not function.is_emulated(), reason="AWS's emulator of Lambda's runtime is not here: make lambda")
def test_a_function_runs_in_awss_own_emulator(tmp_path: Path) -> None:
    """With a real context, which has the remaining time."""
    assert 0 < called(tmp_path, "left", seconds=300) <= 300_000


def deploying(artifacts: dict[str, str], prefix: str, endpoint: str, image: str = "localhost/serve") -> dict[str, Any]:
    """The event of a step that deploys."""
    return {
        "action": "deploy",
        "artifacts": artifacts,
        "prefix": f"s3://{BUCKET}/{prefix}",
        "endpoint": endpoint,
        "image": image,
        "role": "arn:aws:iam::123456789012:role/pipelines",
        "instance_type": "ml.m5.large",
    }


def test_the_function_reports_missing_keys_of_the_event_and_missing_artifacts(here: LocalAws, tmp_path: Path) -> None:
    made = Function(
        code=installation.zipped(),
        handler=installation.HANDLER,
        environment=here.environment,
        seconds=300,
        work=tmp_path,
        running=Running(),
    )
    prepared(here)
    event = deploying({"one": f"s3://{BUCKET}/nowhere/model.tar.gz"}, "models/", "lacking")
    with pytest.raises(FunctionFailed, match=r"artifact one: s3://pipelines/nowhere/model\.tar\.gz not found"):
        made.call(event)
    with pytest.raises(FunctionFailed, match="missing in the event: artifacts, image"):
        made.call({key: value for key, value in event.items() if key not in ("artifacts", "image")})
    with pytest.raises(FunctionFailed, match="the event's action must be one of deploy, smoke, not 'smok'"):
        made.call({"action": "smok"})


def test_the_function_called_again_at_once_changes_nothing(here: LocalAws) -> None:
    """Lambda may call a function twice; the endpoint may still be in creation."""
    prepared(here)
    s3 = here.client("s3")
    s3.create_bucket(Bucket="elsewhere")
    s3.put_object(Bucket="elsewhere", Key="out/model.tar.gz", Body=b"whatever it is")
    etag = hashlib.md5(b"whatever it is").hexdigest()
    longer = f"twice/one-{etag[:8]}.tar.gz.part"  # a listing by prefix finds this key too
    s3.put_object(Bucket=BUCKET, Key=longer, Body=b"")
    event = deploying({"one": "s3://elsewhere/out/model.tar.gz"}, "twice/", "twice")
    first, second = (lambda_function.handler(event, None) for _ in range(2))
    here.client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName="twice", WaiterConfig={"Delay": 1})
    third = lambda_function.handler(event, None)

    assert [each["changed"] for each in (first, second, third)] == ["true", "false", "false"]
    assert first["body"] == second["body"] == third["body"]
    copied = [each["Key"] for each in s3.list_objects_v2(Bucket=BUCKET, Prefix="twice/")["Contents"]]
    assert copied == [f"twice/{json.loads(first['body'])['one']}", longer]


@pytest.fixture(scope="module")
def artifact(here: LocalAws) -> str:
    """The URI of a training's model. The bucket of the endpoint's models exists too."""
    prepared(here)
    table = np.loadtxt(io.StringIO(rows(200)), delimiter=",")
    model = abalone.train((table[:, 1:].tolist(), table[:, 0].tolist()), rounds=20, depth=3, eta=0.3)
    s3 = here.client("s3")
    s3.create_bucket(Bucket="trained")
    s3.put_object(Bucket="trained", Key="model.tar.gz", Body=abalone.tar_gz({"model.ubj": model}))
    return "s3://trained/model.tar.gz"


def smoking(here: LocalAws, deployed: dict[str, str], **more: str) -> dict[str, str]:
    """The event of the step that comes after one that deployed."""
    data = prepared(here)
    said = {"endpoint": deployed["endpoint_name"], "models": deployed["body"]}
    return {"action": "smoke", "rows": data, **said, "config": deployed["config"], "before": deployed["before"], **more}


def test_of_two_functions_that_create_the_same_endpoint_none_fails(
    here: LocalAws, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looks before the first has created it; then AWS answers that it exists."""
    event = deploying({"one": artifact}, "both/", "both")
    first = lambda_function.handler(event, None)
    looks = iter([None])
    monkeypatch.setattr("deploy.endpoint.described", lambda *asked: next(looks, described(*asked)))

    second = lambda_function.handler(event, None)

    assert (first["changed"], second["changed"], second["config"]) == ("true", "false", first["config"])


def test_a_successful_smoke_step_deletes_the_configuration_before(here: LocalAws, artifact: str) -> None:
    events = [deploying({"one": artifact}, "swept/", "swept", image) for image in ("localhost/a", "localhost/b")]
    for event in events:
        deployed = lambda_function.handler(event, None)
        said = lambda_function.handler(smoking(here, deployed), None)

    sagemaker = here.client("sagemaker")
    configs = [each["EndpointConfigName"] for each in sagemaker.list_endpoint_configs()["EndpointConfigs"]]
    models = [each["ModelName"] for each in sagemaker.list_models()["Models"]]
    assert said["one"].startswith(f"{json.loads(deployed['body'])['one']}, 200 in ")
    assert [each for each in configs if each.startswith("swept-")] == [deployed["config"]]
    assert len([each for each in models if each.startswith("swept-")]) == 1


def test_a_failed_smoke_step_rolls_the_endpoint_back(here: LocalAws, artifact: str) -> None:
    """The model before answers again."""
    first = lambda_function.handler(deploying({"one": artifact}, "back/", "back", "localhost/a"), None)
    lambda_function.handler(smoking(here, first), None)
    second = lambda_function.handler(deploying({"one": artifact}, "back/", "back", "localhost/b"), None)

    with pytest.raises(RuntimeError) as refused:
        lambda_function.handler(smoking(here, second, models='{"one": "no.tar.gz", "two": "none.tar.gz"}'), None)

    assert second["before"] == first["config"] != second["config"]
    said = str(refused.value).splitlines()
    assert [line.partition(": ")[0] for line in said if line.startswith(("one, ", "two, "))] == [
        "one, no.tar.gz",
        "two, none.tar.gz",
    ]
    assert said[-1] == f"endpoint back is rolling back to {first['config']}"
    here.client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName="back", WaiterConfig={"Delay": 1})
    now = here.client("sagemaker").describe_endpoint(EndpointName="back")
    assert now["EndpointConfigName"] == first["config"]
    assert abs(invoked(here, "back", json.loads(first["body"])["one"]) - 14) < 3


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"before": "stays-gone"}, "one, no.tar.gz: .*\nendpoint stays: the rollback to stays-gone failed: "),
        (
            {"before": "none"},
            "no earlier configuration to roll back to: `python -m deploy down stays` deletes",
        ),
        ({}, "endpoint stays is unchanged and serves its earlier models"),
        ({"rows": "s3://trained/nothing/"}, "no data at s3://trained/nothing/"),
        ({"config": "stays-00000000"}, "endpoint stays is not at stays-00000000: AWS gives no reason"),
        ({"endpoint": "nowhere"}, "endpoint nowhere is not at stays-[0-9a-f]*: endpoint not found"),
    ],
)
def test_a_failed_smoke_step_reports_the_state_of_the_endpoint(
    here: LocalAws, artifact: str, differs: dict[str, str], said: str
) -> None:
    event = deploying({"one": artifact}, "stays/", "stays")
    lambda_function.handler(smoking(here, lambda_function.handler(event, None)), None)
    again = lambda_function.handler(event, None)

    with pytest.raises(RuntimeError, match=f"(?s){said}"):
        lambda_function.handler(smoking(here, again, **{"models": '{"one": "no.tar.gz"}', **differs}), None)


class Coming(Aws):
    """AWS with an endpoint that stays in Creating."""

    def client(self, service: str) -> Any:
        return self

    def describe_endpoint(self, **_: str) -> dict[str, str]:
        return {"EndpointStatus": "Creating"}


def test_a_smoke_step_ends_before_lambda_stops_it(here: LocalAws) -> None:
    with pytest.raises(Failed, match=r"endpoint x is still Creating after 0 s, .*retry-pipeline-execution"):
        lambda_function.smoked(Coming(), "x", "x-1", "none", targets={}, rows="s3://bucket/rows", seconds=0.1)


def test_the_smoke_row_is_the_first_of_the_data_without_its_label(here: LocalAws) -> None:
    s3 = here.client("s3")
    s3.create_bucket(Bucket="asked")
    s3.put_object(Bucket="asked", Key="plain/0", Body=b"")  # some tools store a directory like this
    s3.put_object(Bucket="asked", Key="plain/1.csv", Body=b"15,1,2.5\r\n16,3,4\r\n")
    s3.put_object(Bucket="asked", Key="packed/1.csv.gz", Body=gzip.compress(b"15,1,2.5\n16,3,4\n"))
    s3.put_object(Bucket="asked", Key="other/1.libsvm", Body=b"15 0:1 1:2.5\n")

    assert (
        lambda_function.first_row(here, "s3://asked/plain/")
        == lambda_function.first_row(here, "s3://asked/packed/")
        == b"1,2.5"
    )
    with pytest.raises(Failed, match="no data at s3://asked/none/"):
        lambda_function.first_row(here, "s3://asked/none/")
    with pytest.raises(Failed, match=r"s3://asked/other/1\.libsvm does not begin with a row of CSV, the label first"):
        lambda_function.first_row(here, "s3://asked/other/")

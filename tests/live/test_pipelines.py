"""Both pipelines on this machine: real trainings, the function from its zip, the endpoint on the platform emulator."""

import datetime as dt
import gzip
import hashlib
import io
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.__main__ import main
from deploy.aws import Aws, Failed
from deploy.pipelines import executions, function, installation, lambda_function, smoke
from deploy.pipelines.installation import Room
from deploy.progress import Progress
from deploy.settling import described
from deploy.table import SpecError
from local_test.pipelines import function as functions
from local_test.pipelines import local
from local_test.pipelines.execution import Execution, StepFailed
from local_test.pipelines.function import Function
from local_test.pipelines.here import Here, platform
from local_test.pipelines.machine import Job, Process
from local_test.pipelines.running import Running
from local_test.pipelines.transform import objects
from local_test.platform.containers.process import ROOT
from local_test.recipes import abalone
from tests.live.stack import alive, descendants, wait_until
from tests.patience import PATIENCE

Run = Callable[..., Execution]
BUCKET = local.BUCKET


def rows(count: int) -> str:
    """Rings first, which follow from the rest: a sex and seven sizes."""
    draw = np.random.default_rng(1)
    sex, sizes = draw.integers(1, 4, count), draw.random((count, 7)).round(3)
    whole = np.column_stack([(3 + sex + 20 * sizes[:, 0]).round(), sex, sizes])
    return "".join(",".join(f"{cell:g}" for cell in row) + "\n" for row in whole)


@pytest.fixture(scope="module")
def here() -> Iterator[Here]:
    """A platform; and the environment says so, for whoever reads it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("AWS_ENDPOINT_URL", raising=False)
        with platform("process") as played:
            for name, value in played.environment.items():
                environment.setenv(name, value)
            yield played


@pytest.fixture
def run(here: Here) -> Run:
    """run(NAME, PARAMETER=...) -> an execution that has ended."""

    def execute(name: str, **given: Any) -> Execution:
        told: list[tuple[str, Any]] = []
        prepared = local.prepared(here, name, rows(200))
        return local.execution(here, name, {**prepared, **given}, lambda *step: told.append(step))

    return execute


def outputs(done: Execution) -> dict[str, str]:
    assert done.succeeded, done.steps
    return dict(done.properties["DeployMME"]["OutputParameters"])


def invoked(here: Here, endpoint: str, target: str) -> float:
    answer = here.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=endpoint,
        TargetModel=target,
        ContentType="text/csv",
        Accept="text/csv",
        Body=b"1,.5,.5,.5,.5,.5,.5,.5",
    )
    return float(answer["Body"].read())


def test_two_models_become_one_endpoint_that_later_runs_leave_alone(here: Here, run: Run) -> None:
    """The same data makes the same keys, so nothing is new; another hyperparameter is a new key beside the old one."""
    done = run("two-models")
    first = outputs(done)
    name, targets = first["endpoint_name"], json.loads(first["body"])
    smoked = done.properties["Smoke"]["OutputParameters"]
    before = here.client("sagemaker").describe_endpoint(EndpointName=name)
    answers = {each: invoked(here, name, targets[each]) for each in ("one", "two")}

    again = outputs(run("two-models"))
    other = json.loads(outputs(run("two-models", RoundsTwo=1))["body"])

    after = here.client("sagemaker").describe_endpoint(EndpointName=name)
    assert all(smoked[each].startswith(f"{targets[each]}, 200 in ") for each in ("one", "two"))
    assert first["before"] == "none"
    assert again["before"] == again["config"] == first["config"]
    assert json.loads(again["body"]) == targets
    assert other["one"] == targets["one"]
    assert other["two"] != targets["two"]
    assert [before[key] for key in ("EndpointConfigName", "LastModifiedTime", "EndpointStatus")] == [
        after[key] for key in ("EndpointConfigName", "LastModifiedTime", "EndpointStatus")
    ]
    assert invoked(here, name, targets["two"]) == answers["two"]
    assert invoked(here, name, other["two"]) not in answers.values()
    assert all(abs(answer - 14) < 3 for answer in answers.values())  # 3 + 1 + 20 * .5


def test_a_tuned_model_is_registered_and_scores_the_test_rows(here: Here, run: Run) -> None:
    done = run("tuned-model", MaxJobs=2)

    assert done.succeeded, done.steps
    s3, tuned = here.client("s3"), done.properties["Tune"]

    def lines(path: str) -> list[str]:
        body = s3.get_object(Bucket=BUCKET, Key=f"tuned-model/{done.id}/{path}")["Body"].read().decode()
        return [line for line in body.splitlines() if line]  # AssembleWith adds a newline to ours

    truth, scores = (list(map(float, lines(path))) for path in ("truth/truth.csv", "scores/test.csv.out"))
    values = [each["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] for each in tuned["TrainingJobSummaries"]]
    best = tuned["BestTrainingJob"]
    package = done.properties["Register"]
    data = f"s3://{BUCKET}/tuned-model/models/{best['TrainingJobName']}/output/model.tar.gz"
    assert len(scores) == len(truth) == 30
    assert np.sqrt(np.mean(np.subtract(truth, scores) ** 2)) < np.std(truth)
    assert len(values) == 2
    assert best["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == min(values)
    assert package["ModelApprovalStatus"] == "PendingManualApproval"
    assert package["InferenceSpecification"]["Containers"][0]["ModelDataUrl"] == data
    model = here.client("sagemaker").describe_model(ModelName=done.properties["Create"]["ModelName"])
    assert model["PrimaryContainer"]["ModelDataUrl"] == data


def test_a_training_that_fails_stops_the_function_and_the_command_says_why(
    here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, picture = tmp_path / "rows.csv", tmp_path / "run.svg"
    data.write_text(rows(20))

    words = [
        "pipeline",
        "two-models",
        "run",
        "--local",
        "--runtime",
        "process",
        "--data",
        str(data),
        "--svg",
        str(picture),
    ]
    code = main([*words, "--param", "RoundsOne=0", "--param", "EndpointName=never"])

    said = capsys.readouterr()
    assert code == 1
    assert "TrainOne   Training       Failed" in said.out
    assert "hyperparameter num_round: '0' is not a whole number from 1 on, exit code: 1" in said.out
    assert "TrainTwo   Training       Succeeded" in said.out
    assert "DeployMME  Lambda         NotRun     not run: TrainOne has not succeeded" in said.out
    assert "Smoke      Lambda         NotRun     not run: DeployMME has not succeeded" in said.out
    assert said.err.startswith("two-models failed after")
    assert "Training, Failed" in picture.read_text()
    names = [each["EndpointName"] for each in here.client("sagemaker").list_endpoints()["Endpoints"]]
    assert "never" not in names


def test_a_job_is_stopped_at_its_limit(tmp_path: Path) -> None:
    job = Job(image="any", files=tmp_path, command=["3600"], entrypoint=["sleep"], environment={}, limit=0.3)

    assert Process(Running()).run(job, tmp_path / "log") is None


def zipped(code: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("handlers.py", code)
    return packed.getvalue()


HANDLERS = """
import pathlib
import time

def fail(event, context):
    raise ValueError(f"no {event['what']}")

def sleep(event, context):
    pathlib.Path("begun").touch()
    time.sleep(3600)

def left(event, context):
    return context.get_remaining_time_in_millis()
"""


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


def test_a_function_that_raises_fails_its_step_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="Lambda: ValueError: no bucket"):
        called(tmp_path, "fail")


def test_a_function_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"Task timed out after 2\.00 seconds"):
        called(tmp_path, "sleep", seconds=2)


def test_a_step_whose_function_is_cut_fails_and_no_other_is_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "zipped", lambda: zipped(HANDLERS))
    monkeypatch.setattr(function, "HANDLER", "handlers.sleep")
    monkeypatch.setattr(function, "SECONDS", 2)

    steps = run("two-models", RoundsOne=1, RoundsTwo=1).steps

    assert steps["DeployMME"].status == "Failed"
    assert "Task timed out after 2.00 seconds" in steps["DeployMME"].reason
    assert (steps["Smoke"].status, steps["Smoke"].reason) == ("NotRun", "not run: DeployMME has not succeeded")


@pytest.mark.parametrize("emulated", [False, True])
def test_a_function_that_runs_is_ended_by_a_stop(
    tmp_path: Path, emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not emulated:
        monkeypatch.setattr(functions, "is_emulated", lambda: False)
    elif not functions.is_emulated():
        pytest.skip("AWS's emulator of Lambda's runtime is not here: make lambda")
    running = Running()

    def stop() -> None:
        wait_until(lambda: list(tmp_path.glob("*/code/begun")))
        running.stop()

    with ThreadPoolExecutor() as threads:
        stopped = threads.submit(stop)
        with pytest.raises(StepFailed):
            called(tmp_path, "sleep", seconds=3600, running=running)
        stopped.result()


def test_an_emulator_that_does_not_start_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "EMULATOR", Path("/bin/false"))
    with pytest.raises(StepFailed, match="Lambda's emulator has ended"):
        called(tmp_path, "left")


@pytest.mark.skipif(not functions.is_emulated(), reason="AWS's emulator of Lambda's runtime is not here: make lambda")
def test_a_function_runs_in_awss_own_emulator(tmp_path: Path) -> None:
    """With a real context, which knows the limit."""
    assert 0 < called(tmp_path, "left", seconds=300) <= 300_000


def deploying(artifacts: dict[str, str], prefix: str, endpoint: str, image: str = "localhost/serve") -> dict[str, Any]:
    """The event of a step that deploys."""
    return {
        "action": "deploy",
        "artifacts": artifacts,
        "prefix": f"s3://{BUCKET}/{prefix}",
        "endpoint": endpoint,
        "image": image,
        "role": local.ROLE,
        "instance_type": "ml.m5.large",
    }


def test_the_function_says_what_its_event_lacks_and_what_is_not_in_s3(here: Here, tmp_path: Path) -> None:
    made = Function(
        code=function.zipped(),
        handler=function.HANDLER,
        environment=here.environment,
        seconds=300,
        work=tmp_path,
        running=Running(),
    )
    local.prepared(here, "two-models", rows(10))
    event = deploying({"one": f"s3://{BUCKET}/nowhere/model.tar.gz"}, "models/", "lacking")
    with pytest.raises(StepFailed, match=r"artifact one is not at s3://pipelines/nowhere/model\.tar\.gz"):
        made.call(event)
    with pytest.raises(StepFailed, match="the event has no artifacts, image"):
        made.call({key: value for key, value in event.items() if key not in ("artifacts", "image")})
    with pytest.raises(StepFailed, match="the event's action must be one of deploy, smoke, not 'smok'"):
        made.call({"action": "smok"})


def test_the_function_called_again_at_once_changes_nothing(here: Here) -> None:
    """Lambda calls a function twice now and then; the endpoint may still be coming."""
    local.prepared(here, "two-models", rows(10))
    s3 = here.client("s3")
    s3.create_bucket(Bucket="elsewhere")
    s3.put_object(Bucket="elsewhere", Key="out/model.tar.gz", Body=b"whatever it is")
    etag = hashlib.md5(b"whatever it is").hexdigest()
    longer = f"twice/one-{etag[:8]}.tar.gz.part"  # by a listing it looks as if the model were there
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
def artifact(here: Here) -> str:
    """Of a training: where its model is. The bucket that it is gathered in is there too."""
    local.prepared(here, "two-models", rows(10))
    table = np.loadtxt(io.StringIO(rows(200)), delimiter=",")
    model = abalone.train((table[:, 1:].tolist(), table[:, 0].tolist()), rounds=20, depth=3, eta=0.3)
    s3 = here.client("s3")
    s3.create_bucket(Bucket="trained")
    s3.put_object(Bucket="trained", Key="model.tar.gz", Body=abalone.tar_gz({"model.ubj": model}))
    return "s3://trained/model.tar.gz"


def smoking(here: Here, deployed: dict[str, str], **more: str) -> dict[str, str]:
    """The event of the step that comes after one that deployed."""
    data = local.prepared(here, "two-models", rows(10))["TrainData"]
    said = {"endpoint": deployed["endpoint_name"], "models": deployed["body"]}
    return {"action": "smoke", "rows": data, **said, "config": deployed["config"], "before": deployed["before"], **more}


def test_of_two_that_make_the_same_endpoint_at_once_none_fails(
    here: Here, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looks before the first has made it, and is then told that it is there."""
    event = deploying({"one": artifact}, "both/", "both")
    first = lambda_function.handler(event, None)
    looks = iter([None])
    monkeypatch.setattr("deploy.endpoint.described", lambda *asked: next(looks, described(*asked)))

    second = lambda_function.handler(event, None)

    assert (first["changed"], second["changed"], second["config"]) == ("true", "false", first["config"])


def test_a_smoke_that_succeeds_sweeps_what_was_before(here: Here, artifact: str) -> None:
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


def test_a_smoke_that_fails_takes_the_endpoint_back(here: Here, artifact: str) -> None:
    """What was there answers again."""
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
    assert said[-1] == f"endpoint back is going back to {first['config']}"
    here.client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName="back", WaiterConfig={"Delay": 1})
    now = here.client("sagemaker").describe_endpoint(EndpointName="back")
    assert now["EndpointConfigName"] == first["config"]
    assert abs(invoked(here, "back", json.loads(first["body"])["one"]) - 14) < 3


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"before": "stays-gone"}, "one, no.tar.gz: .*\nendpoint stays could not go back to stays-gone: "),
        ({"before": "none"}, "no earlier configuration to go back to: `python -m deploy down stays` removes it"),
        ({}, "endpoint stays is as it was, and serves its earlier models"),
        ({"rows": "s3://trained/nothing/"}, "there is no data at s3://trained/nothing/"),
        ({"config": "stays-00000000"}, "endpoint stays is not at stays-00000000: AWS gives no reason"),
        ({"endpoint": "nowhere"}, "endpoint nowhere is not at stays-[0-9a-f]*: it is gone"),
    ],
)
def test_a_smoke_that_fails_says_what_became_of_the_endpoint(
    here: Here, artifact: str, differs: dict[str, str], said: str
) -> None:
    event = deploying({"one": artifact}, "stays/", "stays")
    lambda_function.handler(smoking(here, lambda_function.handler(event, None)), None)
    again = lambda_function.handler(event, None)

    with pytest.raises(RuntimeError, match=f"(?s){said}"):
        lambda_function.handler(smoking(here, again, **{"models": '{"one": "no.tar.gz"}', **differs}), None)


class Coming(Aws):
    """AWS, where an endpoint never gets beyond Creating."""

    def client(self, service: str) -> Any:
        return self

    def describe_endpoint(self, **_: str) -> dict[str, str]:
        return {"EndpointStatus": "Creating"}


def test_a_smoke_does_not_wait_until_lambda_cuts_it(here: Here) -> None:
    with pytest.raises(Failed, match=r"endpoint x is still Creating after 0 s, .*retry-pipeline-execution"):
        smoke.smoked(Coming(), "x", "x-1", "none", targets={}, rows="s3://bucket/rows", seconds=0.1)


def test_a_row_to_ask_with_is_the_first_of_the_data_without_its_label(here: Here) -> None:
    s3 = here.client("s3")
    s3.create_bucket(Bucket="asked")
    s3.put_object(Bucket="asked", Key="plain/0", Body=b"")  # a directory, to some
    s3.put_object(Bucket="asked", Key="plain/1.csv", Body=b"15,1,2.5\r\n16,3,4\r\n")
    s3.put_object(Bucket="asked", Key="packed/1.csv.gz", Body=gzip.compress(b"15,1,2.5\n16,3,4\n"))
    s3.put_object(Bucket="asked", Key="other/1.libsvm", Body=b"15 0:1 1:2.5\n")

    assert smoke.first_row(here, "s3://asked/plain/") == smoke.first_row(here, "s3://asked/packed/") == b"1,2.5"
    with pytest.raises(Failed, match="there is no data at s3://asked/none/"):
        smoke.first_row(here, "s3://asked/none/")
    with pytest.raises(Failed, match=r"s3://asked/other/1\.libsvm does not begin with a row of CSV, the label first"):
        smoke.first_row(here, "s3://asked/other/")


def test_scores_keep_their_place_below_the_prefix(here: Here) -> None:
    """Else of two files of one name one would be lost."""
    s3 = here.client("s3")
    s3.create_bucket(Bucket="placed")
    for key in ("in/rows.csv", "in/more/rows.csv", "in/more/"):
        s3.put_object(Bucket="placed", Key=key, Body=b"1\n")
    for uri in ("s3://placed/in", "s3://placed/in/"):
        assert [below for _, _, below in objects(s3, uri)] == ["more/rows.csv", "rows.csv"]


def test_two_runs_at_once_have_each_its_own_data(here: Here) -> None:
    first, second = (local.prepared(here, "two-models", rows(count))["TrainData"] for count in (10, 11))
    assert first != second
    assert local.prepared(here, "two-models", rows(10))["TrainData"] == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--local", "--param", "RoundOne=3"], "no parameter is called 'RoundOne'; did you mean RoundsOne?"),
        (["run", "--local", "--param", "RoundsOne=many"], "parameter RoundsOne: 'many' is no Integer"),
        (["run", "--bucket", "b", "--param", "Image=i"], "give TrainData: --param TrainData=..."),
        (["run", "--local", "--svg", "nowhere/run.svg"], "--svg nowhere/run.svg: there is no directory nowhere"),
        (["run"], "give Image, TrainData: --param Image=..."),
    ],
)
def test_a_command_that_cannot_be_meant_begins_nothing(
    here: Here, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", "two-models", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", said)


@pytest.mark.parametrize(
    ("name", "parameter", "seen", "number"),
    [
        ("two-models", "RoundsOne=1000000", "TrainOne   Training       Executing", signal.SIGINT),
        ("two-models", "RoundsOne=1000000", "TrainOne   Training       Executing", signal.SIGTERM),
        ("two-models", "RoundsOne=1", "Smoke      Lambda         Executing", signal.SIGINT),
        ("tuned-model", "MaxJobs=1", "Score     Transform      Executing", signal.SIGINT),
    ],
)
def test_a_run_that_is_stopped_leaves_nothing_behind(
    tmp_path: Path, name: str, parameter: str, seen: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was: no process, no file. A training that would take hours ends at once."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    data, room = tmp_path / "rows.csv", tmp_path / "tmp"
    data.write_text(rows(100))
    room.mkdir()
    monkeypatch.setenv("TMPDIR", str(room))
    command = [sys.executable, "-u", "-m", "deploy", "pipeline", name, "run", "--local", "--runtime", "process"]
    with subprocess.Popen(
        [*command, "--data", str(data), "--param", parameter],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert any(line.startswith(seen) for line in run.stdout)
        if "1000000" in parameter:
            wait_until(lambda: list(room.glob("pipeline-*/jobs/*/ml/model")))
        below = descendants(run.pid)
        run.send_signal(number)
        out, err = run.communicate(timeout=PATIENCE)

    wait_until(lambda: not any(map(alive, below)))
    assert list(room.iterdir()) == []
    if "1000000" in parameter:
        assert run.returncode == 1
        assert "TrainOne   Training       Stopped" in out
        assert err.strip() == "two-models was stopped, and its jobs with it"


class Told(Aws):
    """AWS, where an execution is at one stage after the other: the status, and what is listed of its steps."""

    def __init__(self, *stages: tuple[str, list[dict[str, Any]]]) -> None:
        super().__init__()
        self.stages = list(stages)

    def client(self, service: str) -> Any:
        real = super().client(service)
        return real if service != "sagemaker" else ToldSageMaker(real, self.stages)


class ToldSageMaker:
    def __init__(self, real: Any, stages: list[tuple[str, list[dict[str, Any]]]]) -> None:
        self._real, self._stages = real, stages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def describe_pipeline_execution(self, **_: str) -> dict[str, str]:
        return {"PipelineExecutionStatus": self._stages[0][0], "FailureReason": "A step has failed"}

    def get_paginator(self, name: str) -> Any:
        if name != "list_pipeline_execution_steps":
            return self._real.get_paginator(name)
        return self

    def paginate(self, **_: str) -> Iterator[dict[str, Any]]:
        """A page a step, then on to the next stage."""
        steps = self._stages[0][1]
        yield from ({"PipelineExecutionSteps": [step]} for step in steps)
        if len(self._stages) > 1:
            del self._stages[0]


def test_an_execution_is_followed_step_by_step_to_its_end(here: Here) -> None:
    """Each change is a line; a failure says which step and why."""
    local.prepared(here, "two-models", rows(10))
    installation.upsert(Aws(), "two-models", Room(bucket=BUCKET), Progress(io.StringIO()))
    given = {"Image": "localhost/serve", "TrainData": "s3://bucket/data"}
    execution = executions.start(Aws(), "two-models", given, Progress(io.StringIO()))
    begun = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    ended = begun + dt.timedelta(seconds=4.5)
    one = {"StepName": "TrainOne", "StepStatus": "Executing", "StartTime": begun}
    done = {**one, "StepStatus": "Succeeded", "EndTime": ended}
    lost = {**done, "StepName": "TrainTwo", "StepStatus": "Failed", "FailureReason": "ClientError: no data"}
    aws = Told(("Executing", [one]), ("Executing", [done]), ("Failed", [done, lost]))
    out = io.StringIO()

    with pytest.raises(Failed) as failed:
        executions.follow(aws, execution, Progress(out))

    assert [line.split() for line in out.getvalue().splitlines() if line.startswith("Train")] == [
        ["TrainOne", "Training", "Executing"],
        ["TrainOne", "Training", "Succeeded", "4.5", "s"],
        ["TrainTwo", "Training", "Failed", "4.5", "s", "ClientError:", "no", "data"],
    ]
    assert str(failed.value) == "Failed: A step has failed\n  TrainTwo: ClientError: no data"


def test_what_an_execution_has_come_to_is_listed_and_drawn(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `steps`, by `show` and after `follow`: of the last execution, and of one that is named."""
    local.prepared(here, "two-models", rows(10))
    installation.upsert(Aws(), "two-models", Room(bucket=BUCKET), Progress(io.StringIO()))
    given = {"Image": "localhost/serve", "TrainData": "s3://bucket/data"}
    execution = executions.start(Aws(), "two-models", given, Progress(io.StringIO()))
    begun = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    one = {"StepName": "TrainOne", "StepStatus": "Succeeded", "StartTime": begun}
    one["EndTime"] = begun + dt.timedelta(seconds=61)
    lost = {**one, "StepName": "TrainTwo", "StepStatus": "Failed", "FailureReason": "ClientError: no <data>"}
    monkeypatch.setattr("deploy.pipeline.Aws", lambda _: Told(("Failed", [one, lost])))
    picture = tmp_path / "run.svg"

    def said(*words: str) -> tuple[int, list[str], str]:
        code = main(["pipeline", "two-models", *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    assert said("steps", "--execution", execution) == (
        0,
        [
            "TrainOne   Training       Succeeded  61 s",
            "TrainTwo   Training       Failed     61 s  ClientError: no <data>",
            "DeployMME  Lambda",
            "Smoke      Lambda",
        ],
        "",
    )
    assert said("show", "--execution", "last", "--svg", str(picture)) == (
        0,
        [
            "two-models",
            "  + TrainOne       Training, Succeeded, 61 s",
            "  x TrainTwo       Training, Failed, 61 s",
            "      ClientError: no <data>",
            "    o DeployMME    Lambda  after TrainOne, TrainTwo",
            "      o Smoke      Lambda  after DeployMME",
            f"picture: {picture}",
        ],
        "",
    )
    drawn = picture.read_text()
    assert "Training, Failed, 61 s" in drawn
    assert "no &lt;data&gt;" in drawn
    picture.unlink()
    code, _, err = said("follow", "--svg", str(picture))
    assert (code, err) == (1, "Failed: A step has failed\n  TrainTwo: ClientError: no <data>\n")
    assert picture.read_text() == drawn

    answered = {"OutputParameters": [{"Name": "statusCode", "Value": "200"}, {"Name": "one", "Value": "one-0.tar.gz"}]}
    smoked = {**one, "StepName": "Smoke", "Metadata": {"Lambda": answered}}
    monkeypatch.setattr("deploy.pipeline.Aws", lambda _: Told(("Succeeded", [smoked])))
    code, out, _ = said("follow")
    assert (code, out[-1]) == (0, "Smoke: one = one-0.tar.gz")


def test_upsert_makes_all_that_a_pipeline_needs_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one changes nothing; where only the function's code is another, only that is."""
    local.prepared(here, "two-models", rows(10))
    aws = Aws("eu-central-1")  # where no other test makes one

    def upsert(name: str) -> list[str]:
        progress = Progress(io.StringIO())
        installation.upsert(aws, name, Room(bucket=BUCKET), progress)
        return progress.changes

    first, again = upsert("two-models"), upsert("two-models")
    code = function.zipped()
    with monkeypatch.context() as changed:
        changed.setattr(function, "zipped", lambda: code + b" ")
        newer = upsert("two-models")
    tuned = upsert("tuned-model")

    assert [line for line in first if line.endswith("created") and not line.startswith("role")] == [
        "function two-models-function created",
        "pipeline two-models created",
    ]
    assert again == []
    assert newer == ["function two-models-function has new code"]
    assert "pipeline tuned-model created" in tuned
    assert not any("function tuned-model" in line for line in tuned if line.startswith("function"))
    made = json.loads(aws.client("sagemaker").describe_pipeline(PipelineName="two-models")["PipelineDefinition"])
    roles = [each["RoleName"] for each in aws.client("iam").list_roles()["Roles"]]
    assert {"two-models-pipeline", "two-models-function"} <= set(roles)
    step = made["Steps"][2]
    assert (
        step["FunctionArn"]
        == aws.client("lambda").get_function_configuration(FunctionName="two-models-function")["FunctionArn"]
    )


def test_roles_are_printed_for_who_may_make_them(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing in them is for all of an account's buckets, roles or functions."""
    assert main(["pipeline", "two-models", "roles", "--bucket", "mine"]) == 0
    jobs, functions, user = json.loads(capsys.readouterr().out)
    assert [jobs["RoleName"], functions["RoleName"]] == ["two-models-pipeline", "two-models-function"]
    for role in (jobs, functions, user):
        for statement in role["PolicyDocument"]["Statement"]:
            wide = [each for each in ("s3", "iam", "lambda") if f"{each}:" in json.dumps(statement["Action"])]
            assert not wide or "*" not in json.dumps(statement["Resource"]).replace("arn:aws:s3:::mine/*", "")
    assert main(["pipeline", "two-models", "roles"]) == 2
    assert "give --bucket" in capsys.readouterr().err


def test_a_start_is_known_again_by_its_definition_and_parameters(here: Here) -> None:
    local.prepared(here, "two-models", rows(10))
    aws, progress = Aws(), Progress(io.StringIO())
    installation.upsert(aws, "two-models", Room(bucket=BUCKET), progress)
    tokens: list[str] = []
    aws.client("sagemaker").meta.events.register(
        "provide-client-params.sagemaker.StartPipelineExecution",
        lambda params, **_: tokens.append(params["ClientRequestToken"]),
    )
    given = {"Image": "localhost/serve", "TrainData": "s3://bucket/data"}

    for parameters, again in ((given, False), (given, False), ({**given, "RoundsOne": "3"}, False), (given, True)):
        arn = executions.start(aws, "two-models", parameters, progress, again=again)

    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 3
    assert executions.latest(aws, "two-models").startswith(arn.rpartition("/")[0])
    with pytest.raises(SpecError, match="give TrainData: --param TrainData="):
        executions.start(aws, "two-models", {"Image": "x"}, progress)
    with pytest.raises(Failed, match="there is no pipeline other"):
        executions.start(aws, "other", {}, progress)
    with pytest.raises(Failed, match="there is no pipeline other"):
        executions.latest(aws, "other")

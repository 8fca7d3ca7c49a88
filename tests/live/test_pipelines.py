"""Both pipelines on this machine: real trainings, the function from its zip, the endpoint on the platform emulator."""

import datetime as dt
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.__main__ import main
from deploy.aws import Aws, Failed
from deploy.pipelines import executions, function, installation, lambda_function
from deploy.pipelines.installation import Room
from deploy.progress import Progress
from deploy.table import SpecError
from local_test.pipelines import function as functions
from local_test.pipelines import local
from local_test.pipelines.execution import Execution, StepFailed
from local_test.pipelines.function import Function
from local_test.pipelines.local import Here
from local_test.pipelines.machine import Job, Process

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
        with local.platform("process") as played:
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
    first = outputs(run("two-models"))
    name, targets = first["endpoint_name"], json.loads(first["body"])
    here.client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig={"Delay": 1})
    before = here.client("sagemaker").describe_endpoint(EndpointName=name)
    answers = {each: invoked(here, name, targets[each]) for each in ("one", "two")}

    again = outputs(run("two-models"))
    other = json.loads(outputs(run("two-models", RoundsTwo=1))["body"])

    after = here.client("sagemaker").describe_endpoint(EndpointName=name)
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
    assert said.err.startswith("two-models failed after")
    assert "Training, Failed" in picture.read_text()
    names = [each["EndpointName"] for each in here.client("sagemaker").list_endpoints()["Endpoints"]]
    assert "never" not in names


def test_a_job_is_stopped_at_its_limit(tmp_path: Path) -> None:
    job = Job(image="any", files=tmp_path, command=["60"], entrypoint=["sleep"], environment={}, limit=0.3)
    began = time.monotonic()

    assert Process().run(job, tmp_path / "log") is None
    assert time.monotonic() - began < 20


def zipped(code: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("handlers.py", code)
    return packed.getvalue()


HANDLERS = """
import time

def fail(event, context):
    raise ValueError(f"no {event['what']}")

def sleep(event, context):
    time.sleep(60)

def left(event, context):
    return context.get_remaining_time_in_millis()
"""


def called(work: Path, name: str, seconds: int = 20) -> Any:
    made = Function(code=zipped(HANDLERS), handler=f"handlers.{name}", environment={}, seconds=seconds, work=work)
    return made.call({"what": "bucket"})


def test_a_function_that_raises_fails_its_step_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="Lambda: ValueError: no bucket"):
        called(tmp_path, "fail")


def test_a_function_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(StepFailed, match=r"Task timed out after 2\.00 seconds"):
        called(tmp_path, "sleep", seconds=2)
    assert time.monotonic() - began < 30


@pytest.mark.skipif(not functions.is_emulated(), reason="AWS's emulator of Lambda's runtime is not here: make lambda")
def test_a_function_runs_in_awss_own_emulator(tmp_path: Path) -> None:
    """With a real context, which knows the limit."""
    assert 0 < called(tmp_path, "left", seconds=20) <= 20_000


def test_the_function_says_what_its_event_lacks_and_what_is_not_in_s3(here: Here, tmp_path: Path) -> None:
    made = Function(
        code=function.zipped(), handler=function.HANDLER, environment=here.environment, seconds=20, work=tmp_path
    )
    local.prepared(here, "two-models", rows(10))
    event = {
        "artifacts": {"one": f"s3://{BUCKET}/nowhere/model.tar.gz"},
        "prefix": f"s3://{BUCKET}/models/",
        "endpoint": "lacking",
        "image": "localhost/serve",
        "role": local.ROLE,
        "instance_type": "ml.m5.large",
    }
    with pytest.raises(StepFailed, match=r"artifact one is not at s3://pipelines/nowhere/model\.tar\.gz"):
        made.call(event)
    with pytest.raises(StepFailed, match="the event has no artifacts, image"):
        made.call({key: value for key, value in event.items() if key not in ("artifacts", "image")})


def test_the_function_called_again_at_once_changes_nothing(here: Here) -> None:
    """Lambda calls a function twice now and then; the endpoint may still be coming."""
    local.prepared(here, "two-models", rows(10))
    s3 = here.client("s3")
    s3.create_bucket(Bucket="elsewhere")
    s3.put_object(Bucket="elsewhere", Key="out/model.tar.gz", Body=b"whatever it is")
    event = {
        "artifacts": {"one": "s3://elsewhere/out/model.tar.gz"},
        "prefix": f"s3://{BUCKET}/twice/",
        "endpoint": "twice",
        "image": "localhost/serve",
        "role": local.ROLE,
        "instance_type": "ml.m5.large",
    }
    first, second = (lambda_function.handler(event, None) for _ in range(2))
    here.client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName="twice", WaiterConfig={"Delay": 1})
    third = lambda_function.handler(event, None)

    assert [each["changed"] for each in (first, second, third)] == ["true", "false", "false"]
    assert first["body"] == second["body"] == third["body"]
    (copied,) = s3.list_objects_v2(Bucket=BUCKET, Prefix="twice/")["Contents"]
    assert copied["Key"] == f"twice/{json.loads(first['body'])['one']}"


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

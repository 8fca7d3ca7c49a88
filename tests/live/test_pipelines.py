"""Both pipelines on this machine: real trainings, the function from its zip, the endpoint on the emulator."""

import datetime as dt
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.aws import Aws
from deploy.cli import main
from deploy.cli import run as run_with
from deploy.errors import Failed, SpecError
from deploy.pipelines import executions, installation
from deploy.pipelines.installation import Home
from deploy.pipelines.sources import named
from deploy.progress import Progress
from local_test.pipelines import runner
from local_test.pipelines.__main__ import main as run_locally
from local_test.pipelines.runner import LocalAws
from local_test.platform.containers.process import ROOT
from tests.live.pipelines_side import BUCKET, HANDLERS, account, invoked, prepared, rows, zipped
from tests.live.stack import IGNORING_SIGINT, alive, descendants, wait_until
from tests.patience import PATIENCE


@pytest.fixture(scope="module")
def here() -> Iterator[LocalAws]:
    with account() as played:
        yield played


@dataclass(frozen=True)
class Done:
    """An execution that has ended."""

    arn: str
    status: str
    steps: dict[str, Mapping[str, Any]]  # as ListPipelineExecutionSteps has them

    @property
    def id(self) -> str:
        return self.arn.rpartition("/")[2]

    def outputs(self, step: str) -> dict[str, str]:
        """What the function of a step returned."""
        assert self.status == "Succeeded", self.steps
        listed = self.steps[step]["Metadata"]["Lambda"]["OutputParameters"]
        return {each["Name"]: each["Value"] for each in listed}

    def arn_of(self, step: str, kind: str) -> str:
        """The ARN of the object that a step made."""
        assert self.status == "Succeeded", self.steps
        return str(self.steps[step]["Metadata"][kind]["Arn"])


Run = Callable[..., Done]


@pytest.fixture
def run(here: LocalAws, tmp_path: Path) -> Run:
    """run(NAME, PARAMETER=...) -> an execution that has ended."""

    def execute(name: str, **given: Any) -> Done:
        data = tmp_path / "rows.csv"
        data.write_text(rows(200))
        parameters = {key: str(value) for key, value in given.items()}
        arn = runner.started(here, named(name), parameters, data=data, image="localhost/sagemaker-serve")

        def status() -> str:
            described = here.client("sagemaker").describe_pipeline_execution(PipelineExecutionArn=arn)
            return str(described["PipelineExecutionStatus"])

        wait_until(lambda: status() in executions.ENDED)
        return Done(arn, status(), executions.steps(here, arn))

    return execute


def test_two_models_become_one_endpoint_that_later_runs_do_not_change(here: LocalAws, run: Run) -> None:
    """Equal data makes an equal key; another hyperparameter adds a key beside the old one."""
    done = run("two-models")
    first = done.outputs("DeployMME")
    name, targets = first["endpoint_name"], json.loads(first["body"])
    smoked = done.outputs("Smoke")
    before = here.client("sagemaker").describe_endpoint(EndpointName=name)
    answers = {each: invoked(here, name, targets[each]) for each in ("one", "two")}

    again = run("two-models", RoundsTwo=1).outputs("DeployMME")
    other = json.loads(again["body"])

    after = here.client("sagemaker").describe_endpoint(EndpointName=name)
    assert all(smoked[each].startswith(f"{targets[each]}, 200 in ") for each in ("one", "two"))
    assert first["before"] == "none"
    assert again["before"] == again["config"] == first["config"]
    assert other["one"] == targets["one"]
    assert other["two"] != targets["two"]
    assert [before[key] for key in ("EndpointConfigName", "LastModifiedTime", "EndpointStatus")] == [
        after[key] for key in ("EndpointConfigName", "LastModifiedTime", "EndpointStatus")
    ]
    assert invoked(here, name, targets["two"]) == answers["two"]
    assert invoked(here, name, other["two"]) not in answers.values()
    assert all(abs(answer - 14) < 3 for answer in answers.values())  # 3 + 1 + 20 * .5


def test_a_tuned_model_is_registered_and_scores_the_test_rows(here: LocalAws, run: Run) -> None:
    done = run("tuned-model", MaxJobs=2)

    s3, sagemaker = here.client("s3"), here.client("sagemaker")
    job = done.arn_of("Tune", "TuningJob").rpartition("/")[2]
    tuned = sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=job)
    trainings = sagemaker.list_training_jobs_for_hyper_parameter_tuning_job(HyperParameterTuningJobName=job)

    def lines(path: str) -> list[str]:
        body = s3.get_object(Bucket=BUCKET, Key=f"tuned-model/{done.id}/{path}")["Body"].read().decode()
        return [line for line in body.splitlines() if line]  # AssembleWith adds a newline to ours

    truth, scores = (list(map(float, lines(path))) for path in ("truth/truth.csv", "scores/test.csv.out"))
    values = [
        each["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] for each in trainings["TrainingJobSummaries"]
    ]
    best = tuned["BestTrainingJob"]
    package = sagemaker.describe_model_package(ModelPackageName=done.arn_of("Register", "RegisterModel"))
    data = f"s3://{BUCKET}/tuned-model/models/{best['TrainingJobName']}/output/model.tar.gz"
    assert len(scores) == len(truth) == 30
    assert np.sqrt(np.mean(np.subtract(truth, scores) ** 2)) < np.std(truth)
    assert len(values) == 2
    assert best["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == min(values)
    assert package["ModelApprovalStatus"] == "PendingManualApproval"
    assert package["InferenceSpecification"]["Containers"][0]["ModelDataUrl"] == data
    model = sagemaker.describe_model(ModelName=done.arn_of("Create", "Model").rpartition("/")[2])
    assert model["PrimaryContainer"]["ModelDataUrl"] == data


def test_a_failed_training_stops_the_function_and_the_command_prints_the_reason(
    here: LocalAws, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, picture = tmp_path / "rows.csv", tmp_path / "run.mmd"
    data.write_text(rows(20))

    words = ["two-models", "--runtime", "process", "--data", str(data), "--picture", str(picture)]
    code = run_locally([*words, "--param", "RoundsOne=0", "--param", "EndpointName=never"])

    said = capsys.readouterr()
    assert code == 1
    assert "TrainOne   Training       Failed" in said.out
    assert "hyperparameter num_round: '0' is not a whole number of at least 1, exit code: 1" in said.out
    assert "TrainTwo   Training       Succeeded" in said.out
    assert "DeployMME  Lambda" not in said.out
    assert said.err.startswith("two-models failed after")
    assert "Training, Failed" in picture.read_text()
    names = [each["EndpointName"] for each in here.client("sagemaker").list_endpoints()["Endpoints"]]
    assert "never" not in names


def test_a_step_whose_function_is_stopped_fails_and_no_other_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(installation, "zipped", lambda: zipped(HANDLERS))
        changed.setattr(installation, "HANDLER", "handlers.sleep")
        changed.setattr(installation, "SECONDS", 5)  # the start of the runtime counts, also on a slow machine
        steps = run("two-models", RoundsOne=1, RoundsTwo=1).steps

    assert steps["DeployMME"]["StepStatus"] == "Failed"
    assert "Task timed out after 5.00 seconds" in steps["DeployMME"]["FailureReason"]
    assert "Smoke" not in steps


def test_concurrent_runs_have_separate_data(here: LocalAws) -> None:
    first = prepared(here)
    assert runner.uploaded(here, rows(11)) != first == prepared(here)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--param", "RoundOne=3"], "unknown parameter 'RoundOne'; did you mean RoundsOne?"),
        (["--param", "RoundsOne=many"], "parameter RoundsOne: 'many' is not of type Integer"),
        (["--picture", "nowhere/run.md"], "--picture nowhere/run.md: directory nowhere not found"),
    ],
)
def test_an_invalid_local_command_starts_nothing(
    here: LocalAws, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_locally(["two-models", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bucket", "b", "--param", "Image=i"], "missing parameters: TrainData: give --param TrainData=..."),
        ([], "missing parameters: Image, TrainData: give --param Image=..."),
    ],
)
def test_an_invalid_command_starts_nothing(
    here: LocalAws, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", "two-models", "run", *words]) == 2
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
def test_a_stopped_run_leaves_nothing_behind(
    tmp_path: Path, name: str, parameter: str, seen: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process and no file, at any step. SIGINT works although it is ignored here, as in a shell's background job."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    data, room = tmp_path / "rows.csv", tmp_path / "tmp"
    data.write_text(rows(100))
    room.mkdir()
    monkeypatch.setenv("TMPDIR", str(room))
    command = [*IGNORING_SIGINT, sys.executable, "-u", "-m", "local_test.pipelines", name, "--runtime", "process"]
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
            wait_until(lambda: list(room.glob("pipeline-*/jobs/*/algo-1/model")))
        below = descendants(run.pid)
        run.send_signal(number)
        out, err = run.communicate(timeout=PATIENCE)

    wait_until(lambda: not any(map(alive, below)))
    assert list(room.iterdir()) == []
    if "1000000" in parameter:
        assert run.returncode == 1
        assert "TrainOne   Training       Stopped" in out
        assert err.strip() == "two-models was stopped, with all its jobs"


def test_a_new_project_runs_at_once(tmp_path: Path) -> None:
    """As its user does it: one command writes it, another runs it."""
    place = tmp_path / "project"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}

    def said(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "deploy", "pipeline", *words]
        done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert said("new", str(place))[0] == 0
    local = [str(place / "pipeline.py"), "run", "--local", "--runtime", "process"]
    code, out = said(*local, "--param", "Rounds=5", "--param", "MaxMse=1000")
    assert code == 0, out
    assert out.splitlines()[-1] == "Register: model-package/my-models/1 is PendingManualApproval"


class Told(Aws):
    """AWS with an execution that goes through these stages: its status and the list of its steps."""

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
        """One page for each step, then the next stage."""
        steps = self._stages[0][1]
        yield from ({"PipelineExecutionSteps": [step]} for step in steps)
        if len(self._stages) > 1:
            del self._stages[0]


def test_an_execution_is_followed_step_by_step_to_its_end(here: LocalAws) -> None:
    """Each change is a line; a failure has the step and the reason."""
    prepared(here)
    installation.upsert(Aws(), named("two-models"), Home(bucket=BUCKET), Progress(io.StringIO()))
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


def test_the_state_of_an_execution_is_listed_and_drawn(
    here: LocalAws, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `steps`, by `show` and after `follow`, for the last execution and for a given one."""
    prepared(here)
    installation.upsert(Aws(), named("two-models"), Home(bucket=BUCKET), Progress(io.StringIO()))
    given = {"Image": "localhost/serve", "TrainData": "s3://bucket/data"}
    execution = executions.start(Aws(), "two-models", given, Progress(io.StringIO()))
    begun = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    one = {"StepName": "TrainOne", "StepStatus": "Succeeded", "StartTime": begun}
    one["EndTime"] = begun + dt.timedelta(seconds=61)
    lost = {**one, "StepName": "TrainTwo", "StepStatus": "Failed", "FailureReason": "ClientError: no <data>"}
    aws = Told(("Failed", [one, lost]))
    picture = tmp_path / "run.mmd"

    def said(*words: str) -> tuple[int, list[str], str]:
        code = run_with(["pipeline", "two-models", *words], lambda _: aws)
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
    assert said("show", "--execution", "last", "--picture", str(picture)) == (
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
    assert "no #60;data#62;" in drawn
    picture.unlink()
    code, _, err = said("follow", "--picture", str(picture))
    assert (code, err) == (1, "Failed: A step has failed\n  TrainTwo: ClientError: no <data>\n")
    assert picture.read_text() == drawn

    answered = {"OutputParameters": [{"Name": "statusCode", "Value": "200"}, {"Name": "one", "Value": "one-0.tar.gz"}]}
    smoked = {**one, "StepName": "Smoke", "Metadata": {"Lambda": answered}}
    aws = Told(("Succeeded", [smoked]))
    code, out, _ = said("follow")
    assert (code, out[-1]) == (0, "Smoke: one = one-0.tar.gz")


def test_upsert_creates_everything_that_a_pipeline_needs_once(here: LocalAws, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second upsert changes nothing; if only the function's code differs, only the code is updated."""
    prepared(here)
    aws = Aws("eu-central-1")  # no other test uses this region

    def upsert(name: str) -> list[str]:
        progress = Progress(io.StringIO())
        installation.upsert(aws, named(name), Home(bucket=BUCKET), progress)
        return progress.changes

    first, again = upsert("two-models"), upsert("two-models")
    code = installation.zipped()
    with monkeypatch.context() as changed:
        changed.setattr(installation, "zipped", lambda: code + b" ")
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


def test_roles_are_printed_for_an_administrator(here: LocalAws, capsys: pytest.CaptureFixture[str]) -> None:
    """No statement covers all of an account's buckets, roles or functions."""
    assert main(["pipeline", "two-models", "roles", "--bucket", "mine"]) == 0
    jobs, functions, user = json.loads(capsys.readouterr().out)
    assert [jobs["RoleName"], functions["RoleName"]] == ["two-models-pipeline", "two-models-function"]
    for role in (jobs, functions, user):
        for statement in role["PolicyDocument"]["Statement"]:
            wide = [each for each in ("s3", "iam", "lambda") if f"{each}:" in json.dumps(statement["Action"])]
            assert not wide or "*" not in json.dumps(statement["Resource"]).replace("arn:aws:s3:::mine/*", "")
    assert main(["pipeline", "two-models", "roles"]) == 2
    assert "--bucket is missing" in capsys.readouterr().err


def test_a_repeated_start_has_the_same_token(here: LocalAws) -> None:
    prepared(here)
    aws, progress = Aws(), Progress(io.StringIO())
    installation.upsert(aws, named("two-models"), Home(bucket=BUCKET), progress)
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
    with pytest.raises(SpecError, match="missing parameters: TrainData: give --param TrainData="):
        executions.start(aws, "two-models", {"Image": "x"}, progress)
    with pytest.raises(Failed, match="pipeline other not found"):
        executions.start(aws, "other", {}, progress)
    with pytest.raises(Failed, match="pipeline other not found"):
        executions.latest(aws, "other")

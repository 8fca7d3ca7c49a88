"""Pipelines on this machine, the pure parts: order, draws from a seed, lines batched as SageMaker does."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import SpecError
from deploy.pipelines.definitions import METRIC
from deploy.pipelines.executions import StepState
from local_test.pipelines.execution import Execution, Properties, Running, Step, StepFailed
from local_test.pipelines.jobs import Jobs, Process, metrics, pack
from local_test.pipelines.runner import with_host
from local_test.pipelines.transform import assembled, batches, check_supported
from local_test.pipelines.tuning import drawn
from tests.patience import PATIENCE

FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:none"
Work = Callable[[Step], Properties]


def lambdas(**needs: list[str]) -> dict[str, Any]:
    """Steps that are functions, each after those it needs."""
    steps = [
        {"Name": name, "Type": "Lambda", "FunctionArn": FUNCTION, "Arguments": {}, "DependsOn": before}
        for name, before in needs.items()
    ]
    return {"Version": "2020-12-01", "Steps": steps}


def executed(work: Work, **needs: list[str]) -> Execution:
    done = Execution(lambdas(**needs), {}, "test", lambda *_: None)
    done.run({"Lambda": work}, lambda: None)
    return done


def test_independent_steps_run_at_the_same_time() -> None:
    """Each waits for the other: run in turn, they would never end."""
    both = threading.Barrier(2, timeout=PATIENCE)

    def meet(step: Step) -> Properties:
        if step.name in ("A", "B"):
            both.wait()
        return {}

    assert executed(meet, C=["A", "B"], A=[], B=[]).succeeded


def test_a_failed_step_stops_its_dependents_and_no_other_step() -> None:
    def work(step: Step) -> Properties:
        if step.name == "A":
            raise StepFailed("no rows")
        return {}

    done = executed(work, A=[], B=[], AfterA=["A"], AfterThat=["AfterA"], AfterB=["B"])

    assert {name: (shown.status, shown.reason) for name, shown in done.steps.items()} == {
        "A": ("Failed", "no rows"),
        "B": ("Succeeded", ""),
        "AfterA": ("NotRun", "not run: A has not succeeded"),
        "AfterThat": ("NotRun", "not run: AfterA has not succeeded"),
        "AfterB": ("Succeeded", ""),
    }
    assert not done.succeeded


def test_a_fault_of_the_runner_fails_its_step() -> None:
    def work(step: Step) -> Properties:
        raise KeyError("x")

    assert executed(work, A=[]).steps["A"].reason == "KeyError: 'x'"


def test_the_result_of_a_step_is_in_the_arguments_of_the_next() -> None:
    def step(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        outputs = [{"OutputName": "uri", "OutputType": "String"}]
        return {
            "Name": name,
            "Type": "Lambda",
            "FunctionArn": FUNCTION,
            "Arguments": arguments,
            "OutputParameters": outputs,
        }

    seen: dict[str, Any] = {}

    def work(turn: Step) -> Properties:
        seen[turn.name] = turn.arguments
        return {"OutputParameters": {"uri": f"s3://bucket/{turn.name}"}}

    second = {
        "from": {"Get": "Steps.One.OutputParameters['uri']"},
        "to": {"Std:Join": {"On": "/", "Values": [{"Get": "Parameters.Home"}, {"Get": "Execution.PipelineName"}]}},
    }
    made = {
        "Version": "2020-12-01",
        "Parameters": [{"Name": "Home", "Type": "String"}],
        "Steps": [step("Two", second), step("One", {})],
    }
    told: list[tuple[str, str]] = []

    def tell(name: str, shown: StepState) -> None:
        told.append((name, shown.status))

    done = Execution(made, {"Home": "s3://h"}, "test", tell)
    done.run({"Lambda": work}, lambda: None)

    assert seen["Two"] == {"from": "s3://bucket/One", "to": "s3://h/test"}
    assert told == [("One", "Executing"), ("One", "Succeeded"), ("Two", "Executing"), ("Two", "Succeeded")]


def test_an_invalid_definition_runs_no_step() -> None:
    ran: list[str] = []

    def work(step: Step) -> Properties:
        ran.append(step.name)
        return {}

    made = {"Version": "2020-12-01", "Steps": [{"Name": "A", "Type": "Training", "Arguments": {"Role": "x"}}]}
    with pytest.raises(SpecError, match=r"Steps\.A\.Arguments: CreateTrainingJob"):
        Execution(made, {}, "test", lambda *_: None).run({"Training": work}, lambda: None)
    assert ran == []


RANGES = {
    "ContinuousParameterRanges": [
        {"Name": "eta", "MinValue": "0.01", "MaxValue": "1", "ScalingType": "Logarithmic"},
        {"Name": "gamma", "MinValue": "0", "MaxValue": "5"},
    ],
    "IntegerParameterRanges": [{"Name": "depth", "MinValue": "3", "MaxValue": "8"}],
    "CategoricalParameterRanges": [{"Name": "method", "Values": ["hist", "exact"]}],
}


def test_draws_are_within_their_ranges_and_the_same_for_a_seed() -> None:
    draws = [drawn(RANGES, 1, number) for number in range(300)]

    etas = [float(each["eta"]) for each in draws]
    assert all(0.01 <= eta <= 1 for eta in etas)
    assert sum(eta < 0.1 for eta in etas) > 100  # by the logarithm half of them; evenly a tenth
    assert {each["depth"] for each in draws} == {"3", "4", "5", "6", "7", "8"}
    assert {each["method"] for each in draws} == {"hist", "exact"}
    assert draws == [drawn(RANGES, 1, number) for number in range(300)]
    assert draws != [drawn(RANGES, 2, number) for number in range(300)]


def test_a_payload_has_as_many_lines_as_fit() -> None:
    body = b"aaaa\nbb\ncc\ndddd"
    assert list(batches(body, "None", "MultiRecord", 8)) == [body]
    assert list(batches(body, "Line", "SingleRecord", 8)) == [b"aaaa\n", b"bb\n", b"cc\n", b"dddd"]
    assert list(batches(body, "Line", "MultiRecord", 8)) == [b"aaaa\nbb\n", b"cc\ndddd"]
    with pytest.raises(StepFailed, match="a record of 5 bytes is over MaxPayloadInMB"):
        list(batches(body, "Line", "MultiRecord", 4))


def test_a_carriage_return_within_a_field_ends_no_record() -> None:
    body = b'"a\rb",1\r\nc,2\r\n'
    assert list(batches(body, "Line", "SingleRecord", 100)) == [b'"a\rb",1\r\n', b"c,2\r\n"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"SplitType": "RecordIO"},
            "SplitType RecordIO is not supported on this machine, only None and Line: run",
        ),
        ({"SplitType": "TFRecord"}, "SplitType TFRecord is not supported"),
        ({"DataSource": {"S3DataSource": {"S3DataType": "ManifestFile"}}}, "S3DataType ManifestFile is not supported"),
    ],
)
def test_an_unsupported_transform_is_refused(wrong: dict[str, Any], said: str) -> None:
    plain = {"SplitType": "Line", "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix"}}}
    check_supported({"TransformInput": plain})
    with pytest.raises(StepFailed, match=said):
        check_supported({"TransformInput": {**plain, **wrong}})
    with pytest.raises(StepFailed, match="DataProcessing is not supported"):
        check_supported({"TransformInput": plain, "DataProcessing": {"JoinSource": "Input"}})


@pytest.mark.parametrize(
    ("kind", "mode", "said"),
    [
        (
            "ManifestFile",
            "File",
            "S3DataType ManifestFile of s3://b/in is not supported on this machine, only",
        ),
        ("S3Prefix", "Pipe", "TrainingInputMode Pipe is not supported on this machine: use File or FastFile"),
    ],
)
def test_an_unsupported_training_is_refused(tmp_path: Path, kind: str, mode: str, said: str) -> None:
    """A manifest is not used as if it were the data."""
    source = {"S3Uri": "s3://b/in", "S3DataType": kind}
    asked = {
        "AlgorithmSpecification": {"TrainingImage": "any", "TrainingInputMode": mode},
        "InputDataConfig": [{"ChannelName": "train", "DataSource": {"S3DataSource": source}}],
    }
    with pytest.raises(StepFailed, match=said):
        Jobs(None, Process(Running()), tmp_path).training("job", asked)


def test_a_stop_ends_running_work_and_work_that_starts_after_it() -> None:
    ended: list[str] = []
    running = Running()
    with running.held(lambda: ended.append("over")):
        pass
    with running.held(lambda: ended.append("first")), running.held(lambda: ended.append("second")):
        running.stop()
        assert ended == ["first", "second"]
    with running.held(lambda: ended.append("late")):
        assert ended == ["first", "second", "late"]


def test_ctrl_c_stops_the_steps_that_run() -> None:
    """KeyboardInterrupt is raised in the thread that waits; here the report of a step that cannot run raises it."""
    stopped = threading.Event()

    def work(step: Step) -> Properties:
        if step.name == "Runs":
            assert stopped.wait(PATIENCE)
        raise StepFailed("no rows, or killed")

    def tell(name: str, shown: StepState) -> None:
        if shown.status == "NotRun":
            raise KeyboardInterrupt

    done = Execution(lambdas(Runs=[], Fails=[], After=["Fails"]), {}, "test", tell)
    with pytest.raises(KeyboardInterrupt):
        done.run({"Lambda": work}, stopped.set)

    assert (done.steps["Runs"].status, done.steps["Runs"].reason) == ("Stopped", "")


def test_an_image_has_a_name_that_is_not_looked_up_in_ecr() -> None:
    """Each image has its own: concurrent runs with two images do not mix them up."""
    assert with_host("sagemaker-serve") == "localhost/sagemaker-serve"
    assert with_host("mine:v1") == "localhost/mine:v1"
    assert with_host("localhost/mine:v1") == "localhost/mine:v1"


def test_responses_are_assembled_as_sagemaker_does() -> None:
    """A newline follows each response; after a response that ends in a newline this is an empty line."""
    assert assembled([b"1\n2", b"3\n"], "Line") == b"1\n2\n3\n\n"
    assert assembled([b"1\n", b"3"], "None") == b"1\n3"


def test_the_last_value_of_a_metric_is_used(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "[0]#011train-rmse:9.1#011validation-rmse:9.5\nnoise\n[1]#011train-rmse:8.1#011validation-rmse:8.25\n"
    )
    assert metrics(log, [{"Name": "validation:rmse", "Regex": METRIC}]) == {"validation:rmse": 8.25}
    assert metrics(log, [{"Name": "x", "Regex": "x:(.*)"}]) == {}


def test_equal_files_make_an_equal_archive(tmp_path: Path) -> None:
    for number in (1, 2):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "model.ubj").write_bytes(b"x" * 1000)
        pack(directory, tmp_path / f"{number}.tar.gz")
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()

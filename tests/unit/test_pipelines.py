"""Pipelines are checked before AWS sees them: a wrong definition is refused with the path of what is wrong in it."""

import copy
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from deploy import pipelines
from deploy.aws import Failed
from deploy.pipelines import Given, definition, picture, split, tuned_model
from deploy.pipelines.expressions import found, resolved
from deploy.pipelines.parameters import values_of
from deploy.pipelines.picture import Shown
from deploy.pipelines.steps import TYPES
from deploy.table import SpecError

GIVEN = Given(
    role="arn:aws:iam::123456789012:role/pipelines",
    function="arn:aws:lambda:us-east-1:123456789012:function:two-models",
    home="s3://bucket/home",
    scripts="s3://bucket/scripts/0123",
)
NAMES = list(pipelines.PIPELINES)


def defined(name: str = "two-models") -> dict[str, Any]:
    return copy.deepcopy(pipelines.defined(name, GIVEN))


@pytest.mark.parametrize("name", NAMES)
def test_our_own_definitions_are_good_and_small(name: str) -> None:
    made = defined(name)

    definition.check(made)

    assert json.loads(json.dumps(made)) == made
    assert len(json.dumps(made)) < 10_000


def test_steps_run_when_what_they_need_is_there() -> None:
    assert definition.order(defined("two-models")) == {
        "TrainOne": set(),
        "TrainTwo": set(),
        "DeployMME": {"TrainOne", "TrainTwo"},
        "Smoke": {"DeployMME"},
    }
    assert definition.order(defined("tuned-model")) == {
        "Process": set(),
        "Tune": {"Process"},
        "Register": {"Tune"},
        "Create": {"Tune"},
        "Score": {"Process", "Create"},
    }


def broken(path: str, value: Any) -> dict[str, Any]:
    """two-models with one thing in it set to another; None takes it out."""
    made: Any = defined()
    *way, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    at = made
    for part in way:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("Version", "2021-01-01", "definition.Version must be '2020-12-01'"),
        ("Steps", None, "definition.Steps is missing"),
        ("Step", [], "definition: no key is called 'Step'; did you mean Steps?"),
        ("Steps/0/Name", "Train One", "Steps[0].Name: 'Train One' must be"),
        ("Steps/1/Name", "TrainOne", "two steps are called 'TrainOne'"),
        ("Steps/0/Type", "Trainin", "Steps.TrainOne.Type: no type of step is called 'Trainin'; did you mean Training?"),
        ("Steps/0/Argument", {}, "Steps.TrainOne: no key is called 'Argument'; did you mean Arguments?"),
        ("Steps/0/DependsOn", ["TrainTree"], "Steps.TrainOne.DependsOn: no step is called 'TrainTree'"),
        ("Steps/0/DependsOn", ["DeployMME"], "TrainOne, DeployMME, Smoke wait for one another"),
        ("Steps/2/FunctionArn", None, "Steps.DeployMME.FunctionArn is missing"),
        ("Parameters/0/Type", "Text", "Parameters[0].Type: no type is called 'Text'"),
        ("Parameters/6/DefaultValue", "many", "Parameters[6].DefaultValue: 'many' is no Integer"),
        (
            "Steps/0/Arguments/RoleArn",
            {"Get": "Parameters.Rle"},
            "Steps.TrainOne.Arguments.RoleArn: Get 'Parameters.Rle'",
        ),
        ("Steps/0/Arguments/RoleArn", {"Get": "Param.Image"}, "no root is called 'Param'; did you mean Parameters?"),
        ("Steps/0/Arguments/RoleArn", {"Get": "Execution.Id"}, "no property of an execution is called 'Id'"),
        ("Steps/2/Arguments/prefix", {"Get": "Steps.TrainTree.X"}, "no step is called 'TrainTree'"),
        (
            "Steps/2/Arguments/artifacts/one",
            {"Get": "Steps.TrainOne.ModelArtifact.S3ModelArtifacts"},
            "no property of DescribeTrainingJobResponse is called 'ModelArtifact'; did you mean ModelArtifacts?",
        ),
        ("Steps/2/Arguments/prefix", {"Std:Joint": {}}, "Steps.DeployMME.Arguments.prefix: Std:Joint is not known"),
        ("Steps/2/Arguments/prefix", {"Std:Join": ["a"]}, 'Std:Join wants {"On"'),
        ("Steps/2/Arguments/prefix", {"Get": "Execution.PipelineName", "On": 1}, "Get stands alone"),
        (
            "Steps/0/Arguments/ResourceConfig/InstanceTyp",
            "ml.m5.large",
            "Unknown parameter in ResourceConfig: \"InstanceTyp\", must be one of",
        ),
        ("Steps/0/Arguments/OutputDataConfig", None, 'Missing required parameter in input: "OutputDataConfig"'),
        (
            "Steps/0/Arguments/ResourceConfig/InstanceType",
            "ml.m5.huge",
            "Steps.TrainOne.Arguments: CreateTrainingJob: ResourceConfig.InstanceType",
        ),
        ("Steps/0/Arguments/RoleArn", "role/of-the-pipelines", "Steps.TrainOne.Arguments: CreateTrainingJob: RoleArn"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_path(path: str, value: Any, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        definition.check(broken(path, value))
    assert said in str(refused.value)


def test_an_output_that_a_processing_step_does_not_make_is_no_input_of_another() -> None:
    made = defined("tuned-model")
    made["Steps"][4]["Arguments"]["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"] = {
        "Get": "Steps.Process.ProcessingOutputConfig.Outputs['tests'].S3Output.S3Uri"
    }
    with pytest.raises(SpecError, match="nothing is called 'tests' in the arguments of Process"):
        definition.check(made)


def test_parameters_are_of_their_type_known_and_complete() -> None:
    made = defined("tuned-model")
    some = {"Image": "i", "InputData": "s3://b/in", "Output": "s3://b/out", "MaxJobs": "3"}

    values = values_of(made, some)

    assert values["MaxJobs"] == 3
    assert values["ApprovalStatus"] == "PendingManualApproval"
    for wrong, said in [
        ({"MaxJob": "3"}, "no parameter is called 'MaxJob'; did you mean MaxJobs"),
        ({**some, "MaxJobs": "three"}, "parameter MaxJobs: 'three' is no Integer"),
        ({**some, "ApprovalStatus": "Aproved"}, "did you mean Approved"),
        ({"Image": "i"}, "give InputData: --param InputData="),
    ]:
        with pytest.raises(SpecError, match=said):
            values_of(made, wrong)


def test_given_parameters_are_checked_as_aws_checks_them() -> None:
    """Without a value there is nothing to check; with one the request that it is for says what is wrong."""
    with pytest.raises(SpecError, match=r"Steps.TrainOne.Arguments: CreateTrainingJob: InputDataConfig\[0\]"):
        definition.check(defined(), {"TrainData": "http://example.com"})


def test_expressions_come_to_values() -> None:
    known = {"Parameters.Name": "x", "Parameters.Rounds": 40}.__getitem__
    got = resolved(
        {"a": [{"Get": "Parameters.Name"}], "b": {"Std:Join": {"On": "", "Values": [{"Get": "Parameters.Rounds"}]}}},
        known,
        "Here",
    )
    assert got == {"a": ["x"], "b": "40"}


def test_a_path_goes_by_name_number_and_the_name_of_an_item() -> None:
    value = {"Outputs": [{"OutputName": "train", "S3Output": {"S3Uri": "s3://b/1"}}, {"OutputName": "test"}]}
    assert found(value, ".Outputs['train'].S3Output.S3Uri") == "s3://b/1"
    assert found(value, ".Outputs[1].OutputName") == "test"
    for wrong in (".Outputs[2]", ".Outputs['other']", ".Output", ".Outputs..x"):
        with pytest.raises(SpecError):
            found(value, wrong)


def test_the_picture_has_each_step_once_in_its_colour_and_no_two_overlap() -> None:
    waits = definition.order(defined("tuned-model"))
    steps = {name: Shown(kind="Training", status="Succeeded", seconds=1.0) for name in waits}
    steps["Score"] = Shown(kind="Transform", status="Failed", reason='no "<rows>"')

    root = ET.fromstring(picture.svg("tuned-model", waits, steps))

    space = "{http://www.w3.org/2000/svg}"
    boxes = [group.find(f"{space}rect") for group in root.findall(f"{space}g")]
    at = [(float(box.get("x", "")), float(box.get("y", ""))) for box in boxes if box is not None]
    fills = [box.get("fill") for box in boxes if box is not None]
    assert len(set(at)) == len(waits)
    assert all(
        abs(x - u) >= picture.WIDTH or abs(y - v) >= picture.HEIGHT for x, y in at for u, v in at if (x, y) != (u, v)
    )
    assert fills == [picture.COLOURS["Succeeded"][0]] * 4 + [picture.COLOURS["Failed"][0]]
    assert len(root.findall(f"{space}path")) == 4  # Process to Score goes by way of Tune
    assert max(x for x, _ in at) + picture.WIDTH < float(root.get("width", ""))


def test_what_a_box_says_fits_into_it() -> None:
    """Whatever the step's type, state and time: 0.55 em is the mean width of DejaVu Sans, the widest that is common."""
    lines = [
        Shown(kind=kind, status=status, seconds=seconds).line
        for kind in TYPES
        for status in ("", *picture.COLOURS)
        for seconds in (None, 9.94, 119.4, 7200.0)
    ]
    assert max(map(len, lines)) <= picture.LINE
    assert picture.LINE * 11 * 0.55 <= picture.WIDTH - 24


def test_a_picture_that_cannot_be_written_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"could not be written to .*: Is a directory"):
        picture.write(tmp_path, "x", {"A": set()}, {"A": Shown(kind="Model")})


def test_the_tree_is_in_order_and_says_why_a_step_failed() -> None:
    waits = definition.order(defined())
    steps = {name: Shown(kind="Training") for name in waits}
    steps["TrainTwo"] = Shown(kind="Training", status="Failed", seconds=2.25, reason="no rows")
    assert picture.tree("two-models", waits, steps).splitlines() == [
        "two-models",
        "  o TrainOne       Training",
        "  x TrainTwo       Training, Failed, 2.2 s",
        "      no rows",
        "    o DeployMME    Training  after TrainOne, TrainTwo",
        "      o Smoke      Training  after DeployMME",
    ]


def test_rows_are_split_without_loss_and_alike_each_time(tmp_path: Path) -> None:
    source, script = tmp_path / "in", Path(split.__file__)
    source.mkdir()
    rows = [f"{number},{number + 0.5},a" for number in range(100)]
    (source / "rows.csv").write_text("\n".join(rows) + "\n")

    for target in ("one", "two"):
        subprocess.run([sys.executable, "-I", str(script), str(source), str(tmp_path / target)], check=True)

    def lines(part: str, target: str = "one") -> list[str]:
        return (tmp_path / target / part / f"{part}.csv").read_text().splitlines()

    assert [len(lines(part)) for part in tuned_model.PARTS] == [70, 15, 15, 15]
    test = [f"{label},{row}" for label, row in zip(lines("truth"), lines("test"), strict=True)]
    assert sorted(lines("train") + lines("validation") + test) == sorted(rows)
    assert all(lines(part) == lines(part, "two") for part in tuned_model.PARTS)

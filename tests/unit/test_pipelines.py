"""Pipelines are checked offline: an invalid definition is refused with the path of the invalid value."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import Failed, SpecError
from deploy.pipelines import definitions, executions, split, validation
from deploy.pipelines.definitions import Given
from deploy.pipelines.executions import StepState
from deploy.pipelines.expressions import found, resolved
from deploy.pipelines.validation import values_of

GIVEN = Given(
    role="arn:aws:iam::123456789012:role/pipelines",
    function="arn:aws:lambda:us-east-1:123456789012:function:two-models",
    home="s3://bucket/home",
    scripts="s3://bucket/scripts/0123",
)
NAMES = list(definitions.PIPELINES)


def defined(name: str = "two-models") -> dict[str, Any]:
    return copy.deepcopy(definitions.defined(name, GIVEN))


@pytest.mark.parametrize("name", NAMES)
def test_our_own_definitions_are_good_and_small(name: str) -> None:
    made = defined(name)

    validation.check(made)

    assert json.loads(json.dumps(made)) == made
    assert len(json.dumps(made)) < 10_000


def test_steps_run_after_the_steps_that_they_need() -> None:
    assert validation.order(defined("two-models")) == {
        "TrainOne": set(),
        "TrainTwo": set(),
        "DeployMME": {"TrainOne", "TrainTwo"},
        "Smoke": {"DeployMME"},
    }
    assert validation.order(defined("tuned-model")) == {
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
        ("Step", [], "definition: unknown key 'Step'; did you mean Steps?"),
        ("Steps/0/Name", "Train One", "Steps[0].Name: 'Train One' must be"),
        ("Steps/1/Name", "TrainOne", "two steps have the name 'TrainOne'"),
        ("Steps/0/Type", "Trainin", "Steps.TrainOne.Type: unknown type of step 'Trainin'; did you mean Training?"),
        ("Steps/0/Argument", {}, "Steps.TrainOne: unknown key 'Argument'; did you mean Arguments?"),
        ("Steps/0/DependsOn", ["TrainTree"], "Steps.TrainOne.DependsOn: unknown step 'TrainTree'"),
        ("Steps/0/DependsOn", ["DeployMME"], "TrainOne, DeployMME, Smoke wait for one another"),
        ("Steps/2/FunctionArn", None, "Steps.DeployMME.FunctionArn is missing"),
        ("Parameters/0/Type", "Text", "Parameters[0].Type: unknown type 'Text'"),
        ("Parameters/6/DefaultValue", "many", "Parameters[6].DefaultValue: 'many' is not of type Integer"),
        (
            "Steps/0/Arguments/RoleArn",
            {"Get": "Parameters.Rle"},
            "Steps.TrainOne.Arguments.RoleArn: Get 'Parameters.Rle'",
        ),
        ("Steps/0/Arguments/RoleArn", {"Get": "Param.Image"}, "unknown root 'Param'; did you mean Parameters?"),
        ("Steps/0/Arguments/RoleArn", {"Get": "Execution.Id"}, "unknown property 'Id' of an execution"),
        ("Steps/2/Arguments/prefix", {"Get": "Steps.TrainTree.X"}, "unknown step 'TrainTree'"),
        (
            "Steps/2/Arguments/artifacts/one",
            {"Get": "Steps.TrainOne.ModelArtifact.S3ModelArtifacts"},
            "unknown property 'ModelArtifact' of DescribeTrainingJobResponse; did you mean ModelArtifacts?",
        ),
        ("Steps/2/Arguments/prefix", {"Std:Joint": {}}, "DeployMME.Arguments.prefix: unsupported operator Std:Joint"),
        ("Steps/2/Arguments/prefix", {"Std:Join": ["a"]}, 'Std:Join must be {"On"'),
        ("Steps/2/Arguments/prefix", {"Get": "Execution.PipelineName", "On": 1}, "Get must be the only key"),
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
def test_an_invalid_value_is_named_with_its_path(path: str, value: Any, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        validation.check(broken(path, value))
    assert said in str(refused.value)


def test_an_output_that_a_processing_step_does_not_have_is_no_input_of_another() -> None:
    made = defined("tuned-model")
    made["Steps"][4]["Arguments"]["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"] = {
        "Get": "Steps.Process.ProcessingOutputConfig.Outputs['tests'].S3Output.S3Uri"
    }
    with pytest.raises(SpecError, match="'tests' not found in the arguments of Process"):
        validation.check(made)


def test_parameters_are_of_their_type_known_and_complete() -> None:
    made = defined("tuned-model")
    some = {"Image": "i", "InputData": "s3://b/in", "Output": "s3://b/out", "MaxJobs": "3"}

    values = values_of(made, some)

    assert values["MaxJobs"] == 3
    assert values["ApprovalStatus"] == "PendingManualApproval"
    for wrong, said in [
        ({"MaxJob": "3"}, "unknown parameter 'MaxJob'; did you mean MaxJobs"),
        ({**some, "MaxJobs": "three"}, "parameter MaxJobs: 'three' is not of type Integer"),
        ({**some, "ApprovalStatus": "Aproved"}, "did you mean Approved"),
        ({"Image": "i"}, "missing parameters: InputData: give --param InputData="),
    ]:
        with pytest.raises(SpecError, match=said):
            values_of(made, wrong)


def test_given_parameters_are_checked_as_aws_checks_them() -> None:
    """A parameter without a value is not checked; with a value the request that uses it is."""
    with pytest.raises(SpecError, match=r"Steps.TrainOne.Arguments: CreateTrainingJob: InputDataConfig\[0\]"):
        validation.check(defined(), {"TrainData": "http://example.com"})


def test_expressions_are_replaced_by_values() -> None:
    known = {"Parameters.Name": "x", "Parameters.Rounds": 40}.__getitem__
    got = resolved(
        {"a": [{"Get": "Parameters.Name"}], "b": {"Std:Join": {"On": "", "Values": [{"Get": "Parameters.Rounds"}]}}},
        known,
        "Here",
        str,
    )
    assert got == {"a": ["x"], "b": "40"}


def test_a_path_has_names_numbers_and_names_of_items() -> None:
    value = {"Outputs": [{"OutputName": "train", "S3Output": {"S3Uri": "s3://b/1"}}, {"OutputName": "test"}]}
    assert found(value, ".Outputs['train'].S3Output.S3Uri") == "s3://b/1"
    assert found(value, ".Outputs[1].OutputName") == "test"
    for wrong in (".Outputs[2]", ".Outputs['other']", ".Output", ".Outputs..x"):
        with pytest.raises(SpecError):
            found(value, wrong)


def test_the_diagram_has_each_step_once_in_its_colour_and_only_direct_arrows() -> None:
    waits = validation.order(defined("tuned-model"))
    steps = {name: StepState(kind="Training", status="Succeeded", seconds=1.0) for name in waits}
    steps["Score"] = StepState(kind="Transform", status="Failed", reason="no rows")

    assert executions.mermaid("tuned-model", waits, steps).splitlines() == [
        *("---", 'title: "tuned-model"', "---", "flowchart LR"),
        '  s0["Process<br>Training, Succeeded, 1.0 s"]:::Succeeded',
        '  s1["Tune<br>Training, Succeeded, 1.0 s"]:::Succeeded',
        '  s2["Register<br>Training, Succeeded, 1.0 s"]:::Succeeded',
        '  s3["Create<br>Training, Succeeded, 1.0 s"]:::Succeeded',
        '  s4["Score<br>Transform, Failed<br>no rows"]:::Failed',
        *("  s0 --> s1", "  s1 --> s2", "  s1 --> s3", "  s3 --> s4"),  # Process to Score goes by way of Create
        "  classDef Failed fill:#fbdcdc,stroke:#b3261e,color:#222",
        "  classDef Succeeded fill:#d7f0dd,stroke:#1e7b34,color:#222",
    ]


@pytest.mark.parametrize("status", [*executions.COLOURS, "", "SomethingNew"])
def test_a_box_has_the_colour_of_every_known_state(status: str) -> None:
    """A state without a colour has no class; Mermaid would refuse an undefined one."""
    drawn = executions.mermaid("x", {"A": set()}, {"A": StepState(kind="Model", status=status)})
    assert (f":::{status}" in drawn and f"classDef {status} " in drawn) == (status in executions.COLOURS)
    assert ("classDef" in drawn) == (status in executions.COLOURS)


def test_a_reason_cannot_break_the_diagram() -> None:
    """Quotes, markup and line breaks are escaped, and a long reason is cut."""
    reason = 'ClientError: no "<data>" & `x`;\n#1 ' + "y" * 500
    drawn = executions.mermaid("x", {"end": set()}, {"end": StepState(kind="Model", status="Failed", reason=reason)})
    (box,) = (line for line in drawn.splitlines() if line.startswith("  s0"))
    label = box.removeprefix('  s0["').removesuffix('"]:::Failed')
    assert "no #34;#60;data#62;#34; #38; #96;x#96;; #35;1 yyy" in label
    assert not set('"`&') & set(label)
    assert len(label) < 200


def test_a_diagram_for_markdown_is_a_fenced_block(tmp_path: Path) -> None:
    waits, steps = {"A": set[str]()}, {"A": StepState(kind="Model")}
    for name in ("run.md", "run.mmd"):
        executions.write(tmp_path / name, "x", waits, steps)
    plain = (tmp_path / "run.mmd").read_text()
    assert plain == executions.mermaid("x", waits, steps)
    assert (tmp_path / "run.md").read_text() == f"```mermaid\n{plain}```\n"


def test_a_diagram_that_cannot_be_written_is_an_error_without_traceback(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"could not be written to .*: Is a directory"):
        executions.write(tmp_path, "x", {"A": set()}, {"A": StepState(kind="Model")})


def test_the_tree_is_in_order_and_has_the_reason_of_a_failure() -> None:
    waits = validation.order(defined())
    steps = {name: StepState(kind="Training") for name in waits}
    steps["TrainTwo"] = StepState(kind="Training", status="Failed", seconds=2.25, reason="no rows")
    assert executions.tree("two-models", waits, steps).splitlines() == [
        "two-models",
        "  o TrainOne       Training",
        "  x TrainTwo       Training, Failed, 2.2 s",
        "      no rows",
        "    o DeployMME    Training  after TrainOne, TrainTwo",
        "      o Smoke      Training  after DeployMME",
    ]


def test_rows_are_split_without_loss_and_alike_in_every_run(tmp_path: Path) -> None:
    source, script = tmp_path / "in", Path(split.__file__)
    source.mkdir()
    rows = [f"{number},{number + 0.5},a" for number in range(100)]
    (source / "rows.csv").write_text("\n".join(rows) + "\n")

    for target in ("one", "two"):
        subprocess.run([sys.executable, "-I", str(script), str(source), str(tmp_path / target)], check=True)

    def lines(part: str, target: str = "one") -> list[str]:
        return (tmp_path / target / part / f"{part}.csv").read_text().splitlines()

    assert [len(lines(part)) for part in definitions.PARTS] == [70, 15, 15, 15]
    test = [f"{label},{row}" for label, row in zip(lines("truth"), lines("test"), strict=True)]
    assert sorted(lines("train") + lines("validation") + test) == sorted(rows)
    assert all(lines(part) == lines(part, "two") for part in definitions.PARTS)

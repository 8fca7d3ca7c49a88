"""Pipelines on the emulator: definitions as the SageMaker SDK writes them, executed through boto3 alone."""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.live.account import ROLE, Account, account, refusal
from tests.live.stack import wait_until

FUNCTION_ROLE = "arn:aws:iam::123456789012:role/function"
TRUST = {
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}]
}
ENDED = ("Succeeded", "Failed", "Stopped")
CODE = """
def echo(event, context):
    return {**event, "function": context.function_name}


def count(event, context):
    import boto3
    s3 = boto3.client("s3")
    found = s3.list_objects_v2(Bucket=event["bucket"], Prefix=event.get("prefix", ""))
    return {"count": found["KeyCount"], "large": found["KeyCount"] > 1, "mean": 0.5, "more": {"a": 1}}


def fail(event, context):
    import boto3
    if boto3.client("s3").list_objects_v2(Bucket=event["bucket"], Prefix=event["unless"])["KeyCount"]:
        return {}
    raise ValueError(f"no {event['unless']}")


def sleep(event, context):
    import time
    time.sleep(3600)
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """An account with a role for functions."""
    with account(tmp_path_factory.mktemp("w")) as made:
        iam = made.platform.client("iam")
        try:
            iam.create_role(RoleName="function", AssumeRolePolicyDocument=json.dumps(TRUST))
        except iam.exceptions.EntityAlreadyExistsException:
            pass  # moto keeps it for the life of the process
        yield made


def function(aws: Account, handler: str, **settings: Any) -> str:
    """The ARN of a function with CODE; it is created as the SDK's helper does."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("handlers.py", CODE)
    client = aws.platform.client("lambda")
    given = {"Runtime": "python3.10", "Role": FUNCTION_ROLE, "Timeout": 60, **settings}
    code = {"ZipFile": packed.getvalue()}
    try:
        made = client.create_function(FunctionName=handler, Handler=f"handlers.{handler}", Code=code, **given)
    except client.exceptions.ResourceConflictException:
        made = client.get_function_configuration(FunctionName=handler)
    return str(made["FunctionArn"])


def get(path: str) -> dict[str, str]:
    return {"Get": path}


def lambda_step(name: str, arn: str, arguments: Mapping[str, Any], outputs: str = "", **more: Any) -> dict[str, Any]:
    """`outputs`: name:Type, separated by spaces."""
    pairs = [each.split(":") for each in outputs.split()]
    declared = [{"OutputName": key, "OutputType": kind} for key, kind in pairs]
    return {
        "Name": name,
        "Type": "Lambda",
        "Arguments": arguments,
        "FunctionArn": arn,
        "OutputParameters": declared,
        **more,
    }


def definition(*steps: Mapping[str, Any], parameters: list[dict[str, Any]] | None = None) -> str:
    """As Pipeline.definition() of the SDK returns it."""
    experiment = {"ExperimentName": get("Execution.PipelineName"), "TrialName": get("Execution.PipelineExecutionId")}
    whole = {"Version": "2020-12-01", "Metadata": {}, "Parameters": parameters or []}
    return json.dumps({**whole, "PipelineExperimentConfig": experiment, "MlflowConfig": None, "Steps": list(steps)})


def create(aws: Account, name: str, *steps: Mapping[str, Any], **more: Any) -> str:
    made = aws.sagemaker.create_pipeline(PipelineName=name, RoleArn=ROLE, PipelineDefinition=definition(*steps, **more))
    return str(made["PipelineArn"])


def start(aws: Account, name: str, **given: Any) -> str:
    parameters = [{"Name": key, "Value": str(value)} for key, value in given.items()]
    started = aws.sagemaker.start_pipeline_execution(PipelineName=name, PipelineParameters=parameters)
    return str(started["PipelineExecutionArn"])


def ended(aws: Account, arn: str) -> dict[str, Any]:
    """The execution's description once it has ended."""

    def when() -> dict[str, Any] | None:
        described = aws.sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
        return described if described["PipelineExecutionStatus"] in ENDED else None

    return wait_until(when)  # type: ignore[no-any-return]


def steps(aws: Account, arn: str) -> dict[str, dict[str, Any]]:
    listed = aws.sagemaker.list_pipeline_execution_steps(PipelineExecutionArn=arn, SortOrder="Ascending")
    return {step["StepName"]: step for step in listed["PipelineExecutionSteps"]}


def test_values_flow_from_a_function_through_a_condition_to_a_model(aws: Account) -> None:
    """Typed outputs, a join, a branch with a nested condition, and steps that depend on a branch that is not taken."""
    counts, echo = function(aws, "count"), function(aws, "echo")
    container = {
        "Image": "serve",
        "Environment": {
            "COUNT": {"Std:Join": {"On": "-", "Values": ["n", get("Steps.Count.OutputParameters['count']")]}}
        },
    }
    inner = {
        "Name": "Large",
        "Type": "Condition",
        "Arguments": {
            "Conditions": [
                {"Type": "Equals", "LeftValue": get("Steps.Count.OutputParameters['large']"), "RightValue": True}
            ],
            "IfSteps": [lambda_step("Never", echo, {})],
            "ElseSteps": [
                {
                    "Name": "Create",
                    "Type": "Model",
                    "Arguments": {"PrimaryContainer": container, "ExecutionRoleArn": ROLE},
                }
            ],
        },
    }
    outer = {
        "Name": "Enough",
        "Type": "Condition",
        "Arguments": {
            "Conditions": [
                {
                    "Type": "GreaterThanOrEqualTo",
                    "LeftValue": get("Steps.Count.OutputParameters['count']"),
                    "RightValue": get("Parameters.Least"),
                },
                {
                    "Type": "Not",
                    "Condition": {"Type": "In", "QueryValue": get("Parameters.Mode"), "Values": ["off", "none"]},
                },
            ],
            "IfSteps": [inner],
            "ElseSteps": [{"Name": "Stop", "Type": "Fail", "Arguments": {"ErrorMessage": "too few"}}],
        },
    }
    after = lambda_step(
        "After",
        echo,
        {"model": get("Steps.Create.ModelName"), "mean": get("Steps.Count.OutputParameters['mean']")},
        "model:String mean:Float",
    )
    lost = lambda_step("Lost", echo, {}, DependsOn=["Never"])
    parameters = [
        {"Name": "Least", "Type": "Float", "DefaultValue": 0.5},
        {"Name": "Mode", "Type": "String", "DefaultValue": "on", "EnumValues": ["on", "off"]},
    ]
    aws.s3.create_bucket(Bucket="flow")
    aws.s3.put_object(Bucket="flow", Key="one", Body=b"")
    count = lambda_step("Count", counts, {"bucket": "flow"}, "count:Integer large:Boolean mean:Float more:String")
    create(aws, "flow", lost, after, outer, count, parameters=parameters)

    good, bad = start(aws, "flow"), start(aws, "flow", Least=2)

    assert ended(aws, good)["PipelineExecutionStatus"] == "Succeeded", steps(aws, good)
    done = steps(aws, good)
    assert {name: step["StepStatus"] for name, step in done.items()} == dict.fromkeys(
        ["Count", "Enough", "Large", "Create", "After"], "Succeeded"
    )
    assert done["Enough"]["Metadata"] == {"Condition": {"Outcome": "True"}}
    assert done["Large"]["Metadata"] == {"Condition": {"Outcome": "False"}}
    assert done["Count"]["Metadata"]["Lambda"]["OutputParameters"] == [
        {"Name": "count", "Value": "1"},
        {"Name": "large", "Value": "false"},
        {"Name": "mean", "Value": "0.5"},
        {"Name": "more", "Value": '{"a": 1}'},
    ]
    name = done["Create"]["Metadata"]["Model"]["Arn"].rpartition("/")[2]
    assert name.startswith(f"pipelines-{good.rpartition('/')[2]}-Create-")
    assert aws.sagemaker.describe_model(ModelName=name)["PrimaryContainer"]["Environment"] == {"COUNT": "n-1"}
    assert done["After"]["Metadata"]["Lambda"]["OutputParameters"] == [
        {"Name": "model", "Value": name},
        {"Name": "mean", "Value": "0.5"},
    ]
    assert all(step["StartTime"] <= step["EndTime"] for step in done.values())

    described = ended(aws, bad)
    assert (described["PipelineExecutionStatus"], described["FailureReason"]) == (
        "Failed",
        "Step failure: One or multiple steps failed.",
    )
    assert described["PipelineExperimentConfig"]["ExperimentName"] == "flow"
    refused = steps(aws, bad)
    assert set(refused) == {"Count", "Enough", "Stop"}
    assert refused["Stop"]["Metadata"] == {"Fail": {"ErrorMessage": "too few"}}
    assert refused["Stop"]["FailureReason"] == "too few"
    listed = aws.sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=bad)["PipelineParameters"]
    assert listed == [{"Name": "Least", "Value": "2.0"}, {"Name": "Mode", "Value": "on"}]
    found = aws.sagemaker.list_pipeline_executions(PipelineName="flow")["PipelineExecutionSummaries"]
    assert [each["PipelineExecutionArn"] for each in found] == [bad, good]


def test_a_failed_step_is_retried_and_the_others_are_not_run_again(aws: Account) -> None:
    echo, fail = function(aws, "echo"), function(aws, "fail")
    aws.s3.create_bucket(Bucket="retried")
    first = lambda_step("First", echo, {})
    second = lambda_step("Second", fail, {"bucket": "retried", "unless": "ok"}, DependsOn=["First"])
    create(aws, "retried", first, second, lambda_step("Third", echo, {}, DependsOn=["Second"]))
    arn = start(aws, "retried")

    assert ended(aws, arn)["PipelineExecutionStatus"] == "Failed"
    before = steps(aws, arn)
    assert "ValueError: no ok" in before["Second"]["FailureReason"]
    assert set(before) == {"First", "Second"}
    aws.s3.put_object(Bucket="retried", Key="ok", Body=b"")
    assert aws.sagemaker.retry_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionArn"] == arn

    assert ended(aws, arn)["PipelineExecutionStatus"] == "Succeeded"
    after = steps(aws, arn)
    assert set(after) == {"First", "Second", "Third"}
    assert after["First"]["EndTime"] == before["First"]["EndTime"]
    code, said = refusal(lambda: aws.sagemaker.retry_pipeline_execution(PipelineExecutionArn=arn))
    assert code == "ConflictException"
    assert "status is Succeeded" in said


def test_a_callback_step_waits_for_the_answer_with_its_token(aws: Account) -> None:
    """The message in the queue has AWS's members. A stop sends another message and waits for the answer."""
    sqs = aws.platform.client("sqs")
    url = sqs.create_queue(QueueName="callbacks")["QueueUrl"]
    step = {
        "Name": "Approve",
        "Type": "Callback",
        "SqsQueueUrl": url,
        "Arguments": {"model": get("Execution.PipelineName")},
        "OutputParameters": [{"OutputName": "score", "OutputType": "Float"}],
    }
    echo = lambda_step(
        "Echo", function(aws, "echo"), {"score": get("Steps.Approve.OutputParameters['score']")}, "score:String"
    )
    create(aws, "asks", step, echo)

    def message() -> dict[str, Any]:
        body = wait_until(lambda: sqs.receive_message(QueueUrl=url).get("Messages"))[0]
        sqs.delete_message(QueueUrl=url, ReceiptHandle=body["ReceiptHandle"])
        return json.loads(body["Body"])  # type: ignore[no-any-return]

    arn = start(aws, "asks")
    asked = message()
    assert asked == {
        "token": asked["token"],
        "pipelineExecutionArn": arn,
        "arguments": {"model": "asks"},
        "status": "Executing",
    }
    assert steps(aws, arn)["Approve"]["Metadata"]["Callback"]["CallbackToken"] == asked["token"]
    answer = [{"Name": "score", "Value": "0.75"}]
    aws.sagemaker.send_pipeline_execution_step_success(CallbackToken=asked["token"], OutputParameters=answer)
    assert ended(aws, arn)["PipelineExecutionStatus"] == "Succeeded", steps(aws, arn)
    assert steps(aws, arn)["Echo"]["Metadata"]["Lambda"]["OutputParameters"] == [{"Name": "score", "Value": "0.75"}]

    arn = start(aws, "asks")
    aws.sagemaker.send_pipeline_execution_step_failure(CallbackToken=message()["token"], FailureReason="not today")
    assert ended(aws, arn)["PipelineExecutionStatus"] == "Failed"
    assert steps(aws, arn)["Approve"]["FailureReason"] == "not today"

    arn = start(aws, "asks")
    token = message()["token"]
    aws.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn)
    assert message()["status"] == "Stopping"
    assert steps(aws, arn)["Approve"]["StepStatus"] == "Stopping"
    assert aws.sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"] == "Stopping"
    aws.sagemaker.send_pipeline_execution_step_success(CallbackToken=token)
    assert ended(aws, arn)["PipelineExecutionStatus"] == "Stopped"
    code, _ = refusal(lambda: aws.sagemaker.send_pipeline_execution_step_success(CallbackToken=token))
    assert code == "ResourceNotFound"


def test_invoke_runs_a_function_and_returns_its_error(aws: Account) -> None:
    """As notebooks call it; the function's own boto3 calls reach the emulator."""
    aws.s3.create_bucket(Bucket="invoked")
    client = aws.platform.client("lambda")
    function(aws, "count", Environment={"Variables": {"A": "b"}})
    function(aws, "fail")
    answer = client.invoke(FunctionName="count", Payload=json.dumps({"bucket": "invoked"}))
    assert (answer["StatusCode"], answer.get("FunctionError")) == (200, None)
    assert json.loads(answer["Payload"].read())["count"] == 0

    answer = client.invoke(
        FunctionName="fail", Payload=json.dumps({"bucket": "invoked", "unless": "x"}), LogType="Tail"
    )
    assert answer["FunctionError"] == "Unhandled"
    said = json.loads(answer["Payload"].read())
    assert (said["errorType"], said["errorMessage"]) == ("ValueError", "no x")
    assert answer["LogResult"]

    client.create_function(
        FunctionName="node", Runtime="nodejs20.x", Role=FUNCTION_ROLE, Handler="a.b", Code={"ZipFile": b"x"}
    )
    code, said = refusal(lambda: client.invoke(FunctionName="node"))
    assert code == "InvalidRuntimeException"
    assert "nodejs20.x" in said


JUNK = {
    "no JSON": "{",
    "no steps": json.dumps({"Version": "2020-12-01"}),
    "unknown step": definition(
        lambda_step("A", "arn:aws:lambda:us-east-1:123456789012:function:f", {"x": get("Steps.B.X")})
    ),
}


@pytest.mark.parametrize("junk", JUNK)
def test_a_junk_definition_is_refused(aws: Account, junk: str) -> None:
    given = {"PipelineName": "junk", "RoleArn": ROLE, "PipelineDefinition": JUNK[junk]}
    code, said = refusal(lambda: aws.sagemaker.create_pipeline(**given))
    assert code == "ValidationException"
    assert said.startswith("Unable to parse pipeline definition. ")


def test_steps_that_are_services_of_aws_are_refused_by_name_at_the_start(aws: Account) -> None:
    check = {"Name": "Bias", "Type": "ClarifyCheck", "Arguments": {}, "CheckType": "DATA_BIAS"}
    create(aws, "services", check, {"Name": "Stop", "Type": "Fail", "Arguments": {"ErrorMessage": "x"}})
    code, said = refusal(lambda: start(aws, "services"))
    assert code == "ValidationException"
    assert "Bias (ClarifyCheck)" in said
    assert aws.sagemaker.list_pipeline_executions(PipelineName="services")["PipelineExecutionSummaries"] == []

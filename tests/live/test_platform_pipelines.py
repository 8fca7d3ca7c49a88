"""Pipelines on the emulator: definitions as the SageMaker SDK writes them, executed through boto3 alone."""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.live.account import BUCKET, ROLE, Account, account, refusal
from tests.live.stack import wait_until

FUNCTION_ROLE = "arn:aws:iam::123456789012:role/function"
TRUST = {
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}]
}
ENDED = ("Succeeded", "Failed", "Stopped")
ALWAYS = {"Type": "Equals", "LeftValue": 1, "RightValue": 1}
CODE = """
def echo(event, context):
    return {**event, "function": context.function_name}


def whoami(event, context):
    import boto3
    return boto3.client("sts").get_caller_identity()["Arn"]


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
    """As notebooks call it; the function's own boto3 calls reach the emulator, as its role."""
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
    function(aws, "whoami")
    assert ":assumed-role/function/" in json.loads(client.invoke(FunctionName="whoami")["Payload"].read())

    client.create_function(
        FunctionName="node", Runtime="nodejs20.x", Role=FUNCTION_ROLE, Handler="a.b", Code={"ZipFile": b"x"}
    )
    code, said = refusal(lambda: client.invoke(FunctionName="node"))
    assert code == "InvalidRuntimeException"
    assert "nodejs20.x" in said

    queue = "arn:aws:sqs:us-east-1:123456789012:work"
    code, said = refusal(lambda: client.create_event_source_mapping(FunctionName="count", EventSourceArn=queue))
    assert (code, queue in said) == ("InvalidParameterValueException", True)


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


# Pipelines of jobs: scripts that run as processes

HOME = "import json, os, pathlib, sys, time\nml = pathlib.Path(os.environ.get('SERVE_ML_ROOT', '/opt/ml'))\n"
EVALUATE = """
report = ml / "processing/output/report"
report.mkdir(parents=True, exist_ok=True)
(report / "evaluation.json").write_text(json.dumps({"metrics": {"mse": {"value": float(sys.argv[1])}}}))
"""
TRAIN = """
parameters = json.loads((ml / "input/config/hyperparameters.json").read_text())
if parameters.get("forever"):
    time.sleep(3600)
(ml / "model/model.txt").write_text(parameters["mse"])
"""
MSE = {"Std:JsonGet": {"PropertyFile": get("Steps.Evaluate.PropertyFiles.Report"), "Path": "metrics.mse.value"}}


def script(aws: Account, name: str, source: str) -> str:
    """The URI of the prefix of an uploaded script."""
    aws.s3.put_object(Bucket=BUCKET, Key=f"code/{name}/run.py", Body=(HOME + source).encode())
    return f"s3://{BUCKET}/code/{name}/"


def process_step(aws: Account, name: str, *arguments: Any, **more: Any) -> dict[str, Any]:
    """A Processing step of the script EVALUATE, whose report is a property file."""
    inside = "/opt/ml/processing"
    source = {"S3DataType": "S3Prefix", "S3InputMode": "File", "LocalPath": f"{inside}/input/code"}
    target = {"LocalPath": f"{inside}/output/report", "S3UploadMode": "EndOfJob"}
    where = {"Std:Join": {"On": "/", "Values": [f"s3://{BUCKET}/reports", get("Execution.PipelineExecutionId")]}}
    return {
        "Name": name,
        "Type": "Processing",
        "Arguments": {
            "ProcessingResources": {
                "ClusterConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}
            },
            "AppSpecification": {
                "ImageUri": "serve",
                "ContainerEntrypoint": ["python3", f"{inside}/input/code/run.py"],
                "ContainerArguments": list(arguments),
            },
            "RoleArn": ROLE,
            "ProcessingInputs": [
                {"InputName": "code", "S3Input": {"S3Uri": script(aws, "evaluate", EVALUATE), **source}}
            ],
            "ProcessingOutputConfig": {"Outputs": [{"OutputName": "report", "S3Output": {"S3Uri": where, **target}}]},
        },
        "PropertyFiles": [{"PropertyFileName": "Report", "OutputName": "report", "FilePath": "evaluation.json"}],
        **more,
    }


def train_step(aws: Account, name: str, hyperparameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A Training step of the script TRAIN."""
    algorithm = {
        "TrainingImage": "serve",
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/run.py"],
    }
    source = {"S3DataType": "S3Prefix", "S3Uri": script(aws, "train", TRAIN)}
    return {
        "Name": name,
        "Type": "Training",
        "Arguments": {
            "AlgorithmSpecification": algorithm,
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/trained"},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "RoleArn": ROLE,
            "InputDataConfig": [{"ChannelName": "code", "DataSource": {"S3DataSource": source}}],
            "HyperParameters": hyperparameters,
        },
        **more,
    }


def test_a_report_of_a_job_decides_whether_a_model_is_trained_and_registered(aws: Account) -> None:
    """Real jobs. The second run finds both in the cache, and registers the same model once more."""
    cached = {"CacheConfig": {"Enabled": True, "ExpireAfter": "PT1H"}}
    train = train_step(aws, "Train", {"mse": {"Std:Join": {"On": "", "Values": [MSE]}}}, **cached)
    container = {"Image": "serve", "ModelDataUrl": get("Steps.Train.ModelArtifacts.S3ModelArtifacts")}
    register = {
        "Name": "Register",
        "Type": "RegisterModel",
        "Arguments": {
            "ModelPackageGroupName": "judged",
            "InferenceSpecification": {
                "Containers": [container],
                "SupportedContentTypes": ["text/csv"],
                "SupportedResponseMIMETypes": ["text/csv"],
            },
            "ModelApprovalStatus": "PendingManualApproval",
        },
    }
    judge = {
        "Name": "Judge",
        "Type": "Condition",
        "Arguments": {
            "Conditions": [{"Type": "LessThanOrEqualTo", "LeftValue": MSE, "RightValue": get("Parameters.Most")}],
            "IfSteps": [train, register],
            "ElseSteps": [
                {
                    "Name": "Stop",
                    "Type": "Fail",
                    "Arguments": {"ErrorMessage": {"Std:Join": {"On": " ", "Values": ["MSE", MSE]}}},
                }
            ],
        },
    }
    evaluate = process_step(aws, "Evaluate", get("Parameters.Mse"), **cached)
    parameters = [
        {"Name": "Mse", "Type": "String", "DefaultValue": "4.5"},
        {"Name": "Most", "Type": "Float", "DefaultValue": 6.0},
    ]
    create(aws, "judged", evaluate, judge, parameters=parameters)

    first = start(aws, "judged")
    assert ended(aws, first)["PipelineExecutionStatus"] == "Succeeded", steps(aws, first)
    second, third = start(aws, "judged"), start(aws, "judged", Mse="7.25")
    assert ended(aws, second)["PipelineExecutionStatus"] == "Succeeded", steps(aws, second)
    assert ended(aws, third)["PipelineExecutionStatus"] == "Failed"

    done, again, refused = steps(aws, first), steps(aws, second), steps(aws, third)
    job = done["Train"]["Metadata"]["TrainingJob"]["Arn"].rpartition("/")[2]
    described = aws.sagemaker.describe_training_job(TrainingJobName=job)
    assert job.startswith(f"pipelines-{first.rpartition('/')[2]}-Train-")
    assert described["TrainingJobStatus"] == "Completed"
    assert described["HyperParameters"] == {"mse": "4.5"}
    package = aws.sagemaker.describe_model_package(
        ModelPackageName=done["Register"]["Metadata"]["RegisterModel"]["Arn"]
    )
    artifact = described["ModelArtifacts"]["S3ModelArtifacts"]
    assert package["InferenceSpecification"]["Containers"][0]["ModelDataUrl"] == artifact
    assert done["Judge"]["Metadata"]["Condition"]["Outcome"] == "True"
    assert "CacheHitResult" not in done["Train"]
    for name in ("Evaluate", "Train"):
        assert again[name]["CacheHitResult"] == {"SourcePipelineExecutionArn": first}
        assert again[name]["Metadata"] == done[name]["Metadata"]
    assert again["Register"]["Metadata"] != done["Register"]["Metadata"]
    assert "CacheHitResult" not in refused["Evaluate"]
    assert refused["Stop"]["FailureReason"] == "MSE 7.25"
    assert "Train" not in refused


def test_a_stop_stops_the_job_and_no_further_step_runs(aws: Account) -> None:
    """The limit of parallel steps holds as well: of two ready steps, one has begun."""
    train = train_step(aws, "Train", {"forever": "yes"})
    text = definition(train, train_step(aws, "Other", {"forever": "yes"}))
    aws.s3.put_object(Bucket=BUCKET, Key="definitions/stopped.json", Body=text.encode())
    aws.sagemaker.create_pipeline(
        PipelineName="stopped",
        RoleArn=ROLE,
        PipelineDefinitionS3Location={"Bucket": BUCKET, "ObjectKey": "definitions/stopped.json"},
        ParallelismConfiguration={"MaxParallelExecutionSteps": 1},
    )
    arn = start(aws, "stopped")
    job = wait_until(lambda: steps(aws, arn).get("Train", {}).get("Metadata", {}).get("TrainingJob"))
    name = job["Arn"].rpartition("/")[2]
    wait_until(lambda: aws.sagemaker.describe_training_job(TrainingJobName=name)["SecondaryStatus"] == "Training")
    assert refusal(lambda: aws.sagemaker.delete_pipeline(PipelineName="stopped"))[0] == "ConflictException"

    aws.sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn)

    assert ended(aws, arn)["PipelineExecutionStatus"] == "Stopped"
    assert {name: step["StepStatus"] for name, step in steps(aws, arn).items()} == {"Train": "Stopped"}
    assert aws.sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] == "Stopped"
    aws.sagemaker.delete_pipeline(PipelineName="stopped")
    assert refusal(lambda: aws.sagemaker.describe_pipeline(PipelineName="stopped"))[0] == "ResourceNotFound"


def test_a_job_that_fails_gives_its_reason_to_the_step(aws: Account) -> None:
    """A request that the API refuses too."""
    bad = train_step(aws, "Refused", {})
    bad["Arguments"]["AlgorithmSpecification"] = {"TrainingImage": "blazingtext", "TrainingInputMode": "File"}
    create(aws, "failing", train_step(aws, "Fails", {}), bad)
    arn = start(aws, "failing")
    assert ended(aws, arn)["PipelineExecutionStatus"] == "Failed"
    done = steps(aws, arn)
    assert "KeyError: 'mse'" in done["Fails"]["FailureReason"]
    refused = "ClientError: Failed to invoke sagemaker:CreateTrainingJob. Error Details: "
    assert done["Refused"]["FailureReason"].startswith(f"{refused}An error occurred (ValidationException)")


def test_an_execution_and_its_pipeline_outlive_the_platform(tmp_path: Path) -> None:
    """An execution that is cut is Failed with that reason; a retry runs the steps that have not succeeded."""
    state = tmp_path / "state"
    with account(tmp_path / "one", state=state) as before:
        before.platform.client("sqs").create_queue(QueueName="outlived")
        ask = {
            "Name": "Ask",
            "Type": "Callback",
            "SqsQueueUrl": before.platform.client("sqs").get_queue_url(QueueName="outlived")["QueueUrl"],
            "Arguments": {},
            "OutputParameters": [],
        }
        first = {"Name": "First", "Type": "Condition", "Arguments": {"Conditions": [ALWAYS], "IfSteps": [ask]}}
        create(before, "outlived", first)
        cut = start(before, "outlived")
        wait_until(lambda: steps(before, cut).get("Ask", {}).get("Metadata"))
        shown = steps(before, cut)["First"]

    with account(tmp_path / "two", state=state) as after:
        described = after.sagemaker.describe_pipeline_execution(PipelineExecutionArn=cut)
        assert described["PipelineExecutionStatus"] == "Failed"
        assert described["FailureReason"] == "The platform ended while the execution was running."
        assert steps(after, cut)["First"] == shown
        assert steps(after, cut)["Ask"]["StepStatus"] == "Failed"
        assert after.sagemaker.describe_pipeline(PipelineName="outlived")["PipelineStatus"] == "Active"
        after.sagemaker.retry_pipeline_execution(PipelineExecutionArn=cut)
        token = wait_until(lambda: steps(after, cut).get("Ask", {}).get("Metadata"))["Callback"]["CallbackToken"]
        assert steps(after, cut)["First"] == shown
        after.sagemaker.send_pipeline_execution_step_success(CallbackToken=token)
        assert ended(after, cut)["PipelineExecutionStatus"] == "Succeeded"


def test_only_the_selected_steps_run_again(aws: Account) -> None:
    echo = function(aws, "echo")
    one = lambda_step("One", echo, {"x": "1"}, "x:String")
    two = lambda_step("Two", echo, {"x": get("Steps.One.OutputParameters['x']")}, "x:String")
    create(aws, "selected", one, two, lambda_step("Three", echo, {}, DependsOn=["Two"]))
    source = start(aws, "selected")
    assert ended(aws, source)["PipelineExecutionStatus"] == "Succeeded"

    def select(name: str) -> str:
        config = {"SourcePipelineExecutionArn": source, "SelectedSteps": [{"StepName": name}]}
        started = aws.sagemaker.start_pipeline_execution(PipelineName="selected", SelectiveExecutionConfig=config)
        return str(started["PipelineExecutionArn"])

    arn = select("Two")

    assert ended(aws, arn)["PipelineExecutionStatus"] == "Succeeded"
    done = steps(aws, arn)
    assert set(done) == {"One", "Two"}
    assert done["One"]["SelectiveExecutionResult"] == {"SourcePipelineExecutionArn": source}
    assert done["Two"]["Metadata"]["Lambda"]["OutputParameters"] == [{"Name": "x", "Value": "1"}]
    assert refusal(lambda: select("Four"))[0] == "ValidationException"


def test_pipelines_are_updated_listed_tagged_and_started_once_for_a_token(aws: Account) -> None:
    stop = {"Name": "Stop", "Type": "Fail", "Arguments": {"ErrorMessage": "x"}}
    arn = create(aws, "listed-a", stop)
    create(aws, "listed-b", stop)
    code, said = refusal(lambda: create(aws, "listed-a", stop))
    assert (code, "already exists" in said) == ("ValidationException", True)  # the words by which the SDK knows it
    other = definition({**stop, "Name": "Other"})

    updated = aws.sagemaker.update_pipeline(PipelineName="listed-a", PipelineDefinition=other, RoleArn=ROLE)

    assert updated == {**updated, "PipelineArn": arn, "PipelineVersionId": 2}
    assert aws.sagemaker.describe_pipeline(PipelineName=arn)["PipelineDefinition"] == other
    names = aws.sagemaker.list_pipelines(PipelineNamePrefix="listed-", SortBy="Name", SortOrder="Ascending")
    assert [each["PipelineName"] for each in names["PipelineSummaries"]] == ["listed-a", "listed-b"]
    pages = aws.sagemaker.get_paginator("list_pipelines").paginate(PipelineNamePrefix="listed-", MaxResults=1)
    assert sum(len(page["PipelineSummaries"]) for page in pages) == 2
    aws.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "b"}])
    assert aws.sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "a", "Value": "b"}]
    token = "t" * 32
    runs = {
        aws.sagemaker.start_pipeline_execution(PipelineName=name, ClientRequestToken=token)["PipelineExecutionArn"]
        for name in ("listed-a", arn)
    }
    assert len(runs) == 1
    run = runs.pop()
    ended(aws, run)
    shown = aws.sagemaker.describe_pipeline_definition_for_execution(PipelineExecutionArn=run)
    assert shown["PipelineDefinition"] == other
    by_tag = {"Filters": [{"Name": "Tags.a", "Operator": "Equals", "Value": "b"}]}
    tagged = aws.sagemaker.search(Resource="Pipeline", SearchExpression=by_tag)["Results"]
    assert [each["Pipeline"]["PipelineName"] for each in tagged] == ["listed-a"]
    failed = {
        "Filters": [{"Name": "PipelineExecutionStatus", "Value": "Failed"}, {"Name": "PipelineArn", "Value": arn}]
    }
    found = aws.sagemaker.search(Resource="PipelineExecution", SearchExpression=failed)["Results"]
    assert [each["PipelineExecution"]["PipelineExecutionArn"] for each in found] == [run]
    assert refusal(lambda: aws.sagemaker.search(Resource="Experiment"))[0] == "ValidationException"
    assert refusal(lambda: aws.sagemaker.stop_pipeline_execution(PipelineExecutionArn=run))[0] == "ConflictException"
    assert refusal(lambda: start(aws, "listed-c"))[0] == "ResourceNotFound"
    assert refusal(lambda: start(aws, "listed-a", Unknown=1))[0] == "ValidationException"

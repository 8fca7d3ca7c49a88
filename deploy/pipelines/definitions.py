"""The pipelines: two-models and tuned-model, each a function that returns a definition as plain dicts.

The form of a definition: docs.aws.amazon.com/sagemaker/latest/dg/define-pipeline.html
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy.errors import SpecError, unknown

Definition = dict[str, Any]

SCRIPT = "split.py"
PARTS = ("train", "validation", "test", "truth")  # truth: the labels of the test rows
INSIDE = "/opt/ml/processing"
# The line that AWS's XGBoost container logs after each round; the expression is its documentation's.
METRIC = r".*\[[0-9]+\].*#011validation-rmse:([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?).*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The resources of an account that a definition names; everything else is a parameter."""

    role: str  # ARN, of the jobs and the endpoint
    function: str  # ARN of the Lambda function that copies the artifacts, deploys and calls the models
    home: str  # s3://bucket/prefix of all data, unless a parameter names another
    scripts: str  # s3://bucket/prefix of the scripts; the prefix contains their hash
    data: str = ""  # s3://bucket/prefix of the files in the folder data beside a module
    region: str = "us-east-1"


def defined(name: str, given: Given) -> Definition:
    """The definition of a pipeline. Raises SpecError for an unknown name."""
    if name not in PIPELINES:
        raise SpecError(unknown(name, list(PIPELINES), "pipeline"))
    return PIPELINES[name](given)


def get(path: str) -> dict[str, str]:
    """An expression that SageMaker evaluates at run time: Parameters.X, Steps.NAME.X or Execution.X."""
    return {"Get": path}


def join(*values: Any, on: str = "/") -> dict[str, Any]:
    return {"Std:Join": {"On": on, "Values": list(values)}}


def parameter(name: str, default: str | float | None = None, **more: Any) -> dict[str, Any]:
    """A parameter; without a default every start must give its value."""
    kind = {bool: "Boolean", int: "Integer", float: "Float"}.get(type(default), "String")
    return {"Name": name, "Type": kind, **({} if default is None else {"DefaultValue": default}), **more}


# SageMaker Experiments groups executions and their jobs under the pipeline's name.
EXPERIMENT = {"ExperimentName": get("Execution.PipelineName"), "TrialName": get("Execution.PipelineExecutionId")}


def channel(name: str, uri: Any) -> dict[str, Any]:
    """A channel of a training job: CSV, the label first, no header."""
    source = {"S3Uri": uri, "S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "ContentType": "text/csv", "DataSource": {"S3DataSource": source}}


def one_instance() -> dict[str, Any]:
    return {"InstanceType": get("Parameters.InstanceType"), "InstanceCount": 1, "VolumeSizeInGB": 10}


def two_models(given: Given) -> Definition:
    """Two trainings in parallel, then one multi-model endpoint of both models, then a call of each model."""
    return {
        "Version": "2020-12-01",
        "Metadata": {},
        "Parameters": [
            parameter("Image"),
            parameter("TrainData"),
            parameter("Output", given.home),  # s3://bucket/prefix of the training artifacts
            parameter("ModelPrefix", f"{given.home}/models/"),  # s3://bucket/prefix/ of the endpoint's models
            parameter("EndpointName", "two-models"),
            parameter("InstanceType", "ml.m5.large"),
            parameter("RoundsOne", 40),
            parameter("RoundsTwo", 50),
        ],
        "PipelineExperimentConfig": EXPERIMENT,
        "Steps": [
            _training("TrainOne", given, rounds=get("Parameters.RoundsOne"), depth=4, eta=0.1),
            _training("TrainTwo", given, rounds=get("Parameters.RoundsTwo"), depth=5, eta=0.2),
            _lambda(
                "DeployMME",
                given,
                ["statusCode", "body", "endpoint_name", "config", "before"],
                action="deploy",
                artifacts={
                    "one": get("Steps.TrainOne.ModelArtifacts.S3ModelArtifacts"),
                    "two": get("Steps.TrainTwo.ModelArtifacts.S3ModelArtifacts"),
                },
                prefix=get("Parameters.ModelPrefix"),
                endpoint=get("Parameters.EndpointName"),
                image=get("Parameters.Image"),
                role=given.role,
                instance_type=get("Parameters.InstanceType"),
            ),
            _lambda(
                "Smoke",
                given,
                ["statusCode", "one", "two"],
                action="smoke",
                endpoint=_deployed("endpoint_name"),
                config=_deployed("config"),
                before=_deployed("before"),
                models=_deployed("body"),
                rows=get("Parameters.TrainData"),
            ),
        ],
    }


def _training(name: str, given: Given, *, rounds: Any, depth: int, eta: float) -> dict[str, Any]:
    return {
        "Name": name,
        "Type": "Training",
        "Arguments": {
            "AlgorithmSpecification": {"TrainingImage": get("Parameters.Image"), "TrainingInputMode": "File"},
            "RoleArn": given.role,
            # Values must be strings; a join converts the number.
            "HyperParameters": {
                "num_round": join(rounds, on=""),
                "max_depth": str(depth),
                "eta": str(eta),
                "objective": "reg:squarederror",
                "seed": "1",
            },
            "InputDataConfig": [channel("train", get("Parameters.TrainData"))],
            "OutputDataConfig": {"S3OutputPath": get("Parameters.Output")},
            "ResourceConfig": one_instance(),
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        },
    }


def _lambda(name: str, given: Given, outputs: list[str], **arguments: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "Type": "Lambda",
        "FunctionArn": given.function,
        "Arguments": arguments,
        "OutputParameters": [{"OutputName": each, "OutputType": "String"} for each in outputs],
    }


def _deployed(output: str) -> dict[str, str]:
    return get(f"Steps.DeployMME.OutputParameters['{output}']")


def tuned_model(given: Given) -> Definition:
    """Data split, tuning, registration of the best model for approval, batch transform of the test rows."""
    best = get("Steps.Tune.BestTrainingJob.TrainingJobName")
    container = {
        "Image": get("Parameters.Image"),
        "ModelDataUrl": join(get("Parameters.Output"), "models", best, "output/model.tar.gz"),
    }
    return {
        "Version": "2020-12-01",
        "Metadata": {},
        "Parameters": [
            parameter("Image"),
            parameter("InputData"),
            parameter("Output", given.home),  # s3://bucket/prefix of all results
            parameter("ModelGroup", "tuned-model"),
            parameter("ApprovalStatus", "PendingManualApproval", EnumValues=["PendingManualApproval", "Approved"]),
            parameter("InstanceType", "ml.m5.large"),
            parameter("MaxJobs", 4),
        ],
        "PipelineExperimentConfig": EXPERIMENT,
        "Steps": [
            {"Name": "Process", "Type": "Processing", "Arguments": _processing(given)},
            {"Name": "Tune", "Type": "Tuning", "Arguments": _tuning(given)},
            {"Name": "Register", "Type": "RegisterModel", "Arguments": _package(container)},
            {
                "Name": "Create",
                "Type": "Model",
                "Arguments": {"PrimaryContainer": container, "ExecutionRoleArn": given.role},
            },
            {"Name": "Score", "Type": "Transform", "Arguments": _transform()},
        ],
    }


def _processing(given: Given) -> dict[str, Any]:
    return {
        "RoleArn": given.role,
        "AppSpecification": {
            "ImageUri": get("Parameters.Image"),
            "ContainerEntrypoint": ["python3", f"{INSIDE}/input/code/{SCRIPT}"],
            "ContainerArguments": [f"{INSIDE}/input/data", f"{INSIDE}/output"],
        },
        "ProcessingInputs": [
            _input("code", given.scripts),
            _input("data", get("Parameters.InputData")),
        ],
        "ProcessingOutputConfig": {"Outputs": [_output(part) for part in PARTS]},
        "ProcessingResources": {"ClusterConfig": one_instance()},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }


def _input(name: str, uri: Any) -> dict[str, Any]:
    source = {"S3Uri": uri, "S3DataType": "S3Prefix", "S3InputMode": "File", "LocalPath": f"{INSIDE}/input/{name}"}
    return {"InputName": name, "S3Input": source}


def _output(name: str) -> dict[str, Any]:
    uri = join(get("Parameters.Output"), get("Execution.PipelineExecutionId"), name)
    target = {"S3Uri": uri, "LocalPath": f"{INSIDE}/output/{name}", "S3UploadMode": "EndOfJob"}
    return {"OutputName": name, "S3Output": target}


def _part(name: str) -> dict[str, str]:
    """The S3 prefix of a part of the split data."""
    return get(f"Steps.Process.ProcessingOutputConfig.Outputs['{name}'].S3Output.S3Uri")


def _tuning(given: Given) -> dict[str, Any]:
    def between(name: str, low: float, high: float, scale: str = "Auto") -> dict[str, str]:
        return {"Name": name, "MinValue": str(low), "MaxValue": str(high), "ScalingType": scale}

    return {
        "HyperParameterTuningJobConfig": {
            "Strategy": "Bayesian",
            "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "validation:rmse"},
            "ResourceLimits": {
                "MaxNumberOfTrainingJobs": get("Parameters.MaxJobs"),
                "MaxParallelTrainingJobs": 2,
            },
            "ParameterRanges": {
                "ContinuousParameterRanges": [
                    between("eta", 0.05, 0.5, "Logarithmic"),
                    between("min_child_weight", 1, 10),
                ],
                "IntegerParameterRanges": [between("max_depth", 3, 8)],
            },
        },
        "TrainingJobDefinition": {
            "StaticHyperParameters": {"num_round": "40", "objective": "reg:squarederror", "seed": "1"},
            "AlgorithmSpecification": {
                "TrainingImage": get("Parameters.Image"),
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "validation:rmse", "Regex": METRIC}],
            },
            "RoleArn": given.role,
            "InputDataConfig": [channel(name, _part(name)) for name in ("train", "validation")],
            "OutputDataConfig": {"S3OutputPath": join(get("Parameters.Output"), "models")},
            "ResourceConfig": one_instance(),
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        },
    }


def _package(container: dict[str, Any]) -> dict[str, Any]:
    return {
        "ModelPackageGroupName": get("Parameters.ModelGroup"),
        "ModelApprovalStatus": get("Parameters.ApprovalStatus"),
        "InferenceSpecification": {
            "Containers": [container],
            "SupportedContentTypes": ["text/csv"],
            "SupportedResponseMIMETypes": ["text/csv"],
            "SupportedRealtimeInferenceInstanceTypes": [get("Parameters.InstanceType")],
            "SupportedTransformInstanceTypes": [get("Parameters.InstanceType")],
        },
    }


def _transform() -> dict[str, Any]:
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": _part("test")}}
    return {
        "ModelName": get("Steps.Create.ModelName"),
        "BatchStrategy": "MultiRecord",
        "TransformInput": {"DataSource": source, "ContentType": "text/csv", "SplitType": "Line"},
        "TransformOutput": {
            "S3OutputPath": join(get("Parameters.Output"), get("Execution.PipelineExecutionId"), "scores"),
            "Accept": "text/csv",
            "AssembleWith": "Line",
        },
        "TransformResources": {"InstanceType": get("Parameters.InstanceType"), "InstanceCount": 1},
    }


PIPELINES: dict[str, Callable[[Given], Definition]] = {"two-models": two_models, "tuned-model": tuned_model}

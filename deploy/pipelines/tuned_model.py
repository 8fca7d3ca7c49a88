"""tuned-model: data split, the best of several trainings, registered for approval, and used on the test data."""

from typing import Any

from deploy.pipelines import EXPERIMENT, Definition, Given, channel, get, join, one_instance, parameter

SCRIPT = "split.py"
PARTS = ("train", "validation", "test", "truth")  # truth: what the test rows' labels were
INSIDE = "/opt/ml/processing"
# As AWS's XGBoost container writes a round, and its documentation has the expression.
METRIC = r".*\[[0-9]+\].*#011validation-rmse:([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?).*"


def definition(given: Given) -> Definition:
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
            parameter("Output", given.home),  # s3://bucket/prefix: where all that is made lies
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
    """Where a part of the data lies."""
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

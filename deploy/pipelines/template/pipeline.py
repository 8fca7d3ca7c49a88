"""A pipeline: the data is split, a model is trained and evaluated, and registered if its error is small enough.

`definition` returns SageMaker's definition as plain tables. The SageMaker SDK is not needed; a Pipeline of the SDK in
a variable `pipeline` works too. Form: docs.aws.amazon.com/sagemaker/latest/dg/define-pipeline.html
"""

from typing import Any

from deploy.pipelines.definitions import Definition, Given, channel, get, join, parameter

INSIDE = "/opt/ml/processing"  # of a processing job's container


def definition(given: Given) -> Definition:
    """`given` names the resources of the account: the role, and where the folders `code` and `data` were uploaded."""
    return {
        "Version": "2020-12-01",
        "Metadata": {},
        # Without a default each start must give the value: --param Image=...
        "Parameters": [
            parameter("Image"),
            parameter("InputData", given.data),  # CSV, the label first, no header
            parameter("InstanceType", "ml.m5.large"),
            parameter("Rounds", 50),
            parameter("MaxMse", 2.0),  # the largest error of a model that is registered
            parameter("ModelGroup", "my-models"),
            parameter("ApprovalStatus", "PendingManualApproval", EnumValues=["PendingManualApproval", "Approved"]),
        ],
        "Steps": [_preprocess(given), _train(given), _evaluate(given), _condition()],
    }


def _preprocess(given: Given) -> dict[str, Any]:
    """Splits the rows; a repeated run with the same code and data takes the result from the cache."""
    return {
        "Name": "Preprocess",
        "Type": "Processing",
        "CacheConfig": {"Enabled": True, "ExpireAfter": "P30D"},
        "Arguments": _job(
            given,
            "preprocess.py",
            inputs={"data": get("Parameters.InputData")},
            outputs=["train", "validation", "test"],
        ),
    }


def _train(given: Given) -> dict[str, Any]:
    """Trains XGBoost by the image's own `train`; for code of your own see docs/training.md."""
    return {
        "Name": "Train",
        "Type": "Training",
        "Arguments": {
            "AlgorithmSpecification": {"TrainingImage": get("Parameters.Image"), "TrainingInputMode": "File"},
            "RoleArn": given.role,
            "HyperParameters": {
                "num_round": join(get("Parameters.Rounds"), on=""),  # values must be strings
                "max_depth": "4",
                "eta": "0.2",
                "objective": "reg:squarederror",
            },
            "InputDataConfig": [
                channel("train", _output_of("Preprocess", "train")),
                channel("validation", _output_of("Preprocess", "validation")),
            ],
            "OutputDataConfig": {"S3OutputPath": f"{given.home}/models"},
            "ResourceConfig": _one_instance(),
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        },
    }


def _evaluate(given: Given) -> dict[str, Any]:
    """Writes evaluation.json; as a property file, conditions can read its values."""
    return {
        "Name": "Evaluate",
        "Type": "Processing",
        "Arguments": _job(
            given,
            "evaluate.py",
            inputs={"model": _artifact(), "test": _output_of("Preprocess", "test")},
            outputs=["evaluation"],
        ),
        "PropertyFiles": [
            {"PropertyFileName": "Evaluation", "OutputName": "evaluation", "FilePath": "evaluation.json"}
        ],
    }


def _condition() -> dict[str, Any]:
    """Registers the model if its error is small enough; otherwise the execution fails with that reason."""
    report = {"Get": "Steps.Evaluate.PropertyFiles.Evaluation"}
    mse = {"Std:JsonGet": {"PropertyFile": report, "Path": "regression_metrics.mse.value"}}
    return {
        "Name": "GoodEnough",
        "Type": "Condition",
        "Arguments": {
            "Conditions": [{"Type": "LessThanOrEqualTo", "LeftValue": mse, "RightValue": get("Parameters.MaxMse")}],
            "IfSteps": [_register()],
            "ElseSteps": [
                {
                    "Name": "TooInaccurate",
                    "Type": "Fail",
                    "Arguments": {"ErrorMessage": join("The mean squared error is", mse, on=" ")},
                }
            ],
        },
    }


def _register() -> dict[str, Any]:
    """Adds a version to the group; `python -m deploy approve ARN` approves it."""
    return {
        "Name": "Register",
        "Type": "RegisterModel",
        "Arguments": {
            "ModelPackageGroupName": get("Parameters.ModelGroup"),
            "ModelApprovalStatus": get("Parameters.ApprovalStatus"),
            "InferenceSpecification": {
                "Containers": [{"Image": get("Parameters.Image"), "ModelDataUrl": _artifact()}],
                "SupportedContentTypes": ["text/csv"],
                "SupportedResponseMIMETypes": ["text/csv"],
            },
        },
    }


def _job(given: Given, script: str, *, inputs: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
    """A processing job that runs a script of the folder `code`, with S3 prefixes as directories."""
    return {
        "RoleArn": given.role,
        "AppSpecification": {
            "ImageUri": get("Parameters.Image"),
            "ContainerEntrypoint": ["python3", f"{INSIDE}/input/code/{script}"],
            "ContainerArguments": [f"{INSIDE}/input", f"{INSIDE}/output"],
        },
        "ProcessingInputs": [_input(name, uri) for name, uri in {"code": given.scripts, **inputs}.items()],
        "ProcessingOutputConfig": {"Outputs": [_output(given, name) for name in outputs]},
        "ProcessingResources": {"ClusterConfig": _one_instance()},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }


def _input(name: str, uri: Any) -> dict[str, Any]:
    source = {"S3Uri": uri, "S3DataType": "S3Prefix", "S3InputMode": "File", "LocalPath": f"{INSIDE}/input/{name}"}
    return {"InputName": name, "S3Input": source}


def _output(given: Given, name: str) -> dict[str, Any]:
    """Each execution has a prefix of its own."""
    uri = join(given.home, get("Execution.PipelineExecutionId"), name)
    target = {"S3Uri": uri, "LocalPath": f"{INSIDE}/output/{name}", "S3UploadMode": "EndOfJob"}
    return {"OutputName": name, "S3Output": target}


def _output_of(step: str, name: str) -> dict[str, str]:
    """The S3 prefix of an output of a processing step; the step that uses it runs after that step."""
    return get(f"Steps.{step}.ProcessingOutputConfig.Outputs['{name}'].S3Output.S3Uri")


def _artifact() -> dict[str, str]:
    return get("Steps.Train.ModelArtifacts.S3ModelArtifacts")


def _one_instance() -> dict[str, Any]:
    return {"InstanceType": get("Parameters.InstanceType"), "InstanceCount": 1, "VolumeSizeInGB": 10}

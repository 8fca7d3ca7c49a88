"""two-models: two trainings side by side, then one multi-model endpoint of both, and a call of each model there."""

from typing import Any

from deploy.pipelines import EXPERIMENT, Definition, Given, channel, get, join, one_instance, parameter


def definition(given: Given) -> Definition:
    return {
        "Version": "2020-12-01",
        "Metadata": {},
        "Parameters": [
            parameter("Image"),
            parameter("TrainData"),
            parameter("Output", given.home),  # s3://bucket/prefix: where the trainings leave their artifacts
            parameter("ModelPrefix", f"{given.home}/models/"),  # s3://bucket/prefix/: from where the endpoint serves
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
            # Values are strings, and a join makes one of a number.
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

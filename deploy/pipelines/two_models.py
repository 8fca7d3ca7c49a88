"""two-models: two trainings side by side, then a function that makes one multi-model endpoint of both."""

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
            {
                "Name": "DeployMME",
                "Type": "Lambda",
                "FunctionArn": given.function,
                "Arguments": {
                    "artifacts": {
                        "one": get("Steps.TrainOne.ModelArtifacts.S3ModelArtifacts"),
                        "two": get("Steps.TrainTwo.ModelArtifacts.S3ModelArtifacts"),
                    },
                    "prefix": get("Parameters.ModelPrefix"),
                    "endpoint": get("Parameters.EndpointName"),
                    "image": get("Parameters.Image"),
                    "role": given.role,
                    "instance_type": get("Parameters.InstanceType"),
                },
                "OutputParameters": [
                    {"OutputName": "statusCode", "OutputType": "String"},
                    {"OutputName": "body", "OutputType": "String"},
                    {"OutputName": "endpoint_name", "OutputType": "String"},
                ],
            },
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

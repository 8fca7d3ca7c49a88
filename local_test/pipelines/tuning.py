"""Tuning as several trainings. SageMaker's Bayesian search is not played: values are drawn at random, from a seed."""

import math
import random
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from local_test.pipelines.execution import Properties, Step, StepFailed
from local_test.pipelines.jobs import Jobs

SEED = 1


def tune(jobs: Jobs, step: Step) -> Properties:
    """What DescribeHyperParameterTuningJob would say. Raises StepFailed where no training came to a value."""
    config, training = step.arguments["HyperParameterTuningJobConfig"], step.arguments["TrainingJobDefinition"]
    objective, limits = config["HyperParameterTuningJobObjective"], config["ResourceLimits"]
    seed = config.get("RandomSeed", SEED)
    draws = [drawn(config["ParameterRanges"], seed, number) for number in range(limits["MaxNumberOfTrainingJobs"])]
    name = step.job
    failures: list[str] = []

    def train(number: int) -> dict[str, Any] | None:
        asked = {
            **{key: value for key, value in training.items() if key != "StaticHyperParameters"},
            "HyperParameters": {
                **training.get("StaticHyperParameters", {}),
                **draws[number],
                "_tuning_objective_metric": objective["MetricName"],
            },
        }
        try:
            said = jobs.training(f"{name[:50]}-{number + 1:03}-{uuid.uuid4().hex[:8]}", asked)
        except StepFailed as why:
            failures.append(str(why))
            return None
        values = {each["MetricName"]: each["Value"] for each in said["FinalMetricDataList"]}
        if objective["MetricName"] not in values:
            failures.append(f"the log has no {objective['MetricName']}: its Regex matched no line")
            return None
        return {
            "TrainingJobName": said["TrainingJobName"],
            "TrainingJobArn": said["TrainingJobArn"],
            "TrainingJobStatus": "Completed",
            "TunedHyperParameters": draws[number],
            "FinalHyperParameterTuningJobObjectiveMetric": {**objective, "Value": values[objective["MetricName"]]},
        }

    with ThreadPoolExecutor(limits["MaxParallelTrainingJobs"]) as threads:
        done = [each for each in threads.map(train, range(len(draws))) if each is not None]
    if not done:
        raise StepFailed(f"no training of {len(draws)} came to a value: {failures[0]}")
    sign = -1 if objective["Type"] == "Maximize" else 1
    done.sort(key=lambda each: sign * each["FinalHyperParameterTuningJobObjectiveMetric"]["Value"])
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobStatus": "Completed",
        "BestTrainingJob": done[0],
        "TrainingJobSummaries": done,
    }


def drawn(ranges: Mapping[str, Any], seed: int, number: int) -> dict[str, str]:
    """Values for one training, the same for the same seed and number; as text, as hyperparameters are."""
    source = random.Random(f"{seed}/{number}")
    values = {}
    for each in ranges.get("ContinuousParameterRanges", ()):
        values[each["Name"]] = f"{_between(source, each):.6g}"
    for each in ranges.get("IntegerParameterRanges", ()):
        values[each["Name"]] = str(round(_between(source, each)))
    for each in ranges.get("CategoricalParameterRanges", ()):
        values[each["Name"]] = source.choice(each["Values"])
    return values


def _between(source: random.Random, asked: Mapping[str, str]) -> float:
    low, high = float(asked["MinValue"]), float(asked["MaxValue"])
    if asked.get("ScalingType") == "Logarithmic":
        return math.exp(source.uniform(math.log(low), math.log(high)))
    return source.uniform(low, high)

"""Tuning as several trainings. Values are drawn at random from a seed, instead of SageMaker's Bayesian search."""

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
    """DescribeHyperParameterTuningJob's response. Raises StepFailed if no training has a value of the objective."""
    config, training = step.arguments["HyperParameterTuningJobConfig"], step.arguments["TrainingJobDefinition"]
    objective, limits = config["HyperParameterTuningJobObjective"], config["ResourceLimits"]
    seed = config.get("RandomSeed", SEED)
    draws = [drawn(config["ParameterRanges"], seed, number) for number in range(limits["MaxNumberOfTrainingJobs"])]
    name = step.job
    failures: list[str] = []

    def train(number: int) -> dict[str, Any] | None:
        request = {
            **{key: value for key, value in training.items() if key != "StaticHyperParameters"},
            "HyperParameters": {
                **training.get("StaticHyperParameters", {}),
                **draws[number],
                "_tuning_objective_metric": objective["MetricName"],
            },
        }
        try:
            described = jobs.training(f"{name[:50]}-{number + 1:03}-{uuid.uuid4().hex[:8]}", request)
        except StepFailed as why:
            failures.append(str(why))
            return None
        values = {each["MetricName"]: each["Value"] for each in described["FinalMetricDataList"]}
        if objective["MetricName"] not in values:
            failures.append(f"{objective['MetricName']} not found: its Regex matches no line of the log")
            return None
        return {
            "TrainingJobName": described["TrainingJobName"],
            "TrainingJobArn": described["TrainingJobArn"],
            "TrainingJobStatus": "Completed",
            "TunedHyperParameters": draws[number],
            "FinalHyperParameterTuningJobObjectiveMetric": {**objective, "Value": values[objective["MetricName"]]},
        }

    with ThreadPoolExecutor(limits["MaxParallelTrainingJobs"]) as threads:
        done = [each for each in threads.map(train, range(len(draws))) if each is not None]
    if not done:
        raise StepFailed(f"none of {len(draws)} trainings has a value of the objective: {failures[0]}")
    sign = -1 if objective["Type"] == "Maximize" else 1
    done.sort(key=lambda each: sign * each["FinalHyperParameterTuningJobObjectiveMetric"]["Value"])
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobStatus": "Completed",
        "BestTrainingJob": done[0],
        "TrainingJobSummaries": done,
    }


def drawn(ranges: Mapping[str, Any], seed: int, number: int) -> dict[str, str]:
    """The hyperparameters of one training, as text. Equal seed and number give equal values."""
    source = random.Random(f"{seed}/{number}")
    values = {}
    for each in ranges.get("ContinuousParameterRanges", ()):
        values[each["Name"]] = f"{_between(source, each):.6g}"
    for each in ranges.get("IntegerParameterRanges", ()):
        values[each["Name"]] = str(round(_between(source, each)))
    for each in ranges.get("CategoricalParameterRanges", ()):
        values[each["Name"]] = source.choice(each["Values"])
    return values


def _between(source: random.Random, bounds: Mapping[str, str]) -> float:
    low, high = float(bounds["MinValue"]), float(bounds["MaxValue"])
    if bounds.get("ScalingType") == "Logarithmic":
        return math.exp(source.uniform(math.log(low), math.log(high)))
    return source.uniform(low, high)

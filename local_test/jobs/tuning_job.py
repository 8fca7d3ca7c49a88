"""Tuning jobs: several trainings with values drawn at random, or from a grid, and the best of them.

SageMaker's Bayesian strategy is played by random draws: the values differ from AWS's, and so may the best training.
"""

import itertools
import math
import random
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from local_test.jobs import metrics
from local_test.jobs.job import Job, JobFailed, JobStopped, Platform, now
from local_test.jobs.training_job import TrainingJob
from local_test.platform.calls import ValidationError
from local_test.platform.containers import images

SEED = 1
STRATEGIES = ("Bayesian", "Random", "Grid")
OBJECTIVE = "_tuning_objective_metric"  # the hyperparameter by which AWS's images learn the objective
LEFT_OUT = (  # members of a definition that CreateTrainingJob does not have
    *("DefinitionName", "TuningObjective", "HyperParameterRanges", "StaticHyperParameters"),
    *("HyperParameterTuningResourceConfig",),
)
Draw = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a tuning job."""

    training: TrainingJob
    definition: Mapping[str, Any]
    objective: Mapping[str, str]
    draw: Draw

    @property
    def value(self) -> float | None:
        """The value of the objective, once the training has completed."""
        if self.training.status != "Completed":
            return None
        return self.training.metrics.get(self.objective["MetricName"])

    @property
    def rank(self) -> float:
        """Smaller is better."""
        value = self.value
        if value is None or math.isnan(value):
            return math.inf
        return -value if self.objective["Type"] == "Maximize" else value


class TuningJob(Job):
    KIND, ARN, SHORT = "HyperParameterTuningJob", "hyper-parameter-tuning-job", "HyperParameterTuning"
    WORD = "tuning"

    def __init__(self, request: Mapping[str, Any], platform: Platform) -> None:
        super().__init__(request, platform)
        self._trials: list[Trial] = []
        self._enough = False  # no further training starts

    def validate(self) -> None:
        if self.request.get("WarmStartConfig"):
            raise ValidationError("WarmStartConfig is not supported by this emulator: leave it out.")
        if (self.request.get("Autotune") or {}).get("Mode") == "Enabled":
            raise ValidationError("Autotune is not supported by this emulator: give ranges and a strategy.")
        strategy = self._config["Strategy"]
        if strategy not in STRATEGIES:
            supported = ", ".join(STRATEGIES)
            raise ValidationError(f"Strategy {strategy} is not supported by this emulator, only {supported}.")
        if not self._definitions:
            raise ValidationError("Give a TrainingJobDefinition, or TrainingJobDefinitions.")
        if strategy != "Grid" and not self._limits.get("MaxNumberOfTrainingJobs"):
            raise ValidationError(f"Strategy {strategy} needs ResourceLimits.MaxNumberOfTrainingJobs.")
        for definition in self._definitions:
            self._check_objective(definition)
            check_ranges(self._ranges(definition), grid=strategy == "Grid")
            TrainingJob(self._request(definition, self.name, {}), self.platform, self.arn).validate()

    def run(self) -> str:
        events = self.platform.events
        if self._config["Strategy"] == "Bayesian":
            events.emit("job", self.name, "Strategy Bayesian is played by random draws")
        if self._config.get("TrainingJobEarlyStoppingType") == "Auto":
            events.emit("job", self.name, "TrainingJobEarlyStoppingType Auto is ignored: no training is stopped early")
        with self.changed:
            self.began = now()
        limit = self._limits.get("MaxRuntimeInSeconds")
        until = time.monotonic() + limit if limit else None
        draws, parallel = self._draws(), self._limits["MaxParallelTrainingJobs"]
        with ThreadPoolExecutor(parallel) as threads:
            for done in [threads.submit(self._train, draws, until) for _ in range(parallel)]:
                done.result()
        if self.closing:
            raise JobStopped
        if not self.stopping:
            self._check_results()
        return "Stopped" if self.stopping else "Completed"

    def stop(self) -> None:
        super().stop()
        self._stop_trainings()

    def close(self) -> None:
        self.halt()
        for trial in self.trials:
            trial.training.close()
        super().close()

    @property
    def trials(self) -> list[Trial]:
        with self.changed:
            return list(self._trials)

    def trainings(self) -> list[dict[str, Any]]:
        """The HyperParameterTrainingJobSummary of each training."""
        return [shown(each) for each in self.trials]

    # What is trained

    @property
    def _config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.request["HyperParameterTuningJobConfig"]
        return config

    @property
    def _limits(self) -> Mapping[str, Any]:
        limits: Mapping[str, Any] = self._config["ResourceLimits"]
        return limits

    @property
    def _definitions(self) -> list[Mapping[str, Any]]:
        one = self.request.get("TrainingJobDefinition")
        return [one] if one else list(self.request.get("TrainingJobDefinitions") or ())

    def _objective(self, definition: Mapping[str, Any]) -> Mapping[str, str]:
        return definition.get("TuningObjective") or self._config.get("HyperParameterTuningJobObjective") or {}

    def _ranges(self, definition: Mapping[str, Any]) -> Mapping[str, Any]:
        return definition.get("HyperParameterRanges") or self._config.get("ParameterRanges") or {}

    def _check_objective(self, definition: Mapping[str, Any]) -> None:
        algorithm, name = definition["AlgorithmSpecification"], self._objective(definition).get("MetricName", "none")
        known = [each["Name"] for each in algorithm.get("MetricDefinitions") or ()]
        if images.is_xgboost(algorithm.get("TrainingImage", "")):
            known += [each["Name"] for each in metrics.of_xgboost()]
        if name not in known:
            raise ValidationError(
                "A metric is required for this hyperparameter tuning job objective. Provide a metric in the metric "
                f"definitions. ({name} is not one of: {', '.join(known) or 'none'})"
            )

    def _draws(self) -> Iterator[tuple[Mapping[str, Any], Draw]]:
        """Definition and values of each training; several definitions take turns."""
        most, seed = self._limits.get("MaxNumberOfTrainingJobs"), self._config.get("RandomSeed", SEED)
        if self._config["Strategy"] == "Grid":
            rows = [[(each, cell) for cell in grid(self._ranges(each))] for each in self._definitions]
            found = [each for row in itertools.zip_longest(*rows) for each in row if each is not None]
            return iter(found[:most])
        turns = zip(range(most or 0), itertools.cycle(self._definitions), strict=False)
        return ((each, drawn(self._ranges(each), seed, number)) for number, each in turns)

    def _request(self, definition: Mapping[str, Any], name: str, draw: Draw) -> dict[str, Any]:
        """The CreateTrainingJob request of one training."""
        resources = definition.get("ResourceConfig") or definition.get("HyperParameterTuningResourceConfig") or {}
        return {
            **{key: value for key, value in definition.items() if key not in LEFT_OUT},
            "TrainingJobName": name,
            "ResourceConfig": resources,
            "HyperParameters": {
                **(definition.get("StaticHyperParameters") or {}),
                **draw,
                OBJECTIVE: self._objective(definition)["MetricName"],
            },
        }

    def _train(self, draws: Iterator[tuple[Mapping[str, Any], Draw]], until: float | None) -> None:
        """Runs trainings one after the other, beside other threads that do the same."""
        while (trial := self._next(draws, until)) is not None:
            if not trial.training.wait(None if until is None else until - time.monotonic()):
                self._stop_trainings()
                trial.training.wait()
            with self.changed:
                self._enough = self._enough or enough(self._trials, self._config)

    def _next(self, draws: Iterator[tuple[Mapping[str, Any], Draw]], until: float | None) -> Trial | None:
        """Starts the next training. None if there is none to start."""
        with self.changed:
            late = until is not None and time.monotonic() >= until
            definition, draw = (None, {}) if self._enough or late or self.stopping else next(draws, (None, {}))
            if definition is None:
                return None
            name = f"{self.name[:50]}-{len(self._trials) + 1:03}-{uuid.uuid4().hex[:8]}"
            training = TrainingJob(self._request(definition, name, draw), self.platform, self.arn)
            training.validate()
            trial = Trial(training, definition, self._objective(definition), draw)
            self._trials.append(trial)
            self.platform.start(training)
            return trial

    def _stop_trainings(self) -> None:
        for trial in self.trials:
            try:
                trial.training.stop()
            except ValidationError:
                pass  # it has ended meanwhile

    def _check_results(self) -> None:
        trials = self.trials
        if all(each.training.status == "Failed" for each in trials):
            first = next((each.training.reason for each in trials), "no training was started")
            raise JobFailed(
                "All training jobs failed. Please take a look at the training jobs failures to get more details. "
                f"(The first: {first})"
            )
        if best(trials) is None:
            raise JobFailed(
                f"No objective metrics found after running {len(trials)} training jobs. Please ensure that the custom "
                "algorithm is emitting the objective metric as defined by the regular expression provided."
            )

    def _more(self) -> dict[str, Any]:
        found, trials = best(self._trials), self._trials
        counters = {
            "TrainingJobStatusCounters": {
                "Completed": sum(each.training.status == "Completed" for each in trials),
                "InProgress": sum(each.training.status in ("InProgress", "Stopping") for each in trials),
                "RetryableError": 0,
                "NonRetryableError": sum(each.training.status == "Failed" for each in trials),
                "Stopped": sum(each.training.status == "Stopped" for each in trials),
            },
            "ObjectiveStatusCounters": {
                status: sum(objective_status(each) == status for each in trials)
                for status in ("Succeeded", "Pending", "Failed")
            },
        }
        return {
            "Strategy": self._config["Strategy"],
            "ResourceLimits": self._limits,
            **counters,
            **({"BestTrainingJob": shown(found)} if found else {}),
        }


def best(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best value of the objective."""
    ranked = [each for each in trials if each.rank < math.inf]
    return min(ranked, key=lambda each: each.rank) if ranked else None


def enough(trials: Sequence[Trial], config: Mapping[str, Any]) -> bool:
    """Whether TuningJobCompletionCriteria end the search."""
    criteria, found = config.get("TuningJobCompletionCriteria") or {}, best(trials)
    if found is None or found.value is None:
        return False
    target = criteria.get("TargetObjectiveMetricValue")
    if target is not None:
        sign = -1 if found.objective["Type"] == "Maximize" else 1
        if sign * found.value <= sign * target:
            return True
    most = int((criteria.get("BestObjectiveNotImproving") or {}).get("MaxNumberOfTrainingJobsNotImproving") or 0)
    done = [each for each in trials if each.training.done]
    return bool(most) and len(done) - 1 - done.index(found) >= most


def objective_status(trial: Trial) -> str:
    """ObjectiveStatus."""
    if not trial.training.done:
        return "Pending"
    return "Failed" if trial.value is None else "Succeeded"


def shown(trial: Trial) -> dict[str, Any]:
    """The HyperParameterTrainingJobSummary of a trial."""
    described, value = trial.training.summary(), trial.value
    members = (
        *("TrainingJobName", "TrainingJobArn", "TrainingJobStatus", "CreationTime", "TrainingStartTime"),
        *("TrainingEndTime", "FailureReason"),
    )
    final = {**trial.objective, "Value": value}
    return {
        **{key: described[key] for key in members if key in described},
        "TunedHyperParameters": dict(trial.draw),
        "ObjectiveStatus": objective_status(trial),
        **({"FinalHyperParameterTuningJobObjectiveMetric": final} if value is not None else {}),
        **({"TrainingJobDefinitionName": name} if (name := trial.definition.get("DefinitionName")) else {}),
    }


def check_ranges(ranges: Mapping[str, Any], *, grid: bool) -> None:
    """Raises ValidationError for ranges from which nothing can be drawn."""
    if ranges.get("AutoParameters"):
        raise ValidationError("ParameterRanges.AutoParameters is not supported by this emulator: give ranges.")
    numbers = [*(ranges.get("ContinuousParameterRanges") or ()), *(ranges.get("IntegerParameterRanges") or ())]
    if grid and numbers:
        raise ValidationError("Strategy Grid takes CategoricalParameterRanges only.")
    for each in numbers:
        low, high = float(each["MinValue"]), float(each["MaxValue"])
        scale = each.get("ScalingType", "Auto")
        if low > high:
            raise ValidationError(f"{each['Name']}: MinValue {low:g} is above MaxValue {high:g}.")
        if (scale == "Logarithmic" and low <= 0) or (scale == "ReverseLogarithmic" and not 0 <= low <= high < 1):
            raise ValidationError(f"{each['Name']}: ScalingType {scale} does not fit the range {low:g} to {high:g}.")


def grid(ranges: Mapping[str, Any]) -> list[Draw]:
    """All combinations of the categorical values."""
    each = ranges.get("CategoricalParameterRanges") or ()
    rows = itertools.product(*(one["Values"] for one in each))
    return [dict(zip((one["Name"] for one in each), row, strict=True)) for row in rows]


def drawn(ranges: Mapping[str, Any], seed: int, number: int) -> Draw:
    """The hyperparameters of one training, as text. Equal seed and number give equal values."""
    source = random.Random(f"{seed}/{number}")
    values = {}
    for each in ranges.get("ContinuousParameterRanges") or ():
        values[each["Name"]] = f"{_between(source, each):.6g}"
    for each in ranges.get("IntegerParameterRanges") or ():
        values[each["Name"]] = str(round(_between(source, each)))
    for each in ranges.get("CategoricalParameterRanges") or ():
        values[each["Name"]] = source.choice(each["Values"])
    return values


def _between(source: random.Random, bounds: Mapping[str, str]) -> float:
    low, high = float(bounds["MinValue"]), float(bounds["MaxValue"])
    scale = bounds.get("ScalingType")
    if scale == "Logarithmic":
        return math.exp(source.uniform(math.log(low), math.log(high)))
    if scale == "ReverseLogarithmic":
        return 1 - math.exp(source.uniform(math.log(1 - high), math.log(1 - low)))
    return source.uniform(low, high)

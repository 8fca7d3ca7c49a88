"""The rules of SageMaker Pipelines that need no call: which step runs next, conditions, caching, retries.

docs.aws.amazon.com/sagemaker/latest/dg/build-and-manage-steps-types.html, .../pipelines-caching.html,
.../pipelines-default-keys.html, .../pipelines-retry-policy.html
"""

import datetime as dt
import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from deploy.errors import SpecError
from deploy.pipelines.validation import Placed, duration_parts

ENDED = frozenset({"Succeeded", "Failed", "Stopped", "NotRun"})  # NotRun: internal, such a step is not listed
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equals": operator.eq,
    "GreaterThan": operator.gt,
    "GreaterThanOrEqualTo": operator.ge,
    "LessThan": operator.lt,
    "LessThanOrEqualTo": operator.le,
}
# The arguments that make a cache key, by type of step.
CACHED_ARGUMENTS = {
    "Processing": ("AppSpecification", "Environment", "ProcessingInputs"),
    "Training": (
        *("AlgorithmSpecification", "CheckpointConfig", "DebugHookConfig", "DebugRuleConfigurations"),
        *("Environment", "HyperParameters", "InputDataConfig"),
    ),
    "Tuning": ("HyperParameterTuningJobConfig", "TrainingJobDefinition", "TrainingJobDefinitions"),
    "Transform": ("DataProcessing", "Environment", "ModelName", "TransformInput"),
}
CACHED_DEFINITION = (  # of a tuning's training jobs
    *("AlgorithmSpecification", "HyperParameterRanges", "InputDataConfig", "StaticHyperParameters"),
    "TuningObjective",
)


def next_steps(
    placed: Mapping[str, Placed],
    waits: Mapping[str, set[str]],
    statuses: Mapping[str, str],
    outcomes: Mapping[str, bool],
) -> tuple[list[str], list[str]]:
    """The steps that can start now, and the steps that will never run.

    `statuses` has the steps that have begun or will never run, `outcomes` the results of the conditions. A step never
    runs if its branch is not taken, or if a step before it has not succeeded.
    """
    ready, never = [], []
    for name, needs in waits.items():
        if name in statuses:
            continue
        branch = placed[name]
        taken = not branch.condition or outcomes.get(branch.condition, branch.outcome) == branch.outcome
        if not taken or any(statuses.get(each) in ENDED - {"Succeeded"} for each in needs):
            never.append(name)
        elif all(statuses.get(each) == "Succeeded" for each in needs):
            ready.append(name)
    return ready, never


def holds(conditions: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all conditions hold; their values are resolved. Raises SpecError for values that cannot be compared."""
    return all(_holds(each) for each in conditions)


def _holds(condition: Mapping[str, Any]) -> bool:
    kind = condition["Type"]
    if kind == "Not":
        return not _holds(condition["Condition"])
    if kind == "Or":
        return any(_holds(each) for each in condition["Conditions"])
    if kind == "In":
        return any(
            _alike(condition["QueryValue"], each) and condition["QueryValue"] == each for each in condition["Values"]
        )
    left, right = condition["LeftValue"], condition["RightValue"]
    if not _alike(left, right):
        raise SpecError(
            f"condition {kind}: {left!r} and {right!r} have different types: {type(left).__name__} and "
            f"{type(right).__name__}"
        )
    return COMPARISONS[kind](left, right)


def _alike(one: Any, other: Any) -> bool:
    """Whether two values have types that can be compared: two numbers, or the same type."""
    numbers = [isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other)]
    return all(numbers) or type(one) is type(other)


def typed(value: Any, kind: str) -> Any:
    """An output of a function or a callback as its type. Raises SpecError."""
    try:
        if kind == "String":
            return value if isinstance(value, str) else json.dumps(value)
        if kind == "Boolean":
            return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]
        return int(value) if kind == "Integer" else float(value)
    except (KeyError, TypeError, ValueError):
        raise SpecError(f"{value!r} is not of type {kind}") from None


# Caching


def cache_key(step: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """A hash of the arguments that count for caching; "" for a step without caching, or of a type that has none."""
    counted = CACHED_ARGUMENTS.get(step["Type"])
    if counted is None or not (step.get("CacheConfig") or {}).get("Enabled"):
        return ""
    kept = {name: arguments[name] for name in counted if name in arguments}
    if step["Type"] == "Tuning":
        if "TrainingJobDefinition" in kept:
            kept["TrainingJobDefinition"] = _of_definition(kept["TrainingJobDefinition"])
        if "TrainingJobDefinitions" in kept:
            kept["TrainingJobDefinitions"] = [_of_definition(each) for each in kept["TrainingJobDefinitions"]]
    return hashlib.sha256(json.dumps([step["Name"], step["Type"], kept], sort_keys=True).encode()).hexdigest()


def _of_definition(definition: Mapping[str, Any]) -> dict[str, Any]:
    return {name: definition[name] for name in CACHED_DEFINITION if name in definition}


def oldest_usable(step: Mapping[str, Any], now: dt.datetime) -> dt.datetime:
    """The earliest end of a run that the step's cache may still use. A cache without ExpireAfter never expires."""
    text = (step.get("CacheConfig") or {}).get("ExpireAfter")
    if text is None:
        return dt.datetime.min.replace(tzinfo=dt.UTC)
    years, months, weeks, days, hours, minutes, seconds = duration_parts(text)
    try:
        return now - dt.timedelta(
            days=365 * years + 30 * months + days, weeks=weeks, hours=hours, minutes=minutes, seconds=seconds
        )
    except OverflowError:
        return dt.datetime.min.replace(tzinfo=dt.UTC)


# Retries

BY_CODE = {
    **dict.fromkeys(("ThrottlingException", "Throttling", "TooManyRequestsException"), "Step.THROTTLING"),
    **dict.fromkeys(("ResourceLimitExceeded", "ServiceQuotaExceededException"), "SageMaker.RESOURCE_LIMIT"),
}
BY_REASON = {  # beginning of a job's FailureReason
    "InternalServerError": "SageMaker.JOB_INTERNAL_ERROR",
    "CapacityError": "SageMaker.CAPACITY_ERROR",
    "ResourceLimitExceeded": "SageMaker.RESOURCE_LIMIT",
}
DEFAULT_ATTEMPTS = 5  # of a policy with neither MaxAttempts nor ExpireAfterMin


def exception_of_call(code: str, status: int) -> str:
    """The type of exception, as retry policies name it, of a call that failed; "" for one that is never retried."""
    return BY_CODE.get(code, "Step.SERVICE_FAULT" if status >= 500 else "")


def exception_of_job(reason: str) -> str:
    """The same for the FailureReason of a job."""
    return next((kind for words, kind in BY_REASON.items() if reason.startswith(words)), "")


def pause_before_retry(
    policies: Sequence[Mapping[str, Any]], exception: str, attempts: int, elapsed: float
) -> float | None:
    """Seconds until the step is tried again; None: it is not.

    The first policy that names the exception decides. `attempts` is the number of tries so far, at least 1, `elapsed`
    the seconds since the first.
    """
    policy = next((each for each in policies if exception and exception in (each.get("ExceptionType") or ())), None)
    if policy is None:
        return None
    pause = float(policy.get("IntervalSeconds", 1)) * float(policy.get("BackoffRate", 2.0)) ** (attempts - 1)
    expires, most = policy.get("ExpireAfterMin"), policy.get("MaxAttempts")
    if expires is not None:
        return pause if elapsed + pause <= 60 * expires else None
    return pause if attempts <= (DEFAULT_ATTEMPTS if most is None else most) else None

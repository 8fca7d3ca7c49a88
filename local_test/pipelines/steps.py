"""The work of each type of step: a client of the platform's API, as SageMaker Pipelines is one of SageMaker's.

A step creates its job or model, polls the operation that describes it, and takes its properties from the answer.
"""

import json
import secrets
import string
import threading
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from deploy.errors import SpecError
from deploy.pipelines.validation import KINDS
from local_test.pipelines import rules
from local_test.platform.calls import MESSAGE

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.1, 2.0, 1.3  # seconds between two polls
TOKEN_LENGTH = 10  # of a callback's token
ALPHABET = string.ascii_letters + string.digits

Properties = dict[str, Any]


class StepFailed(Exception):
    """A step failed; the message is its FailureReason. `exception` is its type, as retry policies name it."""

    def __init__(self, reason: str, exception: str = "") -> None:
        super().__init__(reason)
        self.exception = exception


class StepStopped(Exception):
    """The step's job has stopped because the execution was stopped."""


class PlatformEnds(Exception):
    """The platform ends; the step's thread must end too."""


class Halt:
    """How an execution is stopped: `stopping` by StopPipelineExecution, `ending` by the end of the platform."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # notified when a field below or a callback changes
        self.stopping = False
        self.ending = False

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.ending = True
            self.changed.notify_all()


@dataclass(slots=True)
class Callback:
    """A callback step that waits for its answer."""

    halt: Halt  # of its execution
    execution: str  # ARN
    answered: bool = False
    outputs: Mapping[str, str] = field(default_factory=dict)
    failure: str | None = None

    def answer(self, outputs: Mapping[str, str], failure: str | None) -> None:
        with self.halt.changed:
            self.outputs, self.failure, self.answered = outputs, failure, True
            self.halt.changed.notify_all()


Callbacks = MutableMapping[str, Callback]  # by token


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One try of a step; its arguments are resolved."""

    step: Mapping[str, Any]
    arguments: Mapping[str, Any]
    name: str  # for the job, as SageMaker generates it
    execution: str  # ARN
    client: Callable[[str], Any]  # a boto3 client of the platform, by service
    halt: Halt
    callbacks: Callbacks
    shows: Callable[[Mapping[str, Any]], None]  # sets the step's Metadata as soon as it is known
    stops: Callable[[], None]  # sets the step's status to Stopping

    def call(self, service: str, operation: str, **request: Any) -> Any:
        """An API call's answer. Raises StepFailed with the error, as SageMaker words it."""
        try:
            return getattr(self.client(service), operation)(**request)
        except ClientError as error:
            if self.halt.ending:
                raise PlatformEnds from error
            meta, said = error.response.get("ResponseMetadata", {}), error.response["Error"]
            kind = rules.exception_of_call(said.get("Code", ""), meta.get("HTTPStatusCode", 0))
            raise StepFailed(_failed_call(service, error.operation_name, str(error)), kind) from error
        except BotoCoreError as error:
            if self.halt.ending:
                raise PlatformEnds from error
            raise StepFailed(_failed_call(service, operation, str(error))) from error

    def wait(self, seconds: float | None, until: Callable[[], bool]) -> None:
        """Waits at most so long for a condition of the halt or of a callback. Raises PlatformEnds."""
        with self.halt.changed:
            self.halt.changed.wait_for(lambda: self.halt.ending or until(), seconds)
        if self.halt.ending:
            raise PlatformEnds

    def pause(self, seconds: float, *, stop_ends_it: bool = False) -> None:
        """Waits so long; with `stop_ends_it` shorter if the execution is stopped. Raises PlatformEnds."""
        self.wait(seconds, lambda: stop_ends_it and self.halt.stopping)


def work(turn: Turn) -> Properties:
    """Carries out the step. Returns its properties. Raises StepFailed, StepStopped and PlatformEnds."""
    kind = turn.step["Type"]
    if kind in JOBS:
        return _job(turn, JOBS[kind])
    return {
        "Model": _model,
        "RegisterModel": _package,
        "EndpointConfig": _endpoint_config,
        "Endpoint": _endpoint,
        "Lambda": _function,
        "Callback": _callback,
        "Condition": _condition,
        "Fail": _fail,
    }[kind](turn)


def job_name(execution_id: str, step: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """`pipelines-EXECUTION-STEP-RANDOM`; a name in the arguments replaces the word and the step. 63 characters."""
    kind = KINDS.get(step["Type"])
    prefix = given.get(kind.name) if kind and kind.name else None
    word, tail = ("pipelines", _plain(step["Name"])) if prefix is None else (_plain(str(prefix)), "")
    suffix = "".join(secrets.choice(ALPHABET) for _ in range(10))
    room = 63 - len(execution_id) - len(suffix) - 2
    if prefix is None:
        return f"{word}-{execution_id}-{tail[: room - len(word) - 1].rstrip('-')}-{suffix}"
    return f"{word[:room].rstrip('-')}-{execution_id}-{suffix}"


def _plain(name: str) -> str:
    """A step's name as a part of a job's name, which has letters, digits and single hyphens only."""
    return "-".join(part for part in name.replace("_", "-").split("-") if part) or "step"


def _failed_call(service: str, operation: str, text: str) -> str:
    return f"ClientError: Failed to invoke {service}:{operation}. Error Details: {text}"


# Jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The operations of a type of job, as boto3 names them, and the members of the answers."""

    name: str  # TrainingJob: its metadata, and the beginning of its members
    method: str  # training_job: the end of its operations
    metadata: str = ""

    @property
    def shown(self) -> str:
        return self.metadata or self.name


JOBS = {
    "Training": Job(name="TrainingJob", method="training_job"),
    "Processing": Job(name="ProcessingJob", method="processing_job"),
    "Transform": Job(name="TransformJob", method="transform_job"),
    "Tuning": Job(name="HyperParameterTuningJob", method="hyper_parameter_tuning_job", metadata="TuningJob"),
}


def _job(turn: Turn, job: Job) -> Properties:
    named = {f"{job.name}Name": turn.name}
    made = turn.call("sagemaker", f"create_{job.method}", **{**turn.arguments, **named})
    turn.shows({job.shown: {"Arn": made[f"{job.name}Arn"]}})
    pause, asked = FIRST_PAUSE, False
    while True:
        described = turn.call("sagemaker", f"describe_{job.method}", **named)
        status = described[f"{job.name}Status"]
        if status == "Completed":
            return _properties(turn, job, described)
        reason = described.get("FailureReason", "")
        if status == "Failed":
            raise StepFailed(
                f"ClientError: {reason or f'{job.name} {turn.name} failed'}", rules.exception_of_job(reason)
            )
        if status == "Stopped":
            if turn.halt.stopping:
                raise StepStopped
            raise StepFailed(f"ClientError: {job.name} {turn.name} was stopped{reason and f': {reason}'}")
        if turn.halt.stopping and not asked:
            asked = True
            turn.stops()
            _stop(turn, job, named)
            continue
        turn.pause(pause, stop_ends_it=not asked)
        pause = min(pause * GROWTH, LONGEST_PAUSE)


def _stop(turn: Turn, job: Job, named: Mapping[str, str]) -> None:
    try:
        turn.call("sagemaker", f"stop_{job.method}", **named)
    except StepFailed:
        pass  # it has ended in the meantime: the next description has its status


def _properties(turn: Turn, job: Job, described: Mapping[str, Any]) -> Properties:
    if turn.step["Type"] != "Tuning":
        return dict(described)
    objective = described["HyperParameterTuningJobConfig"].get("HyperParameterTuningJobObjective") or {}
    listed = turn.call(
        "sagemaker",
        "list_training_jobs_for_hyper_parameter_tuning_job",
        HyperParameterTuningJobName=turn.name,
        SortBy="FinalObjectiveMetricValue",
        SortOrder="Ascending" if objective.get("Type") == "Minimize" else "Descending",
    )
    return {**described, "TrainingJobSummaries": listed["TrainingJobSummaries"]}


# Models and endpoints


def _model(turn: Turn) -> Properties:
    made = turn.call("sagemaker", "create_model", **{**turn.arguments, "ModelName": turn.name})
    turn.shows({"Model": {"Arn": made["ModelArn"]}})
    return dict(turn.call("sagemaker", "describe_model", ModelName=turn.name))


def _package(turn: Turn) -> Properties:
    """A version in a group; the step creates a missing group."""
    group = turn.arguments.get("ModelPackageGroupName")
    if group:
        try:
            turn.client("sagemaker").create_model_package_group(ModelPackageGroupName=str(group).rpartition("/")[2])
        except ClientError as error:
            if "exist" not in str(error):
                raise StepFailed(_failed_call("sagemaker", error.operation_name, str(error))) from error
    made = turn.call("sagemaker", "create_model_package", **turn.arguments)
    turn.shows({"RegisterModel": {"Arn": made["ModelPackageArn"]}})
    return dict(turn.call("sagemaker", "describe_model_package", ModelPackageName=made["ModelPackageArn"]))


def _endpoint_config(turn: Turn) -> Properties:
    name = turn.arguments.get("EndpointConfigName") or turn.name
    made = turn.call("sagemaker", "create_endpoint_config", **{**turn.arguments, "EndpointConfigName": name})
    turn.shows({"EndpointConfig": {"Arn": made["EndpointConfigArn"]}})
    return dict(turn.call("sagemaker", "describe_endpoint_config", EndpointConfigName=name))


def _endpoint(turn: Turn) -> Properties:
    """An endpoint that exists gets the configuration as an update."""
    name = turn.arguments.get("EndpointName") or turn.name
    try:
        made = turn.call("sagemaker", "create_endpoint", **{**turn.arguments, "EndpointName": name})
    except StepFailed as error:
        if "already existing" not in str(error):
            raise
        config = turn.arguments["EndpointConfigName"]
        made = turn.call("sagemaker", "update_endpoint", EndpointName=name, EndpointConfigName=config)
    turn.shows({"Endpoint": {"Arn": made["EndpointArn"]}})
    pause = FIRST_PAUSE
    while True:
        described = turn.call("sagemaker", "describe_endpoint", EndpointName=name)
        if described["EndpointStatus"] == "InService":
            return dict(described)
        if described["EndpointStatus"] in ("Failed", "UpdateRollbackFailed"):
            raise StepFailed(f"ClientError: {described.get('FailureReason', f'endpoint {name} failed')}")
        turn.pause(pause)
        pause = min(pause * GROWTH, LONGEST_PAUSE)


# Functions, callbacks, conditions


def _function(turn: Turn) -> Properties:
    """A stop of the execution waits for the function, as AWS does."""
    arn = turn.step["FunctionArn"]
    turn.shows({"Lambda": {"Arn": arn, "OutputParameters": []}})
    answer = turn.call("lambda", "invoke", FunctionName=arn, Payload=json.dumps(turn.arguments))
    text = answer["Payload"].read().decode()
    if turn.halt.ending:
        raise PlatformEnds
    returned = json.loads(text or "null")
    if answer.get("FunctionError"):
        raise StepFailed(_lambda_failure(returned))
    outputs = _outputs(turn, returned if isinstance(returned, dict) else {})
    turn.shows({"Lambda": {"Arn": arn, "OutputParameters": _shown(outputs)}})
    return {"OutputParameters": outputs}


def _lambda_failure(returned: Any) -> str:
    said = returned if isinstance(returned, dict) else {}
    kind, text = said.get("errorType", ""), said.get("errorMessage", returned)
    return f"ClientError: Lambda: {kind + ': ' if kind else ''}{text}"[:MESSAGE]


def _outputs(turn: Turn, returned: Mapping[str, Any]) -> dict[str, Any]:
    declared = turn.step.get("OutputParameters") or ()
    missing = [each["OutputName"] for each in declared if each["OutputName"] not in returned]
    if missing:
        found = ", ".join(returned) or "none"
        raise StepFailed(f"ClientError: output parameter {', '.join(missing)} is missing; returned: {found}")
    try:
        return {each["OutputName"]: rules.typed(returned[each["OutputName"]], each["OutputType"]) for each in declared}
    except SpecError as error:
        raise StepFailed(f"ClientError: output parameter: {error}") from error


def _shown(outputs: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"Name": name, "Value": value if isinstance(value, str) else json.dumps(value)}
        for name, value in outputs.items()
    ]


def _callback(turn: Turn) -> Properties:
    """Sends a message with a token, and waits for the call that returns the token. A stop sends a second message."""
    queue = turn.step["SqsQueueUrl"]
    token = "".join(secrets.choice(ALPHABET) for _ in range(TOKEN_LENGTH))
    waiting = turn.callbacks[token] = Callback(turn.halt, turn.execution)

    def send(status: str) -> None:
        body = {
            "token": token,
            "pipelineExecutionArn": turn.execution,
            "arguments": turn.arguments,
            "status": status,
        }
        turn.call("sqs", "send_message", QueueUrl=queue, MessageBody=json.dumps(body))

    def show(outputs: Mapping[str, Any]) -> None:
        turn.shows({"Callback": {"CallbackToken": token, "SqsQueueUrl": queue, "OutputParameters": _shown(outputs)}})

    show({})
    try:
        send("Executing")
        turn.wait(None, lambda: waiting.answered or turn.halt.stopping)
        if not waiting.answered:
            turn.stops()
            send("Stopping")
            turn.wait(None, lambda: waiting.answered)
            raise StepStopped
    finally:
        del turn.callbacks[token]
    if waiting.failure is not None:
        raise StepFailed(waiting.failure or "ClientError: the callback reported a failure")
    outputs = _outputs(turn, waiting.outputs)
    show(outputs)
    return {"OutputParameters": outputs}


def _condition(turn: Turn) -> Properties:
    try:
        outcome = rules.holds(turn.arguments["Conditions"])
    except SpecError as error:
        raise StepFailed(f"ClientError: {error}") from error
    turn.shows({"Condition": {"Outcome": str(outcome)}})
    return {"Outcome": str(outcome)}


def _fail(turn: Turn) -> Properties:
    message = str(turn.arguments["ErrorMessage"])
    turn.shows({"Fail": {"ErrorMessage": message}})
    raise StepFailed(message)

"""The engine of pipelines: runs executions, each in a thread, as a client of the platform's own API."""

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from botocore.exceptions import ClientError

from deploy.errors import SpecError, unknown
from deploy.pipelines.expressions import found, resolved, step_of
from deploy.pipelines.validation import Placed, check_arguments, order, own_arguments, steps_of
from local_test.pipelines import rules
from local_test.pipelines.records import LIFE, Execution, Owner, Records, Step, now
from local_test.pipelines.steps import (
    Callback,
    Halt,
    PlatformEnds,
    Properties,
    StepFailed,
    StepStopped,
    Turn,
    job_name,
    work,
)
from local_test.platform.events import Events

FAILED = "Step failure: One or multiple steps failed."  # AWS's words
REASON = 1024  # characters of a step's FailureReason
ENDS = 20.0  # seconds that `close` waits for the threads

Client = Callable[[str, str, str], Any]  # access key, region, service -> a boto3 client of the platform


class Engine:
    """Runs executions of the records. Thread-safe."""

    def __init__(self, records: Records, client: Client, events: Events) -> None:
        self._records = records
        self._client = client
        self._events = events
        self._lock = threading.Lock()  # guards the two below
        self._runs: dict[str, _Run] = {}  # by the execution's ARN
        self._ending: list[_Run] = []
        self._callbacks: dict[str, Callback] = {}

    def start(self, owner: Owner, execution: Execution) -> None:
        """Runs all steps of the execution that have no record yet, in the background."""
        run = _Run(self, owner, execution)
        with self._lock:
            self._runs[execution.arn] = run
        run.thread.start()

    def stop(self, owner: Owner, execution: Execution) -> None:
        """Stops an execution that runs. Its status is Stopping until its jobs have stopped."""
        with self._lock:
            run = self._runs.get(execution.arn)

        def stopping() -> None:
            if execution.status == "Executing":
                execution.status = "Stopping"

        if run is not None:
            self._records.change(owner, execution, stopping)
            run.halt.stop()

    def answer(self, token: str, outputs: Mapping[str, str], failure: str | None) -> str | None:
        """Ends the callback step with this token; the execution's ARN, None for an unknown token."""
        waiting = self._callbacks.get(token)
        if waiting is None or waiting.answered:
            return None
        waiting.answer(outputs, failure)
        return waiting.execution

    def forget(self, arn: str) -> None:
        """Called by the thread of an execution that has ended."""
        with self._lock:
            self._runs.pop(arn, None)

    def halt(self) -> None:
        """Ends all executions; their records state that the platform has ended. `close` waits for their threads."""
        with self._lock:
            self._ending = list(self._runs.values())
        for run in self._ending:
            run.halt.end()
        self._records.close()

    def close(self) -> None:
        """Waits for the threads of the executions that `halt` has ended."""
        until = time.monotonic() + ENDS
        for run in self._ending:
            run.thread.join(max(0.0, until - time.monotonic()))


class _Run:
    """One execution while it runs."""

    def __init__(self, engine: Engine, owner: Owner, execution: Execution) -> None:
        self.halt = Halt()
        self.thread = threading.Thread(target=self._run, name=f"pipeline {execution.id}", daemon=True)
        self._records, self._callbacks, self._events = engine._records, engine._callbacks, engine._events
        self._owner = owner
        self._execution = execution
        self._create_client = engine._client
        self._clients: dict[str, Any] = {}
        self._clients_lock = threading.Lock()
        definition = json.loads(execution.definition)
        self._placed: dict[str, Placed] = steps_of(definition)
        self._waits = order(definition)
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._engine = engine

    def _run(self) -> None:
        execution = self._execution
        self._events.emit("pipeline", execution.pipeline, f"{execution.id} Executing")
        try:
            self._schedule()
        except PlatformEnds:
            pass  # the record states it already
        finally:
            self._engine.forget(execution.arn)

    def _schedule(self) -> None:
        """Starts each step as soon as it can run; ends when no further step can start."""
        execution, running = self._execution, set[str]()
        while True:
            if self.halt.ending:
                raise PlatformEnds
            steps = execution.steps
            with self._records.lock:
                statuses = {name: step.status for name, step in steps.items()}
                outcomes = {
                    name: step.properties["Outcome"] == "True"
                    for name, step in steps.items()
                    if step.kind == "Condition" and step.status == "Succeeded"
                }
            ready, never = rules.next_steps(self._placed, self._waits, statuses, outcomes)
            for name in never:
                self._change(name, Step(name=name, kind=self._kind(name), status="NotRun"))
            if never:
                continue
            failed = any(step.kind == "Fail" and step.status != "NotRun" for step in steps.values())
            over = self.halt.stopping or failed
            for name in () if over else ready:
                if execution.parallelism and len(running) >= execution.parallelism:
                    break
                running.add(name)
                self._change(name, Step(name=name, kind=self._kind(name), status="Executing", started=now()))
                threading.Thread(target=self._step, args=(name,), name=f"step {name}", daemon=True).start()
            if not running:
                break
            running.discard(self._done.get())
        self._finish()

    def _finish(self) -> None:
        statuses = [step.status for step in self._execution.steps.values()]
        if "Failed" in statuses:
            self._end("Failed", FAILED)
        elif self.halt.stopping:
            self._end("Stopped", "")
        else:
            self._end("Succeeded", "")

    def _end(self, status: str, reason: str) -> None:
        def end() -> None:
            self._execution.status, self._execution.reason = status, reason

        self._record(end)
        self._events.emit("pipeline", self._execution.pipeline, f"{self._execution.id} {status}")

    # Steps

    def _step(self, name: str) -> None:
        try:
            self._carry_out(name)
        except PlatformEnds:
            pass
        finally:
            self._done.put(name)

    def _carry_out(self, name: str) -> None:
        began = time.monotonic()
        step = self._execution.steps[name]
        status, reason = "Succeeded", ""
        properties: Properties = {}
        try:
            properties = self._attempts(name)
        except PlatformEnds:
            raise
        except StepStopped:
            status = "Stopped"
        except (StepFailed, SpecError) as error:
            status, reason = "Failed", str(error)
        except Exception as error:  # a fault of this engine fails the step too
            status, reason = "Failed", f"{type(error).__name__}: {error}"

        def end() -> None:
            step.status, step.reason, step.ended = status, reason[:REASON], now()
            step.properties = plain(properties)

        self._record(end)
        shown = "Succeeded, from the cache" if step.cached_from else status
        self._events.emit(
            "step",
            f"{self._execution.pipeline}/{name}",
            f"{shown}{reason and f': {reason}'}",
            seconds=time.monotonic() - began,
        )

    def _attempts(self, name: str) -> Properties:
        """The properties of the first try that succeeds, or of an earlier run that the cache has."""
        definition, record = self._placed[name].step, self._execution.steps[name]
        began = time.monotonic()
        while True:
            job = job_name(self._execution.id, definition, _literal(definition.get("Arguments") or {}))
            arguments = self._resolved(definition, job)
            key = rules.cache_key(definition, arguments)
            if record.attempts == 0 and key and (source := self._cached(definition, key)):
                return self._reused(record, key, source)

            self._record(partial(_begin, record, key))
            turn = self._turn(definition, arguments, job, record)
            try:
                return work(turn)
            except StepFailed as error:
                pause = rules.pause_before_retry(
                    definition.get("RetryPolicies") or (), error.exception, record.attempts, time.monotonic() - began
                )
                if pause is None:
                    raise
                reason = f"{error}; the step is tried again in {pause:g} s"
                self._events.emit("step", f"{self._execution.pipeline}/{name}", reason)
                turn.wait(pause, lambda: self.halt.stopping)
                if self.halt.stopping:
                    raise StepStopped from error

    def _turn(self, definition: Mapping[str, Any], arguments: Mapping[str, Any], job: str, record: Step) -> Turn:
        def shows(metadata: Mapping[str, Any]) -> None:
            self._record(lambda: setattr(record, "metadata", dict(metadata)))

        def stops() -> None:
            self._record(lambda: setattr(record, "status", "Stopping"))

        known = self._known(job)
        place = f"Steps.{record.name}"
        ends = {
            key: resolved(definition[key], known, f"{place}.{key}", self._load)
            for key in ("FunctionArn", "SqsQueueUrl")
            if key in definition
        }
        return Turn(
            step={**definition, **ends},
            arguments=arguments,
            name=job,
            execution=self._execution.arn,
            client=self._client,
            halt=self.halt,
            callbacks=self._callbacks,
            shows=shows,
            stops=stops,
        )

    def _resolved(self, definition: Mapping[str, Any], job: str) -> Mapping[str, Any]:
        where = f"Steps.{definition['Name']}.Arguments"
        arguments: dict[str, Any] = resolved(own_arguments(definition), self._known(job), where, self._load)
        if definition["Type"] in ("Lambda", "Callback", "Condition", "Fail"):
            return arguments
        arguments = {name: value for name, value in arguments.items() if value is not None}
        check_arguments(definition, arguments)
        return arguments

    def _reused(self, record: Step, key: str, source: tuple[str, Step]) -> Properties:
        arn, earlier = source

        def reuse() -> None:
            record.metadata, record.cached_from, record.cache_key = earlier.metadata, arn, key

        self._record(reuse)
        return earlier.properties

    def _cached(self, definition: Mapping[str, Any], key: str) -> tuple[str, Step] | None:
        """The execution and the step of the most recent successful run with this key."""
        oldest = rules.oldest_usable(definition, now())
        usable = [
            (each.arn, step)
            for each in self._records.executions(self._owner, self._execution.pipeline)
            if each.life == LIFE
            for step in list(each.steps.values())
            if step.cache_key == key and step.status == "Succeeded" and not step.cached_from
            if step.ended and step.ended >= oldest
        ]
        return max(usable, key=lambda pair: pair[1].ended or oldest, default=None)

    # Values

    def _known(self, job: str) -> Callable[[str], Any]:
        def known(path: str) -> Any:
            root, _, rest = path.partition(".")
            if root == "Parameters":
                return _item(self._execution.parameters, rest, "parameter")
            if root == "Execution":
                return _item(self._own(job), rest, "property of an execution")
            name = step_of(path)
            if not name or name not in self._execution.steps:
                raise SpecError(unknown(name, list(self._execution.steps), "step"))
            rest = path[len(f"Steps.{name}") :]
            if rest.startswith(".PropertyFiles"):
                return self._property_file(name, rest)
            return found(self._execution.steps[name].properties, rest)

        return known

    def _own(self, job: str) -> dict[str, str]:
        arn = self._execution.arn
        return {
            "PipelineName": self._execution.pipeline,
            "PipelineArn": arn.rpartition("/execution/")[0],
            "PipelineExecutionId": self._execution.id,
            "PipelineExecutionArn": arn,
            "StartDateTime": self._execution.created.isoformat(),
            "CurrentDateTime": now().isoformat(),
            "TrainingJobName": job,
            "ProcessingJobName": job,
        }

    def _property_file(self, name: str, path: str) -> str:
        """The S3 URI of a property file of a processing step."""
        files = {each["PropertyFileName"]: each for each in self._placed[name].step.get("PropertyFiles") or ()}
        wanted = path.removeprefix(".PropertyFiles").strip(".[]'\"")
        file = _item(files, wanted, "property file")
        output = f".ProcessingOutputConfig.Outputs['{file['OutputName']}'].S3Output.S3Uri"
        uri = found(self._execution.steps[name].properties, output)
        return f"{str(uri).rstrip('/')}/{file['FilePath'].lstrip('/')}"

    def _load(self, uri: str) -> Any:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        try:
            return json.loads(self._client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())
        except ClientError as error:
            raise SpecError(f"{error.response['Error'].get('Message', error)}") from error
        except ValueError as error:
            raise SpecError(f"the file is not valid JSON: {error}") from error

    # Records and clients

    def _kind(self, name: str) -> str:
        return str(self._placed[name].step["Type"])

    def _change(self, name: str, step: Step) -> None:
        def put() -> None:
            self._execution.steps[name] = step

        self._record(put)

    def _record(self, change: Callable[[], None]) -> None:
        """Carries out a change of the record, unless the platform ends and has marked it already."""

        def guarded() -> None:
            if self.halt.ending:
                raise PlatformEnds
            change()

        self._records.change(self._owner, self._execution, guarded)

    def _client(self, service: str) -> Any:
        with self._clients_lock:
            if service not in self._clients:
                self._clients[service] = self._create_client(self._execution.access_key, self._owner[1], service)
            return self._clients[service]


def plain(value: Any) -> Any:
    """An answer of boto3 as JSON has it: times as text, without the metadata of the response."""
    made: dict[str, Any] = msgspec.to_builtins({key: each for key, each in value.items() if key != "ResponseMetadata"})
    return made


def _begin(record: Step, key: str) -> None:
    record.attempts, record.cache_key = record.attempts + 1, key


def _item(table: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise SpecError(unknown(name, list(table), what))
    return table[name]


def _literal(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if isinstance(value, str)}

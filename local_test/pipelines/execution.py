"""One execution of a definition: each step runs once the steps before it have succeeded; all of it can be stopped."""

import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from deploy.errors import SpecError, unknown
from deploy.pipelines import validation
from deploy.pipelines.executions import StepState
from deploy.pipelines.expressions import found, resolved
from deploy.pipelines.validation import values_of

Properties = Mapping[str, Any]  # the response of the step's describing operation
Work = Callable[["Step"], Properties]
AT_ONCE = 8  # steps


class StepFailed(Exception):
    """A step failed; the message is its FailureReason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step that starts now; its arguments are resolved and checked."""

    name: str
    job: str  # a name for the job, as SageMaker generates it
    arguments: Mapping[str, Any]
    definition: Mapping[str, Any]


class Running:
    """The processes, containers and instances of an execution, each with the function that ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._ends: dict[object, Callable[[], None]] = {}
        self._stopped = False

    @contextmanager
    def held(self, end: Callable[[], None]) -> Iterator[None]:
        """During the block, `stop` calls `end` from another thread. After a stop, `end` is called at once."""
        mine = object()
        with self._lock:
            self._ends[mine] = end
            late = self._stopped
        try:
            if late:
                end()
            yield
        finally:
            with self._lock:
                del self._ends[mine]

    def stop(self) -> None:
        """Call every `end`. The blocks themselves wait until their process has ended."""
        with self._lock:
            self._stopped = True
            ends = list(self._ends.values())
        for end in ends:
            end()


@dataclass(slots=True)
class Execution:
    """`steps` and `properties` grow during the run; `on_change` is called for every change of a step."""

    definition: Mapping[str, Any]
    given: Mapping[str, Any]
    name: str
    on_change: Callable[[str, StepState], None]
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    steps: dict[str, StepState] = field(default_factory=dict)
    properties: dict[str, Properties] = field(default_factory=dict)
    stopping: bool = False

    @property
    def succeeded(self) -> bool:
        return bool(self.steps) and all(each.status == "Succeeded" for each in self.steps.values())

    def run(self, kinds: Mapping[str, Work], stop: Callable[[], None]) -> None:
        """Run until no further step can start. `kinds` does the work of each type of step and raises StepFailed.

        An exception in this thread, KeyboardInterrupt for one, calls `stop`, which must make all running work end soon;
        it is raised again when that has ended. Raises SpecError for an invalid definition, before any step starts.
        """
        values = values_of(self.definition, self.given)
        validation.check(self.definition, self.given)
        waits = validation.order(self.definition)
        steps = {each["Name"]: each for each in self.definition["Steps"]}
        known = {**{f"Parameters.{name}": value for name, value in values.items()}, **self._own_properties()}
        for name in waits:
            self.steps[name] = StepState(kind=steps[name]["Type"])
        ahead, running = dict(waits), dict[Future[None], str]()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            try:
                while ahead or running:
                    for name in self._cannot_run(ahead):
                        del ahead[name]
                    for name in [each for each, needs in ahead.items() if needs <= set(self.properties)]:
                        del ahead[name]
                        running[threads.submit(self._step, steps[name], known, kinds)] = name
                    for done in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                        del running[done]
                        done.result()
            except BaseException:
                self.stopping = True
                stop()
                raise

    def _step(self, step: Mapping[str, Any], known: Properties, kinds: Mapping[str, Work]) -> None:
        name, kind, began = step["Name"], step["Type"], time.monotonic()
        self._change(name, StepState(kind=kind, status="Executing"))
        try:
            arguments = resolved(
                step["Arguments"], lambda path: self._value(path, known), f"Steps.{name}.Arguments", _unread
            )
            validation.check_arguments(step, arguments)
            job = f"pipelines-{self.id}-{name[:31]}-{uuid.uuid4().hex[:8]}"  # 63 characters at most
            started = Step(name=name, job=job, arguments=arguments, definition=step)
            self.properties[name] = {**arguments, **kinds[kind](started)}
        except (StepFailed, SpecError) as why:
            status, reason = "Failed", str(why)
        except (
            Exception
        ) as error:  # a fault of this runner fails the step too: otherwise the execution would wait for it
            status, reason = "Failed", f"{type(error).__name__}: {error}"
        else:
            status, reason = "Succeeded", ""
        if self.stopping:
            status, reason = "Stopped", ""
        self._change(name, StepState(kind=kind, status=status, seconds=time.monotonic() - began, reason=reason))

    def _cannot_run(self, ahead: Mapping[str, set[str]]) -> list[str]:
        """The steps that depend on a failed step, directly or not."""
        lost = []
        for name, needs in ahead.items():
            without = sorted(each for each in needs if self.steps[each].status in ("Failed", "NotRun"))
            if without:
                why = f"not run: {', '.join(without)} {'has' if len(without) == 1 else 'have'} not succeeded"
                self._change(name, StepState(kind=self.steps[name].kind, status="NotRun", reason=why))
                lost.append(name)
        return lost

    def _value(self, path: str, known: Properties) -> Any:
        if path in known:
            return known[path]
        root, _, rest = path.partition(".")
        name = next((each for each in self.properties if rest.startswith((f"{each}.", f"{each}["))), "")
        if root != "Steps" or not name:
            raise SpecError(unknown(path, list(known), "value"))
        return found(self.properties[name], rest[len(name) :])

    def _own_properties(self) -> dict[str, str]:
        arn = f"arn:aws:sagemaker:us-east-1:123456789012:pipeline/{self.name}"
        now = dt.datetime.now(dt.UTC).isoformat()
        values = {
            "PipelineName": self.name,
            "PipelineArn": arn,
            "PipelineExecutionId": self.id,
            "PipelineExecutionArn": f"{arn}/execution/{self.id}",
            "StartDateTime": now,
            "CurrentDateTime": now,
        }
        return {f"Execution.{name}": value for name, value in values.items()}

    def _change(self, name: str, state: StepState) -> None:
        self.steps[name] = state
        self.on_change(name, state)


def _unread(uri: str) -> Any:
    raise SpecError(f"{uri}: property files are not supported by this command")

"""One execution of a definition: each step once what it needs is there, and those that need nothing at once."""

import datetime as dt
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from deploy.pipelines import definition as definitions
from deploy.pipelines.expressions import found, resolved
from deploy.pipelines.parameters import values_of
from deploy.pipelines.picture import Shown
from deploy.table import SpecError, unknown

Properties = Mapping[str, Any]  # what the step's describing call would say
Work = Callable[["Step"], Properties]
AT_ONCE = 8  # steps


class StepFailed(Exception):
    """A step did not do what it is for; the message is its FailureReason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step whose turn has come, its arguments resolved and checked."""

    name: str
    job: str  # a name for what it makes, as SageMaker gives them
    arguments: Mapping[str, Any]
    definition: Mapping[str, Any]


@dataclass(slots=True)
class Execution:
    """`steps` and `properties` fill as it runs; `told` hears of every change of a step."""

    definition: Mapping[str, Any]
    given: Mapping[str, Any]
    name: str
    told: Callable[[str, Shown], None]
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    steps: dict[str, Shown] = field(default_factory=dict)
    properties: dict[str, Properties] = field(default_factory=dict)
    stopping: bool = False

    @property
    def succeeded(self) -> bool:
        return bool(self.steps) and all(each.status == "Succeeded" for each in self.steps.values())

    def run(self, kinds: Mapping[str, Work], stop: Callable[[], None]) -> None:
        """Until no step can run any more. `kinds` does the work of a type of step; StepFailed is its way to fail.

        Ctrl-C calls `stop`, which makes all work that is under way fail soon, and goes on when it has.
        Raises SpecError, before anything is run, for a definition or parameters that will not do.
        """
        values = values_of(self.definition, self.given)
        definitions.check(self.definition, self.given)
        waits = definitions.order(self.definition)
        steps = {each["Name"]: each for each in self.definition["Steps"]}
        known = {**{f"Parameters.{name}": value for name, value in values.items()}, **self._itself()}
        for name in waits:
            self.steps[name] = Shown(kind=steps[name]["Type"])
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
        self._tell(name, Shown(kind=kind, status="Executing"))
        try:
            arguments = resolved(step["Arguments"], lambda path: self._value(path, known), f"Steps.{name}.Arguments")
            definitions.check_request(step, arguments)
            job = f"pipelines-{self.id}-{name[:31]}-{uuid.uuid4().hex[:8]}"  # 63 characters at most
            turn = Step(name=name, job=job, arguments=arguments, definition=step)
            self.properties[name] = {**arguments, **kinds[kind](turn)}
        except (StepFailed, SpecError) as why:
            status, reason = "Failed", str(why)
        except Exception as error:  # a fault of the runner's own is the step's failure too, or all would wait for it
            status, reason = "Failed", f"{type(error).__name__}: {error}"
        else:
            status, reason = "Succeeded", ""
        if self.stopping:
            status, reason = "Stopped", ""
        self._tell(name, Shown(kind=kind, status=status, seconds=time.monotonic() - began, reason=reason))

    def _cannot_run(self, ahead: Mapping[str, set[str]]) -> list[str]:
        """Those that wait, directly or not, for one that failed."""
        lost = []
        for name, needs in ahead.items():
            without = sorted(each for each in needs if self.steps[each].status in ("Failed", "NotRun"))
            if without:
                why = f"not run: {', '.join(without)} {'has' if len(without) == 1 else 'have'} not succeeded"
                self._tell(name, Shown(kind=self.steps[name].kind, status="NotRun", reason=why))
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

    def _itself(self) -> dict[str, str]:
        arn = f"arn:aws:sagemaker:us-east-1:123456789012:pipeline/{self.name}"
        now = dt.datetime.now(dt.UTC).isoformat()
        said = {
            "PipelineName": self.name,
            "PipelineArn": arn,
            "PipelineExecutionId": self.id,
            "PipelineExecutionArn": f"{arn}/execution/{self.id}",
            "StartDateTime": now,
            "CurrentDateTime": now,
        }
        return {f"Execution.{name}": value for name, value in said.items()}

    def _tell(self, name: str, shown: Shown) -> None:
        self.steps[name] = shown
        self.told(name, shown)

"""A check and what came of it: passed, breached, a warning, or left out with the reason."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Subject = TypeVar("Subject")


class NoAnswer(Exception):
    """The container did not answer, or not in HTTP; the text says what it did instead."""


class Breach(Exception):
    """What was seen breaks the contract."""


class Doubt(Exception):
    """What was seen works, but not everywhere, or not for long."""


class LeftOut(Exception):
    """The check cannot be made here; the text is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    name: str
    outcome: str  # pass, FAIL, warn or skip
    seen: str
    wants: str  # what the platform wants
    breaks: str  # what happens there otherwise
    do: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Generic[Subject]):
    """One point of the contract. `run` says what it saw, or raises Breach, Doubt or LeftOut."""

    name: str
    wants: str
    breaks: str
    do: str
    source: str
    run: Callable[[Subject], str]

    def verdict(self, subject: Subject) -> Verdict:
        try:
            return self._came_to("pass", self.run(subject))
        except (Breach, NoAnswer) as breach:
            return self._came_to("FAIL", str(breach))
        except OSError as broken:  # a raw connection, in the middle of a request
            return self._came_to("FAIL", f"the connection broke: {broken}")
        except Doubt as doubt:
            return self._came_to("warn", str(doubt))
        except LeftOut as reason:
            return self.left_out(str(reason))

    def left_out(self, reason: str) -> Verdict:
        return self._came_to("skip", reason)

    def _came_to(self, outcome: str, seen: str) -> Verdict:
        about = {"wants": self.wants, "breaks": self.breaks, "do": self.do, "source": self.source}
        return Verdict(name=self.name, outcome=outcome, seen=" ".join(seen.split()), **about)


def check(*, breaks: str, do: str, source: str) -> Callable[[Callable[[Subject], str]], Check[Subject]]:
    """Makes a check of a function: its name is the check's, its docstring is what the platform wants."""

    def made(run: Callable[[Subject], str]) -> Check[Subject]:
        wants = " ".join((run.__doc__ or "").split())
        name = run.__name__.replace("_", "-")
        return Check(name=name, wants=wants, breaks=breaks, do=do, source=source, run=run)

    return made


def checks_of(module: Mapping[str, Any]) -> list[Check[Any]]:
    """Those that a module defines, in its order."""
    return [each for each in module.values() if isinstance(each, Check)]


def breached(verdicts: Iterable[Verdict]) -> bool:
    return any(each.outcome == "FAIL" for each in verdicts)

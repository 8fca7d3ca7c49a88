"""A check of the contract and its verdict: passed, failed, a warning, or skipped with the reason."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Subject = TypeVar("Subject")


class NoAnswer(Exception):
    """The container sent no valid HTTP answer; the message is the reason."""


class Breach(Exception):
    """The observation breaks the contract."""


class CheckWarning(Exception):
    """The observation works, but not in all deployments, or not permanently."""


class Skipped(Exception):
    """The check cannot run here; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a check, with everything that a reader needs to fix the container."""

    name: str
    outcome: str  # pass, FAIL, warn or skip
    seen: str  # the observation
    wants: str  # what the platform requires
    breaks: str  # the consequence on the platform
    do: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Generic[Subject]):
    """One point of the contract. `run` returns its observation, or raises Breach, CheckWarning or Skipped."""

    name: str
    wants: str
    breaks: str
    do: str
    source: str
    run: Callable[[Subject], str]

    def verdict(self, subject: Subject) -> Verdict:
        """Runs the check."""
        try:
            return self._verdict("pass", self.run(subject))
        except (Breach, NoAnswer) as breach:
            return self._verdict("FAIL", str(breach))
        except OSError as error:  # on a raw connection, in the middle of a request
            return self._verdict("FAIL", f"the connection broke: {error}")
        except CheckWarning as warning:
            return self._verdict("warn", str(warning))
        except Skipped as reason:
            return self.skipped(str(reason))

    def skipped(self, reason: str) -> Verdict:
        """The verdict of a check that is not run."""
        return self._verdict("skip", reason)

    def _verdict(self, outcome: str, seen: str) -> Verdict:
        about = {"wants": self.wants, "breaks": self.breaks, "do": self.do, "source": self.source}
        return Verdict(name=self.name, outcome=outcome, seen=" ".join(seen.split()), **about)


def check(*, breaks: str, do: str, source: str) -> Callable[[Callable[[Subject], str]], Check[Subject]]:
    """Makes a check of a function. Its name is the check's name, its docstring is what the platform requires."""

    def decorate(run: Callable[[Subject], str]) -> Check[Subject]:
        wants = " ".join((run.__doc__ or "").split())
        name = run.__name__.replace("_", "-")
        return Check(name=name, wants=wants, breaks=breaks, do=do, source=source, run=run)

    return decorate


def checks_in(module: Mapping[str, Any]) -> list[Check[Any]]:
    """The checks that a module defines, in the order of their definition."""
    return [each for each in module.values() if isinstance(each, Check)]


def breached(verdicts: Iterable[Verdict]) -> bool:
    """Whether any check failed."""
    return any(each.outcome == "FAIL" for each in verdicts)

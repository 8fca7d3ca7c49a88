"""A training job: a child process trains, and this process records the cause of a failure, even if the child is killed.

This process is small, so that the kernel kills the child, and not this process, when memory is exhausted.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TypeVar

import msgspec

from serve import machine
from serve.children import Children
from serve.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST = 1024  # characters; docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-output.html


class TrainingFailed(Exception):
    """The training cannot run as configured; the message names what to change."""


def configured(file: Path, kind: type[T], default: T) -> T:
    """The content of a JSON file of /opt/ml/input/config; `default` if there is no file. Raises TrainingFailed."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return default
    except msgspec.ValidationError as error:
        raise TrainingFailed(f"{file}: invalid: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TrainingFailed(f"{file} is not JSON: {error}") from error


def failure_file(root: Path) -> Path:
    return root / "output" / "failure"


def write_failure(root: Path, reason: str) -> None:
    """Write the reason to /opt/ml/output/failure, and to the log."""
    log.error("training failed", extra={"reason": reason})
    file = failure_file(root)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(reason[:LONGEST])
    except OSError as error:
        log.error("the failure file cannot be written", extra={"file": str(file), "error": str(error)})


def run(settings: Settings) -> int:
    """Run the training of /opt/ml/input. Return 0 with a model, or 1 with the reason in /opt/ml/output/failure."""
    children = Children()
    children.adopt()
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    failure = failure_file(settings.ml_root)
    failure.unlink(missing_ok=True)  # of an earlier run in the same directory, on a laptop
    # OpenMP's threads spin while they wait for one another. Where other processes need the processors (a second
    # training, a laptop), 60 rounds of 4,000 rows took up to 9 s instead of 0.2 s.
    environ = {"OMP_WAIT_POLICY": "passive", **os.environ}
    children.spawn("training", [sys.executable, "-m", "serve", "training"], environ)
    passed_on = False
    while children.ended is None:
        if stopped and not passed_on:
            children.signal("training", signal.SIGTERM)
            passed_on = True
        children.pause(60)
        children.reap()
    _, status = children.ended
    if status and not failure.exists():
        write_failure(settings.ml_root, _reason(status, stopped))
    return 1 if status else 0


def _reason(status: int, stopped: bool) -> str:
    if status == -signal.SIGKILL:
        limit, where = machine.limit()
        return (
            f"the training was killed, most likely because memory was exhausted: the limit is "
            f"{limit >> 20} MB ({where}); use a larger instance, or less data"
        )
    if status == -signal.SIGTERM and stopped:
        return "the training was stopped before its first round: there is no model"
    return f"the training ended with exit status {status}; see the log"

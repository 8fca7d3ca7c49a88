"""A training job: a child that trains, and this process, which tells why it failed even where the child no longer can.

It is small, so that the kernel, when memory is short, ends the child and not the one who writes that down.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from serve import machine
from serve.children import Children
from serve.settings import Settings

log = logging.getLogger(__name__)

LONGEST = 1024  # characters; docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-output.html


class TrainingFailed(Exception):
    """What whoever started the job has to change; the message names it."""


def path(root: Path) -> Path:
    return root / "output" / "failure"


def write(root: Path, reason: str) -> None:
    """Leave the reason in /opt/ml/output/failure, or say in the log that it could not be left."""
    log.error("training failed", extra={"reason": reason})
    file = path(root)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(reason[:LONGEST])
    except OSError as error:
        log.error("the reason could not be written down", extra={"file": str(file), "error": str(error)})


def run(settings: Settings) -> int:
    """Train as /opt/ml/input says; 0 where there is a model, else 1 and the reason in /opt/ml/output/failure."""
    children = Children()
    children.adopt()
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    told = path(settings.ml_root)
    told.unlink(missing_ok=True)  # of a run before this one, in a directory on someone's laptop
    # OpenMP's threads wait for one another by spinning, which where others want the processors too (a second training
    # beside this one, a laptop) made 60 rounds of 4,000 rows take up to 9 s instead of 0.2.
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
    if status and not told.exists():
        write(settings.ml_root, _reason(status, stopped))
    return 1 if status else 0


def _reason(status: int, stopped: bool) -> str:
    if status == -signal.SIGKILL:
        limit, where = machine.limit()
        return (
            f"the training was killed, most likely for want of memory: there are {limit >> 20} MB ({where}); "
            "take a larger instance, or less data"
        )
    if status == -signal.SIGTERM and stopped:
        return "the training was stopped before its first round: there is no model"
    return f"the training ended with {status}; its log says more"

"""Why a training failed, where the platform looks for it: its FailureReason shows the first 1,024 characters."""

import logging
from pathlib import Path

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

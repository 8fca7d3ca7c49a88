"""A start that must fail, so that CreateEndpoint fails or an update rolls back, and its way to the launcher.

The launcher's last log line is the reason. The host leaves its reason in a file of the run directory, and exits with a
status of its own.
"""

from pathlib import Path

import msgspec

STATUS = 3  # of the host, with the reason in the file
FILE = "failed_start"


class FailedStart(Exception):
    """The server must not start. `hint` is the next step for the reader."""

    def __init__(self, reason: str, *, hint: str = "", model: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.model = model


def write(run_dir: Path, failed: FailedStart) -> None:
    """Leave the reason for the launcher."""
    parts = {"reason": failed.reason, "hint": failed.hint, "model": failed.model}
    (run_dir / FILE).write_bytes(msgspec.json.encode(parts))


def read(run_dir: Path) -> FailedStart:
    """What `write` has left."""
    parts = msgspec.json.decode((run_dir / FILE).read_bytes())
    return FailedStart(parts["reason"], hint=parts["hint"], model=parts["model"])

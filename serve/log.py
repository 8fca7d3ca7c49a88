"""The log: one JSON object a line for each event, with its model, requests and numbers. Payloads are never logged."""

import json
import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# The ids of the requests that this process works on; of a thread that works on its own request, in `_thread.requests`.
_requests: Sequence[str] = ()
_thread = threading.local()


def work_on(requests: Sequence[str]) -> None:
    """Events carry these ids from now on, in threads as well."""
    global _requests
    _requests = requests


def thread_works_on(requests: Sequence[str] | None) -> None:
    """Events of this thread carry these ids from now on; None: those of the process."""
    _thread.requests = requests


def of_requests(requests: Sequence[str]) -> Mapping[str, Any]:
    """The ids as a field of an event: `request_id`, or `request_ids` if there are several."""
    if not requests:
        return {}
    return {"request_id": requests[0]} if len(requests) == 1 else {"request_ids": list(requests)}


class JsonLines(logging.Formatter):
    """Formats an event as one JSON object: time (UTC), level, process, event, the fields of `extra`, a traceback.

    The ids of the requests at work are added, unless `extra` has its own.
    """

    def __init__(self, process: str, model: str | None = None) -> None:
        super().__init__()
        self._process = process
        self._model = model

    def format(self, record: logging.LogRecord) -> str:
        line = _begun(record.created, record.levelname, self._process, record.getMessage())
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if self._model and "model" not in extra:
            line["model"] = self._model
        if "request_id" not in extra:
            own = getattr(_thread, "requests", None)
            line.update(of_requests(_requests if own is None else own))
        line.update(extra)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line, enc_hook=str).decode()
        except UnicodeEncodeError:  # half of a surrogate pair in a message: escaped, as JSON allows
            return json.dumps(line, default=str)


def output(process: str, model: str, requests: Sequence[str], text: str) -> bytes:
    """A line that a model's process has written to stdout or stderr, as a line of the log."""
    line = _begun(time.time(), "INFO", process, "output")
    return msgspec.json.encode({**line, "model": model, **of_requests(requests), "text": text}) + b"\n"


def _begun(moment: float, level: str, process: str, event: str) -> dict[str, Any]:
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    return {"time": f"{second}.{int(moment % 1 * 1e3):03d}Z", "level": level, "process": process, "event": event}


def start(process: str, level: str, *, handler: logging.Handler | None = None, model: str | None = None) -> None:
    """Write this process's log to stderr, or to `handler`. Call once, at its entry. `model`: of all its events."""
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process, model))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)

"""Why requests run together: the turn of the loop takes what has come and runs the compatible ones as one batch."""

import logging
import time
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

from serve import device
from serve.errors import InternalError, ServeError, TooLate
from serve.exhausted import exhausted, give_back
from serve.handlers.base import Predictor, Reply, Request
from serve.runner.job import Job

log = logging.getLogger(__name__)

# A request that has waited less than this is always tried: one slow batch must not turn all later ones away.
AT_ONCE = 0.05


class Batches:
    """A Predictor as the loop sees it: one `step` is one batch."""

    def __init__(self, predictor: Predictor, max_batch: int) -> None:
        self._predictor = predictor
        self._max_batch = max_batch
        self._pending: deque[Job] = deque()
        self._usual = 0.0  # seconds a batch takes, smoothed

    def decode(self, request: Request) -> Any:
        return self._predictor.decode(request)

    def room(self) -> int:
        return self._max_batch - len(self._pending)

    def join(self, job: Job) -> None:
        self._pending.append(job)

    def leave(self, job: Job) -> None:
        if job in self._pending:  # not when its answer was under way
            self._pending.remove(job)

    def step(self) -> None:
        batch = self._take()
        if not batch:
            return
        began = time.monotonic()
        for job in batch:
            if not job.began:
                job.begin(began)
        outcomes = self._outcomes(batch)
        took = time.monotonic() - began
        self._usual = took if not self._usual else 0.8 * self._usual + 0.2 * took
        for job, outcome in zip(batch, outcomes, strict=True):
            if outcome is None:
                self._pending.append(job)  # behind all who have come meanwhile
            elif isinstance(outcome, ServeError):
                job.fail(outcome)
            else:
                job.reply(outcome)

    def _take(self) -> list[Job]:
        """The oldest waiting job and all that may run with it, less those nobody waits for any more."""
        batch: list[Job] = []
        others: deque[Job] = deque()
        key: Hashable = None
        now = time.monotonic()
        while self._pending:
            job = self._pending.popleft()
            waited = now - job.arrived
            left = job.request.deadline - now
            if not job.began and (left <= 0 or (left < self._usual and waited > AT_ONCE)):
                job.fail(too_late(waited, self._usual))
            elif not batch:
                batch.append(job)
                key = self._predictor.compatible(job.item)
            elif len(batch) < self._max_batch and self._predictor.compatible(job.item) == key:
                batch.append(job)
            else:
                others.append(job)
        self._pending = others
        return batch

    def _outcomes(self, batch: list[Job]) -> Sequence[Reply | ServeError | None]:
        """One outcome a job; if the batch fails as a whole its members run alone, so that none pays for another."""
        try:
            return self._predictor.predict([job.item for job in batch])
        except Exception as error:
            if len(batch) == 1:
                return [outcome_of(error)]
            log.warning("batch failed, running its members alone", extra={"size": len(batch), "error": repr(error)})
            if exhausted(error):
                give_back(error)
        return [outcome for job in batch for outcome in self._outcomes([job])]


def outcome_of(error: Exception) -> ServeError:
    """An exception from a handler as the caller may see it; the log has the traceback."""
    if isinstance(error, ServeError):
        return error
    if lost := device.lost(error):
        log.error("device lost", exc_info=error)
        return lost
    if out := exhausted(error):
        log.error("exhausted in predict", exc_info=error)
        give_back(error)  # before its neighbours run
        out.message = f"the model failed on this request: {out.message}"
        return out
    log.error("predict failed", exc_info=error)
    return InternalError(f"the model failed on this request: {type(error).__name__}: {error}", hint="see the log")


def too_late(waited: float, usual: float) -> TooLate:
    return TooLate(
        f"waited {waited:.1f} s in the queue and cannot be answered in time (a batch takes {usual:.1f} s)",
        hint="try again later, raise copies in model.toml, or SAGEMAKER_MODEL_SERVER_TIMEOUT",
        retry_after=max(1.0, usual),
    )

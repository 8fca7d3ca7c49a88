"""The forkserver imports what known models need at once, and everything else while no orders come."""

import time

import pytest

from serve.host.forkserver import QUIET, pause_before_import


@pytest.mark.parametrize(
    ("missing", "seconds_since_order", "least", "most"),
    [
        ([], 0.0, None, None),
        (["known", "other"], 0.0, 0.0, 0.0),
        (["other"], 0.0, QUIET - 1, QUIET),
        (["other"], QUIET - 1, 0.0, 1.0),
        (["other"], QUIET + 1, 0.0, 0.0),
    ],
    ids=["nothing left", "a known model needs it", "just ordered", "nearly quiet", "quiet"],
)
def test_an_import_that_no_known_model_needs_waits_for_quiet(
    missing: list[str], seconds_since_order: float, least: float | None, most: float | None
) -> None:
    """An order that arrives during an import would wait for its end."""
    now = time.monotonic()
    pause = pause_before_import(missing, ["known"], last_order=now - seconds_since_order, now=now)
    if least is None or most is None:
        assert pause is None
    else:
        assert pause is not None
        assert least <= pause <= most

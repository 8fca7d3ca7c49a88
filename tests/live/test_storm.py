"""A minute of the long run (`make storm`): right calls, hostile inputs and kills at the same time."""

from pathlib import Path

import pytest

from tests.storm.fleet import make
from tests.storm.long_run import LongRun, Plan, budget_mb
from tests.storm.subjects import Processes, running

# How many of each a slow machine gets done in the minute is not asserted.
MODELS = {"own": 4, "trees": 4}  # their imports are quick; the long run has PyTorch's and scikit-learn's models as well
MINUTE = Plan(calls=9_000, seconds=60.0, kills=20, inputs=900)


@pytest.mark.timeout(900)
def test_a_minute_of_faults_and_hostile_inputs_hurts_no_answer(tmp_path: Path) -> None:
    """No wrong answer, no error without its cause, no end of the server; memory and descriptors stay flat."""
    fleet = make(tmp_path / "models", MODELS)
    with running(
        Processes(fleet.directory, {"SERVE_MEMORY_BUDGET_MB": str(budget_mb(MODELS))}, work=tmp_path / "w")
    ) as subject:
        report = LongRun(subject, fleet, MINUTE, progress=print).run()

    assert report.faults == []
    assert report.outcomes["right"] > len(fleet.names)
    assert sum(report.kills.values()) > 0
    assert report.evictions > 0
    assert len(report.inputs) > 5
    assert {each.part for each in report.growth} >= {
        "launcher",
        "host",
        "forkserver",
        "nginx master",
        "gunicorn master",
    }
    # Its own measure is of every half second; the sum of these samples is of the moment.
    assert report.last_runners_mb < budget_mb(MODELS) * 1.25

"""The executor of pipelines with a client that fails as AWS does: retries by the step's policies, faults, the end."""

import io
import json
import threading
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local_test.pipelines.executor import Engine
from local_test.pipelines.records import CUT, Execution, Records, now
from local_test.platform.events import Events
from tests.live.stack import wait_until
from tests.patience import PATIENCE

OWNER = ("123456789012", "us-east-1")
ARN = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/p/execution/abcdefghijkl"
MODEL = {"PrimaryContainer": {"Image": "i"}, "ExecutionRoleArn": "arn:aws:iam::123456789012:role/r"}


class Platform:
    """SageMaker of which CreateModel raises these errors first; `hold` lets DescribeModel wait."""

    def __init__(self, *errors: Exception, hold: threading.Event | None = None) -> None:
        self.errors = list(errors)
        self.asked = threading.Event()
        self._hold = hold

    def create_model(self, **request: Any) -> dict[str, str]:
        if self.errors:
            raise self.errors.pop(0)
        return {"ModelArn": f"arn:aws:sagemaker:us-east-1:123456789012:model/{request['ModelName']}"}

    def describe_model(self, **request: Any) -> dict[str, Any]:
        self.asked.set()
        if self._hold is not None:
            assert self._hold.wait(PATIENCE)
        return request


def refused(code: str, status: int = 400) -> ClientError:
    metadata: Any = {"HTTPStatusCode": status}
    return ClientError({"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": metadata}, "CreateModel")


def started(platform: Platform, **more: Any) -> tuple[Engine, Records, Execution]:
    """An execution of one Model step that has been started."""
    step = {"Name": "Create", "Type": "Model", "Arguments": MODEL, **more}
    definition = json.dumps({"Version": "2020-12-01", "Steps": [step]})
    execution = Execution(
        arn=ARN,
        pipeline="p",
        definition=definition,
        parameters={},
        role="r",
        access_key="k",
        token="t",
        created=now(),
        modified=now(),
    )
    records = Records()
    records.save(OWNER, execution)
    engine = Engine(records, lambda *_: platform, Events(io.StringIO()))
    engine.start(OWNER, execution)
    return engine, records, execution


def policy(exception: str, **more: Any) -> dict[str, Any]:
    return {"RetryPolicies": [{"ExceptionType": [exception], "IntervalSeconds": 0, "BackoffRate": 1.0, **more}]}


def test_a_throttled_call_is_tried_again_as_the_policy_says() -> None:
    _, _, execution = started(
        Platform(refused("ThrottlingException"), refused("ThrottlingException")),
        **policy("Step.THROTTLING", MaxAttempts=2),
    )
    wait_until(lambda: execution.status == "Succeeded")
    assert execution.steps["Create"].attempts == 3


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (refused("InternalFailure", 500), 2),  # MaxAttempts is used up
        (refused("ValidationException"), 1),  # no policy names it
        (KeyError("x"), 1),  # a fault of the executor
    ],
)
def test_other_errors_fail_the_step_and_the_execution(error: Exception, attempts: int) -> None:
    _, _, execution = started(Platform(error, error, error), **policy("Step.SERVICE_FAULT", MaxAttempts=1))
    wait_until(lambda: execution.status == "Failed")
    step = execution.steps["Create"]
    assert (step.status, step.attempts) == ("Failed", attempts)
    assert ("Failed to invoke sagemaker:CreateModel" in step.reason) != isinstance(error, KeyError)


def test_the_end_of_the_platform_is_what_the_record_states() -> None:
    """Also if the step's call returns afterwards."""
    hold = threading.Event()
    platform = Platform(hold=hold)
    engine, records, execution = started(platform)
    assert platform.asked.wait(PATIENCE)

    engine.halt()
    hold.set()
    engine.close()

    assert (execution.status, execution.reason) == ("Failed", CUT)
    assert (execution.steps["Create"].status, execution.steps["Create"].reason) == ("Failed", CUT)
    assert records.execution(OWNER, ARN) is execution

"""EventBridge: AWS's own events reach the targets of the rules that match them. moto keeps the rules."""

import copy
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from moto.events.models import Rule, events_backends

Event = Mapping[str, Any]
Invoke = Callable[[str, str], None]  # the ARN of a Lambda function, and the event as JSON


def event(account: str, region: str, kind: str, resources: Sequence[str], detail: Mapping[str, Any]) -> Event:
    """An event of SageMaker: docs.aws.amazon.com/sagemaker/latest/dg/automating-sagemaker-with-eventbridge.html"""
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": kind,
        "source": "aws.sagemaker",
        "account": account,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": region,
        "resources": list(resources),
        "detail": json.loads(json.dumps(detail, default=_milliseconds)),
    }


def deliver(account: str, region: str, sent: Event, invoke: Invoke) -> None:
    """Send an event of the default bus to the targets of its rules: Lambda functions, and what moto can reach."""
    bus = events_backends[account][region].describe_event_bus("default")
    event: Any = sent
    for rule in list(bus.rules.values()):
        if rule.state != "DISABLED" and rule.event_pattern.get_pattern() and rule.event_pattern.matches_event(event):
            for target in list(rule.targets):
                _send(rule, target, sent, invoke)


def _send(rule: Rule, target: Mapping[str, Any], sent: Event, invoke: Invoke) -> None:
    if other := {"InputTransformer", "InputPath"} & set(target):
        raise NotImplementedError(f"rule {rule.name}: {other.pop()} of a target is not supported by this emulator")
    if target["Arn"].split(":")[2] == "lambda":
        invoke(target["Arn"], target.get("Input") or json.dumps(sent))
        return
    alone = copy.copy(rule)
    alone.targets = [dict(target)]
    began = datetime.strptime(sent["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    event: Any = {**sent, "time": began.timestamp()}  # moto's form of the time
    alone.send_to_targets(event, transform_input=False)


def _milliseconds(value: Any) -> int:
    """Times in events are milliseconds since 1970."""
    return int(value.timestamp() * 1000)

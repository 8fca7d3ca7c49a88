"""What `up` makes for a new endpoint, without making it: every request that creates an object, in the order of `up`."""

from datetime import UTC, datetime, timedelta

from deploy import plan, roles, schedule
from deploy.aws import Request
from deploy.plan import Desired
from deploy.spec import Spec

HASH = "????????"  # in a name whose hash is not known


def creations(
    spec: Spec, wanted: Desired, account: str, region: str, keep: timedelta | None = None
) -> list[tuple[str, Request]]:
    """(operation, request) of each object. `keep`: the time after which the endpoint deletes itself."""
    own = [] if roles.is_arn(spec.role) else roles.requests(roles.of_endpoint(spec, account, region), spec.name)
    return [
        *own,
        *(("CreateModel", each) for each in wanted.models.values()),
        ("CreateEndpointConfig", wanted.config),
        *(("PutMetricAlarm", each) for each in plan.alarm_requests(spec)),
        ("CreateEndpoint", wanted.endpoint),
        *(_scheduled(spec.name, account, region, keep) if keep else []),
        *((operation, request) for _, operation, request in plan.scaling_requests(spec)),
    ]


def _scheduled(endpoint: str, account: str, region: str, keep: timedelta) -> list[tuple[str, Request]]:
    role = schedule.role(endpoint, account, region)
    when = datetime.now(UTC).replace(microsecond=0) + keep
    arn = roles.arn_of(role.name, account, region)
    return [*roles.requests(role, endpoint), ("CreateSchedule", schedule.request(endpoint, when, arn))]


def without_hashes(spec: Spec, wanted: Desired, text: str) -> str:
    """The text without the hashes in the names of models and configuration."""
    for name in (*wanted.models, wanted.config["EndpointConfigName"]):
        text = text.replace(name, f"{spec.name}-{HASH}")
    return text

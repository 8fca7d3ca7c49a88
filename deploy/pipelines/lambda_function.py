"""The function of a pipeline's Lambda steps: `deploy` has an endpoint serve what was trained, `smoke` calls it.

SageMaker cuts a Lambda step at 10 minutes, and an endpoint may take longer: `deploy` starts the change and returns,
`smoke` waits for it, and says in time what it still waits for.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from deploy import endpoint
from deploy.aws import Aws, Failed, explained
from deploy.pipelines.gathering import gathered
from deploy.pipelines.smoke import smoked
from deploy.progress import Progress
from deploy.settling import described
from deploy.spec import Spec, Variant
from deploy.spec_file import checked
from deploy.table import SpecError

Event = Mapping[str, Any]
LIMIT = 600.0  # seconds, where no context tells what is left
MARGIN = 20.0  # seconds before Lambda cuts, in which to say why


def handler(event: Event, context: Any) -> dict[str, str]:
    """What comes of the action; all values are strings, as output parameters of a Lambda step are."""
    try:
        action, keys = ACTIONS.get(event.get("action", ""), (None, ()))
        if action is None:
            raise SpecError(f"the event's action must be one of {', '.join(ACTIONS)}, not {event.get('action')!r}")
        missing = [key for key in keys if key not in event]
        if missing:
            raise SpecError(f"the event has no {', '.join(missing)}")
        left = context.get_remaining_time_in_millis() / 1000 if context else LIMIT
        return {"statusCode": "200", **action(event, Aws(), left - MARGIN)}
    except (SpecError, Failed) as error:
        raise RuntimeError(str(error)) from error
    except (ClientError, BotoCoreError) as error:
        raise RuntimeError(explained(error)) from error


def _deploy(event: Event, aws: Aws, _: float) -> dict[str, str]:
    """`artifacts`: name -> s3://.../model.tar.gz. The body tells the TargetModel of each, as JSON."""
    spec = checked(
        Spec(
            name=event["endpoint"],
            image=event["image"],
            models=event["prefix"],
            role=event["role"],
            variants=(Variant(instance=event["instance_type"]),),
        )
    )
    progress = Progress()
    targets = {name: gathered(aws, name, uri, event["prefix"], progress) for name, uri in event["artifacts"].items()}
    before = described(aws, spec.name)
    outcome = endpoint.up(spec, aws, progress, wait=False)
    return {
        "body": json.dumps(targets),
        "endpoint_name": spec.name,
        "config": outcome.config,
        "before": before["EndpointConfigName"] if before else "none",
        "changed": json.dumps(outcome.changed),
    }


def _smoke(event: Event, aws: Aws, seconds: float) -> dict[str, str]:
    """`models`: the body of `deploy`; `rows`: where there are rows to ask with. Tells what each model answered."""
    return smoked(
        aws,
        event["endpoint"],
        event["config"],
        event["before"],
        targets=json.loads(event["models"]),
        rows=event["rows"],
        seconds=seconds,
    )


ACTIONS: dict[str, tuple[Callable[[Event, Aws, float], dict[str, str]], tuple[str, ...]]] = {
    "deploy": (_deploy, ("artifacts", "prefix", "endpoint", "image", "role", "instance_type")),
    "smoke": (_smoke, ("endpoint", "config", "before", "models", "rows")),
}

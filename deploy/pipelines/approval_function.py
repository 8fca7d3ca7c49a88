"""The code of the Lambda function that an approval in the model registry calls: it runs `up` of the spec beside it.

Lambda stops it after 15 minutes, and calls it again twice after a failure; `up` resumes where it was stopped.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from deploy import endpoint, packages
from deploy.aws import Aws, explained
from deploy.errors import Failed, SpecError
from deploy.invoke import Check, run_checks
from deploy.progress import Progress
from deploy.spec import restored

CONTENT = "spec.json"  # beside the package deploy in the function's zip: the spec, and its smoke calls


def content(spec: Mapping[str, Any], checks: list[Check]) -> bytes:
    """The file that the function reads."""
    calls = [
        {"model": each.model, "type": each.content_type, "payload": base64.b64encode(each.payload).decode()}
        for each in checks
    ]
    return json.dumps({"spec": spec, "smoke": calls}, sort_keys=True, indent=1).encode()


def handler(event: Mapping[str, Any], _: Any) -> dict[str, Any]:
    """Deploy the newest approved package of the spec's group. Raises RuntimeError, so that Lambda tries again."""
    given = json.loads((Path(__file__).parents[2] / CONTENT).read_text(encoding="utf-8"))
    spec, aws, progress = restored(given["spec"]), Aws(), Progress()
    checks = [
        Check(model=each["model"], content_type=each["type"], payload=base64.b64decode(each["payload"]))
        for each in given["smoke"]
    ]
    progress.say(f"approved: {event.get('detail', {}).get('ModelPackageArn', 'by hand')}")
    try:
        wanted = packages.resolved(spec, aws)
        smoke = (lambda: run_checks(aws, wanted, checks, progress)) if checks else None
        outcome = endpoint.up(wanted, aws, progress, smoke=smoke)
    except (SpecError, Failed) as error:
        raise RuntimeError(str(error)) from error
    except (ClientError, BotoCoreError) as error:
        raise RuntimeError(explained(error)) from error
    return {"endpoint": outcome.endpoint, "config": outcome.config, "changed": outcome.changed}

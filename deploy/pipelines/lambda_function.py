"""The code of a pipeline's Lambda steps: `deploy` puts trained models behind an endpoint, `smoke` calls them.

SageMaker stops a Lambda step after 10 minutes, and a change of an endpoint may take longer. `deploy` therefore starts
the change and returns; `smoke` waits for the endpoint and fails with its state before the step is stopped.
"""

import gzip
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from deploy import endpoint
from deploy.aws import Aws, explained, is_missing
from deploy.errors import Failed, SpecError
from deploy.invoke import called, request
from deploy.progress import Progress, elapsed, polls
from deploy.spec import S3, Spec, Variant, checked
from deploy.status import IN_PROGRESS, Endpoint, described, stage, why

Event = Mapping[str, Any]
LIMIT = 600.0  # seconds, if the context gives no remaining time
MARGIN = 20.0  # seconds before Lambda stops the function, left for the error message
SHOWN = 100  # characters of a response


def handler(event: Event, context: Any) -> dict[str, str]:
    """Run the event's action. All values returned are strings, as output parameters of a Lambda step are.

    Raises RuntimeError, whose message becomes the step's FailureReason.
    """
    try:
        action, keys = ACTIONS.get(event.get("action", ""), (None, ()))
        if action is None:
            raise SpecError(f"the event's action must be one of {', '.join(ACTIONS)}, not {event.get('action')!r}")
        missing = [key for key in keys if key not in event]
        if missing:
            raise SpecError(f"missing in the event: {', '.join(missing)}")
        left = context.get_remaining_time_in_millis() / 1000 if context else LIMIT
        return {"statusCode": "200", **action(event, Aws(), left - MARGIN)}
    except (SpecError, Failed) as error:
        raise RuntimeError(str(error)) from error
    except (ClientError, BotoCoreError) as error:
        raise RuntimeError(explained(error)) from error


def _deploy(event: Event, aws: Aws, _: float) -> dict[str, str]:
    """`artifacts`: name -> s3://.../model.tar.gz. The body returned is JSON: name -> TargetModel."""
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
    """`models`: the body that `deploy` returned; `rows`: the S3 prefix of the data to call the models with."""
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


# deploy: copy the artifacts below the prefix of the endpoint


def gathered(aws: Aws, name: str, artifact: str, prefix: str, progress: Progress) -> str:
    """Copy a training artifact below the prefix; the TargetModel of the copy.

    The key contains the artifact's ETag, so a new model is a new key, and an existing object is kept. boto3 manages the
    copy: in parts, of any size, within S3.
    """
    s3 = aws.client("s3")
    source, target = _bucket_and_key(artifact), _bucket_and_key(prefix)
    try:
        etag = s3.head_object(Bucket=source[0], Key=source[1])["ETag"].strip('"')
    except ClientError as error:
        if is_missing(error) or error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            raise Failed(f"artifact {name}: {artifact} not found") from error
        raise
    model = f"{name}-{etag[:8]}.tar.gz"
    key = target[1] + model
    if not _exists(s3, target[0], key):
        s3.copy({"Bucket": source[0], "Key": source[1]}, target[0], key)
        progress.changed(f"{artifact} copied to s3://{target[0]}/{key}")
    return model


def _bucket_and_key(uri: str) -> tuple[str, str]:
    found = S3.fullmatch(uri)
    if found is None:
        raise SpecError(f"{uri!r} must be s3://bucket/key")
    return found[1], found[2]


def _exists(s3: Any, bucket: str, key: str) -> bool:
    """Whether the key is listed. The function may list, and a listing of a missing key is no error.

    The exact key is listed before longer keys that begin with it.
    """
    found = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", ())
    return any(each["Key"] == key for each in found)


# smoke: call each model; if one fails, return the endpoint to its configuration before


def smoked(
    aws: Aws, name: str, config: str, before: str, *, targets: Mapping[str, str], rows: str, seconds: float
) -> dict[str, str]:
    """The response of each model, by name. Raises Failed with all failures and the endpoint's state after them.

    `before`: the endpoint's configuration before, `none` if it was new. `seconds`: the limit of the wait.
    """
    now = _settled(aws, name, seconds)
    if now is None or not endpoint.is_at(now, config):
        raise Failed(f"endpoint {name} is not at {config}: {why(aws, now) if now else 'endpoint not found'}")
    try:
        answers = _answers(aws, name, targets, rows)
    except Failed as failure:
        raise Failed(f"{failure}\n{_rolled_back(aws, name, config, before)}") from failure
    now = described(aws, name)
    if now is not None and endpoint.is_at(now, config):  # otherwise another deployment is active, and sweeps itself
        endpoint.sweep(aws, name, {config, *endpoint.models_used(aws, config)}, Progress())
    return answers


def _answers(aws: Aws, name: str, targets: Mapping[str, str], rows: str) -> dict[str, str]:
    answers, failures = {}, []
    try:
        row = first_row(aws, rows)
    except (ClientError, BotoCoreError) as error:
        raise Failed(f"{rows}: {explained(error)}") from error
    for model, target in targets.items():
        try:
            answers[model] = f"{target}, {_answer(aws, name, target, row)}"
        except Failed as error:
            failures.append(f"{model}, {target}: {error}")
        except (ClientError, BotoCoreError) as error:
            failures.append(f"{model}, {target}: {explained(error)}")
    if failures:
        raise Failed("\n".join(failures))
    return answers


def first_row(aws: Aws, uri: str) -> bytes:
    """The first row of the CSV below a prefix, without its first column, the label. Raises Failed."""
    s3, (bucket, prefix) = aws.client("s3"), _bucket_and_key(uri)
    found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
    key = next((each["Key"] for each in found if each["Size"]), None)
    if key is None:
        raise Failed(f"no data at {uri}: the smoke step needs a row of CSV")
    body = s3.get_object(Bucket=bucket, Key=key)["Body"]
    try:
        line: bytes = (gzip.GzipFile(fileobj=body) if key.endswith(".gz") else body).readline()
    finally:
        body.close()
    _, comma, row = line.strip().partition(b",")
    if not comma:
        raise Failed(f"s3://{bucket}/{key} does not begin with a row of CSV, the label first: {line[:80]!r}")
    return row


def _settled(aws: Aws, name: str, seconds: float) -> Endpoint | None:
    began = time.monotonic()
    for _ in polls():
        now = described(aws, name)
        if now is None or now["EndpointStatus"] not in IN_PROGRESS:
            return now
        took = time.monotonic() - began
        if took > seconds:
            raise Failed(
                f"endpoint {name} is still {stage(now)} after {elapsed(took)}, and SageMaker stops a step after "
                "10 min: `aws sagemaker retry-pipeline-execution` resumes with this step"
            )
    raise AssertionError


def _answer(aws: Aws, name: str, target: str, row: bytes) -> str:
    began = time.monotonic()
    answer = called(aws, request(name, row, "text/csv", target=target, accept="text/csv"))
    text = answer["Body"].read().decode(errors="replace").strip()
    took = (time.monotonic() - began) * 1000
    return f"{answer['ResponseMetadata']['HTTPStatusCode']} in {took:.0f} ms: {text[:SHOWN]}"


def _rolled_back(aws: Aws, name: str, config: str, before: str) -> str:
    """Start the update to the configuration before; the message about it. The update takes minutes: no wait here."""
    if before == "none":
        return f"no earlier configuration to roll back to: `python -m deploy down {name}` deletes the endpoint"
    if before == config:
        return f"endpoint {name} is unchanged and serves its earlier models"
    try:
        aws.client("sagemaker").update_endpoint(EndpointName=name, EndpointConfigName=before)
    except (ClientError, BotoCoreError) as error:  # the failure of the smoke step must be reported too
        return f"endpoint {name}: the rollback to {before} failed: {explained(error)}"
    return f"endpoint {name} is rolling back to {before}"

"""The smoke step of a pipeline: each new model called on its endpoint, which is back on what it was where one fails."""

import gzip
import time
from collections.abc import Mapping

from botocore.exceptions import BotoCoreError, ClientError

from deploy import configurations
from deploy.aws import Aws, Failed, explained
from deploy.endpoint import is_at
from deploy.invoke import called, request
from deploy.pipelines.gathering import parts
from deploy.progress import Progress, elapsed, looks
from deploy.settling import IN_PROGRESS, Endpoint, described, stage, why

SHOWN = 100  # characters of an answer


def smoked(
    aws: Aws, endpoint: str, config: str, before: str, *, targets: Mapping[str, str], rows: str, seconds: float
) -> dict[str, str]:
    """What each model answered, by name. Raises Failed with all that went wrong, and what became of the endpoint.

    `before`: the configuration that the endpoint had, `none` where it was new. `seconds`: it may wait for the endpoint.
    """
    now = _at_rest(aws, endpoint, seconds)
    if now is None or not is_at(now, config):
        raise Failed(f"endpoint {endpoint} is not at {config}: {why(aws, now) if now else 'it is gone'}")
    try:
        answers = _answers(aws, endpoint, targets, rows)
    except Failed as failure:
        raise Failed(f"{failure}\n{_back(aws, endpoint, config, before)}") from failure
    now = described(aws, endpoint)
    if now is not None and is_at(now, config):  # else somebody else is at it, and sweeps
        configurations.sweep(aws, endpoint, {config, *configurations.used(aws, config)}, Progress())
    return answers


def _answers(aws: Aws, endpoint: str, targets: Mapping[str, str], rows: str) -> dict[str, str]:
    answers, failures = {}, []
    try:
        row = first_row(aws, rows)
    except (ClientError, BotoCoreError) as error:
        raise Failed(f"{rows}: {explained(error)}") from error
    for name, target in targets.items():
        try:
            answers[name] = f"{target}, {_answer(aws, endpoint, target, row)}"
        except Failed as error:
            failures.append(f"{name}, {target}: {error}")
        except (ClientError, BotoCoreError) as error:
            failures.append(f"{name}, {target}: {explained(error)}")
    if failures:
        raise Failed("\n".join(failures))
    return answers


def first_row(aws: Aws, uri: str) -> bytes:
    """A row to ask with: the first of the CSV below a prefix, without the label, which comes first. Raises Failed."""
    s3, (bucket, prefix) = aws.client("s3"), parts(uri)
    found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
    key = next((each["Key"] for each in found if each["Size"]), None)
    if key is None:
        raise Failed(f"there is no data at {uri}, of which to take a row")
    body = s3.get_object(Bucket=bucket, Key=key)["Body"]
    try:
        line: bytes = (gzip.GzipFile(fileobj=body) if key.endswith(".gz") else body).readline()
    finally:
        body.close()
    _, comma, row = line.strip().partition(b",")
    if not comma:
        raise Failed(f"s3://{bucket}/{key} does not begin with a row of CSV, the label first: {line[:80]!r}")
    return row


def _at_rest(aws: Aws, name: str, seconds: float) -> Endpoint | None:
    began = time.monotonic()
    for _ in looks():
        now = described(aws, name)
        if now is None or now["EndpointStatus"] not in IN_PROGRESS:
            return now
        took = time.monotonic() - began
        if took > seconds:
            raise Failed(
                f"endpoint {name} is still {stage(now)} after {elapsed(took)}, and SageMaker cuts a step at 10 min: "
                "`aws sagemaker retry-pipeline-execution` goes on with this step"
            )
    raise AssertionError


def _answer(aws: Aws, endpoint: str, target: str, row: bytes) -> str:
    began = time.monotonic()
    answer = called(aws, request(endpoint, row, "text/csv", target=target, accept="text/csv"))
    said = answer["Body"].read().decode(errors="replace").strip()
    took = (time.monotonic() - began) * 1000
    return f"{answer['ResponseMetadata']['HTTPStatusCode']} in {took:.0f} ms: {said[:SHOWN]}"


def _back(aws: Aws, name: str, config: str, before: str) -> str:
    """To the configuration before; what to say of it. Going back takes minutes, so nobody waits for it here."""
    if before == "none":
        return f"there is no earlier configuration to go back to: `python -m deploy down {name}` removes it"
    if before == config:
        return f"endpoint {name} is as it was, and serves its earlier models"
    try:
        aws.client("sagemaker").update_endpoint(EndpointName=name, EndpointConfigName=before)
    except (ClientError, BotoCoreError) as error:  # why the smoke failed is still to be told
        return f"endpoint {name} could not go back to {before}: {explained(error)}"
    return f"endpoint {name} is going back to {before}"

"""The function of a pipeline's Lambda step: gathers artifacts below one prefix, and has an endpoint serve them.

It starts the change and returns: SageMaker cuts a Lambda step at 10 minutes, and an endpoint may take longer.
"""

import json
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from deploy import endpoint
from deploy.aws import Aws, Failed, explained, is_missing
from deploy.progress import Progress
from deploy.spec import S3, Spec, Variant
from deploy.spec_file import checked
from deploy.table import SpecError

KEYS = ("artifacts", "prefix", "endpoint", "image", "role", "instance_type")


def handler(event: Mapping[str, Any], context: object) -> dict[str, str]:
    """`artifacts`: name -> s3://.../model.tar.gz. The body tells the TargetModel of each, as JSON."""
    try:
        missing = [key for key in KEYS if key not in event]
        if missing:
            raise SpecError(f"the event has no {', '.join(missing)}")
        return _deployed(event, Aws())
    except (SpecError, Failed) as error:
        raise RuntimeError(str(error)) from error
    except (ClientError, BotoCoreError) as error:
        raise RuntimeError(explained(error)) from error


def _deployed(event: Mapping[str, Any], aws: Aws) -> dict[str, str]:
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
    outcome = endpoint.up(spec, aws, progress, wait=False)
    return {
        "statusCode": "200",
        "body": json.dumps(targets),
        "endpoint_name": spec.name,
        "changed": json.dumps(outcome.changed),
    }


def gathered(aws: Aws, name: str, artifact: str, prefix: str, progress: Progress) -> str:
    """The TargetModel of an artifact: its key holds what its content is known by, so a new model is a new key.

    What is there is left as it is. A managed copy: in parts, so of any size, and within S3.
    """
    s3 = aws.client("s3")
    source, target = _parts(artifact), _parts(prefix)
    try:
        etag = s3.head_object(Bucket=source[0], Key=source[1])["ETag"].strip('"')
    except ClientError as error:
        if is_missing(error) or error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            raise Failed(f"artifact {name} is not at {artifact}") from error
        raise
    model = f"{name}-{etag[:8]}.tar.gz"
    key = target[1] + model
    if not _there(s3, target[0], key):
        s3.copy({"Bucket": source[0], "Key": source[1]}, target[0], key)
        progress.changed(f"{artifact} copied to s3://{target[0]}/{key}")
    return model


def _there(s3: Any, bucket: str, key: str) -> bool:
    """By listing: whoever may list may do this, and what is not there is no error."""
    return bool(s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents"))


def _parts(uri: str) -> tuple[str, str]:
    found = S3.fullmatch(uri)
    if found is None:
        raise SpecError(f"{uri!r} must be s3://bucket/key")
    return found[1], found[2]

"""Artifacts of trainings, copied below the one prefix that a multi-model endpoint serves from."""

from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import Aws, Failed, is_missing
from deploy.progress import Progress
from deploy.spec import S3
from deploy.table import SpecError


def gathered(aws: Aws, name: str, artifact: str, prefix: str, progress: Progress) -> str:
    """The TargetModel of an artifact: its key holds what its content is known by, so a new model is a new key.

    What is there is left as it is. A managed copy: in parts, so of any size, and within S3.
    """
    s3 = aws.client("s3")
    source, target = parts(artifact), parts(prefix)
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


def parts(uri: str) -> tuple[str, str]:
    """Bucket and key. Raises SpecError."""
    found = S3.fullmatch(uri)
    if found is None:
        raise SpecError(f"{uri!r} must be s3://bucket/key")
    return found[1], found[2]


def _there(s3: Any, bucket: str, key: str) -> bool:
    """By listing: whoever may list may do this, and what is not there is no error. A key itself comes before longer."""
    found = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", ())
    return any(each["Key"] == key for each in found)

"""Model data: downloaded from S3 and unpacked into the directory that a container reads."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote

from botocore.exceptions import ClientError

from local_test.platform.calls import InternalFailure, ValidationError
from serve.catalog import archive
from serve.errors import DoesNotFit, ModelUnusable

S3_HOST = re.compile(r"((?P<bucket>.+)\.)?s3([.-](dualstack\.)?[a-z0-9-]+)?\.amazonaws\.com(\.cn)?")
KEEP_FREE = 256 << 20  # bytes of disk that stay free


class S3(Protocol):
    """The part of boto3's S3 client that is used."""

    def get_object(self, *, Bucket: str, Key: str) -> Any: ...  # noqa: N803 - boto3's names

    def list_objects_v2(self, **members: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class ModelData:
    """Location and form of model data: one object or a prefix, a .tar.gz archive or plain files."""

    uri: str  # s3://bucket/key
    prefix: bool = False
    packed: bool = True

    def below(self, key: str) -> "ModelData":
        """One archive below the prefix of a multi-model container."""
        return ModelData(self.uri.rstrip("/") + "/" + key.lstrip("/"))


def fetch(s3: S3, data: ModelData, into: Path) -> None:
    """Creates the directory `into` with the data, completely or not at all.

    Raises ValidationError if the data is missing in S3 or cannot be unpacked, InternalFailure if the disk is full.
    """
    bucket, key = parts(data.uri)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=into.parent, ignore_cleanup_errors=True) as temporary:
        fresh = Path(temporary, "data")
        try:
            if data.packed:
                if data.prefix:
                    key = _only(list(_keys(s3, bucket, key)), data.uri)
                packed = Path(temporary, "archive.tar.gz")
                _download(s3, bucket, key, packed)
                free = max(archive.disk(into.parent)[0] - KEEP_FREE, 0)
                archive.unpack(packed, fresh, limit_bytes=free)
            else:
                fresh.mkdir()
                files = (
                    {each: inside(each, key) for each in _keys(s3, bucket, key)}
                    if data.prefix
                    else {key: inside(key, key)}
                )
                for each, path in files.items():
                    target = fresh / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _download(s3, bucket, each, target)
                if not files:
                    raise ValidationError(missing(data.uri))
        except ClientError as error:
            raise ValidationError(missing(data.uri)) from error
        except ModelUnusable as error:
            raise ValidationError(
                f'Failed to extract model data archive from URL "{data.uri}". Please ensure that the object located at '
                f"the URL is a valid tar.gz archive. ({error.message.removeprefix('archive.tar.gz: ')})"
            ) from error
        except (DoesNotFit, OSError) as error:
            raise InternalFailure(f"{data.uri} cannot be written to the instance's disk: {error}") from error
        for each_path in (fresh, *fresh.rglob("*")):
            each_path.chmod(0o755 if each_path.is_dir() else 0o644)  # the container may run as any user
        fresh.rename(into)


def remove(directory: Path) -> None:
    """Removes a model from disk. A process that has its files open keeps them."""
    shutil.rmtree(directory, ignore_errors=True)


def parts(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://BUCKET/KEY, or of an HTTPS URL of S3 in its virtual-hosted or path style.

    Raises ValidationError if it is none of these. docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
    """
    scheme, _, rest = uri.partition("://")
    host, _, path = rest.partition("/")
    if scheme == "https" and (matched := S3_HOST.fullmatch(host)):
        rest = unquote(f"{matched['bucket']}/{path}" if matched["bucket"] else path)
        scheme = "s3"
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ValidationError(
            f'Invalid S3 URI "{uri}": it must be s3://bucket/key, https://bucket.s3.region.amazonaws.com/key '
            "or https://s3.region.amazonaws.com/bucket/key"
        )
    return bucket, key


def inside(key: str, prefix: str) -> str:
    """The path of an object relative to its prefix. Raises ValidationError for a path that leads out of it."""
    path = PurePosixPath(key.removeprefix(prefix).lstrip("/") or PurePosixPath(key).name)
    if ".." in path.parts or not path.parts:
        raise ValidationError(f'Invalid key "{key}" of model data: it leads out of the model directory')
    return str(path)


def missing(uri: str) -> str:
    """The error text for missing model data, in SageMaker's words."""
    return (
        f'Failed to download model data from URL: "{uri}". Please ensure that there is an object located at the URL '
        "and that the role passed to CreateModel has permissions to download the object."
    )


def _only(keys: list[str], uri: str) -> str:
    if len(keys) != 1:
        raise ValidationError(f'"{uri}" with CompressionType Gzip must be the prefix of one object, not of {len(keys)}')
    return keys[0]


def _keys(s3: S3, bucket: str, prefix: str) -> Iterator[str]:
    """The keys of all objects below a prefix, without the empty objects that represent directories."""
    more: dict[str, str] = {}
    while True:
        page = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, **more)
        yield from (each["Key"] for each in page.get("Contents", ()) if not each["Key"].endswith("/"))
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _download(s3: S3, bucket: str, key: str, to: Path) -> None:
    body = s3.get_object(Bucket=bucket, Key=key)["Body"]
    with to.open("wb") as file:
        shutil.copyfileobj(body, file, 1 << 20)

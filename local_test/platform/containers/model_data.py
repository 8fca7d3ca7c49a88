"""Model data from S3 to the directory that a container sees, as the platform brings it there."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from botocore.exceptions import ClientError

from local_test.platform.calls import InternalFailure, ValidationError
from serve.catalog import archive
from serve.errors import DoesNotFit, ModelUnusable

KEEP_FREE = 256 << 20  # bytes of disk that no model may take


class S3(Protocol):
    """What of boto3's S3 client is used."""

    def get_object(self, *, Bucket: str, Key: str) -> Any: ...  # noqa: N803 - boto3's names

    def list_objects_v2(self, **asked: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class ModelData:
    """Where model data lies: one object, or all below a prefix; packed as .tar.gz, or plain files."""

    uri: str  # s3://bucket/key
    prefix: bool = False
    packed: bool = True

    def below(self, key: str) -> "ModelData":
        """One archive below a multi-model container's prefix."""
        return ModelData(self.uri.rstrip("/") + "/" + key.lstrip("/"))


def fetch(s3: S3, data: ModelData, into: Path) -> None:
    """Make the directory `into`, which is not there yet, and bring the data into it; whole, or not at all.

    Raises ValidationError where S3 has it not or it cannot be unpacked, InternalFailure where there is no room.
    """
    bucket, key = parts(data.uri)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=into.parent, ignore_cleanup_errors=True) as beside:
        fresh = Path(beside, "data")
        try:
            if data.packed:
                if data.prefix:
                    key = _only(list(_keys(s3, bucket, key)), data.uri)
                packed = Path(beside, "archive.tar.gz")
                _download(s3, bucket, key, packed)
                room = max(archive.disk(into.parent)[0] - KEEP_FREE, 0)
                archive.unpack(packed, fresh, limit_bytes=room)
            else:
                fresh.mkdir()
                wanted = (
                    {each: inside(each, key) for each in _keys(s3, bucket, key)}
                    if data.prefix
                    else {key: inside(key, key)}
                )
                for each, path in wanted.items():
                    target = fresh / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _download(s3, bucket, each, target)
                if not wanted:
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
            each_path.chmod(0o755 if each_path.is_dir() else 0o644)  # the container may run as anyone
        fresh.rename(into)


def remove(directory: Path) -> None:
    """Take a model from disk; whoever has its files open keeps them."""
    shutil.rmtree(directory, ignore_errors=True)


def parts(uri: str) -> tuple[str, str]:
    """Bucket and key. Raises ValidationError for what is no s3:// address."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ValidationError(f'"{uri}" is not an S3 address: it must be s3://bucket/key')
    return bucket, key


def inside(key: str, prefix: str) -> str:
    """The path of an object below its prefix. Raises ValidationError for one that would lead out of it."""
    path = PurePosixPath(key.removeprefix(prefix).lstrip("/") or PurePosixPath(key).name)
    if ".." in path.parts or not path.parts:
        raise ValidationError(f'Model data with the key "{key}" has no place below a directory')
    return str(path)


def missing(uri: str) -> str:
    return (
        f'Failed to download model data from URL: "{uri}". Please ensure that there is an object located at the URL '
        "and that the role passed to CreateModel has permissions to download the object."
    )


def _only(keys: list[str], uri: str) -> str:
    if len(keys) != 1:
        raise ValidationError(f'"{uri}" with CompressionType Gzip must be the prefix of one object, not of {len(keys)}')
    return keys[0]


def _keys(s3: S3, bucket: str, prefix: str) -> Iterator[str]:
    """All objects below a prefix, less the empty ones that stand for directories."""
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

"""Models below a prefix in S3, under keys that contain a hash of the content: PREFIX/NAME-SHA8.tar.gz.

Keys are never overwritten: a multi-model endpoint does not look at the key of a loaded model again, so a new model
needs a new key.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deploy.aws import code, explained_s3
from deploy.errors import Failed
from deploy.models import archives, upload
from deploy.models.archives import SUFFIX, Source
from deploy.models.upload import File, Target
from deploy.progress import counted, sized
from deploy.spec import S3

# botocore retries throttled calls and broken connections with growing pauses.
CALLS = Config(
    retries={"mode": "standard", "total_max_attempts": 8},
    connect_timeout=10,
    read_timeout=60,
    max_pool_connections=upload.AT_ONCE,
)
HASHED = re.compile(r"-[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A prefix, for example of a multi-model endpoint."""

    s3: Any  # boto3's client
    bucket: str
    prefix: str  # empty, or ends in /

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def target(self, name: str) -> Target:
        return Target(s3=self.s3, bucket=self.bucket, key=self.prefix + name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    name: str  # below the prefix: a request's TargetModel
    size: int
    changed: Any  # datetime


def put(given: argparse.Namespace) -> int:
    """The verb `put`: print the TargetModel of each file on stdout and the progress on stderr. Raises Failed."""
    with _explained(given.to):
        to = place(given.to, given.region)
        _refuse_other_region(to)
        for path in given.files:
            name = path.resolve().name.removesuffix(SUFFIX)
            found, uploaded = _put(to, path, name, given.uncompressed)
            print(f"{'put' if uploaded else 'already there:'} {to.uri}{found}", file=sys.stderr)
            print(found)
    return 0


def models(given: argparse.Namespace) -> int:
    """The verb `models`: list the prefix, or remove models; 1 if a model to remove is missing. Raises Failed."""
    with _explained(given.at):
        at = place(given.at, given.region)
        if not given.remove:
            _list(at, given.json)
        missing = [name for name in given.remove if not _removed(at, name)]
    return 1 if missing else 0


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Raises Failed, naming the URI or the file, for errors of S3 and of the disk."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise Failed(explained_s3(error, uri)) from error
    except BrokenPipeError:  # of stdout
        raise
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from error


def place(uri: str, region: str | None = None) -> Place:
    """Raises Failed if the URI is no prefix in S3, or if no region is configured."""
    found = S3.fullmatch(uri)
    if not found:
        raise Failed(f"{uri!r} must be s3://bucket/prefix/")
    bucket, prefix = found.groups()
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    session = boto3.session.Session(region_name=region)
    if session.region_name is None:  # boto3 would use us-east-1
        raise Failed(f"{uri}: missing region: give --region, or set AWS_DEFAULT_REGION")
    return Place(s3=session.client("s3", config=CALLS), bucket=bucket, prefix=prefix)


def key_name(name: str, sha256: str) -> str:
    """NAME-SHA8; a hash at the end of the name is replaced."""
    return f"{HASHED.sub('', name)}-{sha256[:8]}"


def put_archive(to: Place, path: Path, name: str) -> tuple[str, bool]:
    """The TargetModel of the archive, and whether it was uploaded now."""
    with counted(f"read {path.name}", path.stat().st_size) as count:
        file = upload.measured(path, count)
    target = to.target(key_name(name, file.sha256) + SUFFIX)
    with counted(f"put {path.name}", file.size) as count:
        return target.key.removeprefix(to.prefix), upload.put(target, file, count)


def put_tree(to: Place, files: tuple[Source, ...], name: str) -> tuple[str, bool]:
    """The prefix, NAME-SHA8/, of the uncompressed files, and whether any was uploaded now."""
    with counted(f"read {name}", sum(each.size for each in files)) as count:
        measured = {each.name: upload.measured(each.path, count) for each in files}
    below = key_name(name, _of_tree(measured)) + "/"
    there = {each.name for each in stored(to, below)}
    if strange := sorted(there - {below + each for each in measured}):
        raise Failed(f"{to.uri}{strange[0]} is not part of {name}, and an endpoint would read it too: remove it")
    with counted(f"put {name}", sum(each.size for each in measured.values())) as count:
        uploaded = [upload.put(to.target(below + each), file, count) for each, file in measured.items()]
    return below, any(uploaded)


def stored(at: Place, below: str = "") -> Iterator[Stored]:
    """The objects below the prefix, by name."""
    for page in at.s3.get_paginator("list_objects_v2").paginate(Bucket=at.bucket, Prefix=at.prefix + below):
        for each in page.get("Contents", ()):
            name = each["Key"].removeprefix(at.prefix)
            yield Stored(name=name, size=each["Size"], changed=each["LastModified"])


def remove(at: Place, name: str) -> int:
    """Delete a model, NAME.tar.gz or all below NAME/, and its unfinished uploads; the number of objects deleted."""
    wanted = [each.name for each in stored(at, name) if each.name == name or name.endswith("/")]
    for each in wanted:
        at.s3.delete_object(**at.target(each).where)
    for key, begun in upload.unfinished(at.s3, at.bucket, at.prefix + name):
        at.s3.abort_multipart_upload(Bucket=at.bucket, Key=key, UploadId=begun)
    return len(wanted)


def _put(to: Place, path: Path, name: str, uncompressed: bool) -> tuple[str, bool]:
    if not path.is_dir():
        if uncompressed:
            raise Failed(f"{path}: --uncompressed needs a directory")
        if not path.name.endswith(SUFFIX):
            raise Failed(f"{path}: neither a directory nor NAME{SUFFIX}")
        archives.of_archive(path, HASHED.sub("", name))
        return put_archive(to, path, name)
    found = archives.of_directory(path, name)
    if uncompressed:
        return put_tree(to, found.files, name)
    with tempfile.TemporaryDirectory(prefix="packing-") as beside:
        with counted(f"pack {name}", found.size) as count:
            packed = archives.pack(found.files, Path(beside, name + SUFFIX), count)
        archives.summarise(name, found, packed)
        return put_archive(to, packed.path, name)


def _of_tree(files: dict[str, File]) -> str:
    listed = "".join(f"{file.sha256}  {name}\n" for name, file in sorted(files.items()))
    return hashlib.sha256(listed.encode()).hexdigest()


def _refuse_other_region(to: Place) -> None:
    """An endpoint reads models from its own region only; boto3 would upload to any."""
    try:
        there = to.s3.head_bucket(Bucket=to.bucket).get("BucketRegion")
    except ClientError as error:
        # A response to HEAD has no message. The upload explains invalid (400) or insufficient (403) credentials.
        if code(error) in ("400", "403"):
            return
        raise
    if there and there != to.s3.meta.region_name:
        raise Failed(
            f"{to.uri}: the bucket is in {there}, the configured region is {to.s3.meta.region_name}: give --region "
            f"{there}, for the endpoint too, or use another bucket"
        )


def _removed(at: Place, name: str) -> bool:
    count = remove(at, name)
    print(f"{at.uri}{name}: {f'{count} objects removed' if count else 'model not found'}", file=sys.stderr)
    return count > 0


def _list(at: Place, as_json: bool) -> None:
    found = list(stored(at))
    if as_json:
        print(json.dumps([{"name": each.name, "bytes": each.size, "at": each.changed.isoformat()} for each in found]))
        return
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        print(f"{each.name:<{width}}  {sized(each.size):>8}  {each.changed:%Y-%m-%d %H:%M}")
    for key, _ in upload.unfinished(at.s3, at.bucket, at.prefix):
        print(f"{at.uri.removesuffix(at.prefix)}{key} is incomplete: put it again, or --remove it", file=sys.stderr)

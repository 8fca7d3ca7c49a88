"""Models in S3, under keys that hold a hash of what they are: PREFIX/NAME-SHA8.tar.gz is never overwritten.

A multi-model endpoint that has loaded a model never looks at its key again: a new model needs a new key.
"""

import argparse
import hashlib
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deploy import contents, pack, s3_errors, upload
from deploy.contents import Refused, Source
from deploy.pack import SUFFIX, bar
from deploy.spec import S3
from deploy.upload import Changed, File, Target

# Throttled calls and broken connections are repeated by botocore, waiting longer each time.
CALLS = Config(
    retries={"mode": "standard", "total_max_attempts": 8},
    connect_timeout=10,
    read_timeout=60,
    max_pool_connections=upload.AT_ONCE,
)
HASHED = re.compile(r"-[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A prefix: that of a multi-model endpoint, say."""

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
    name: str  # below the prefix: what a request's TargetModel says
    size: int
    changed: Any  # datetime


def place(uri: str, region: str | None = None) -> Place:
    """Raises Refused where that is no prefix in S3, or where no region is known."""
    found = S3.fullmatch(uri)
    if not found:
        raise Refused(f"{uri} is no place in S3: s3://bucket/prefix/")
    bucket, prefix = found.groups()
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    session = boto3.session.Session(region_name=region)
    if session.region_name is None:  # boto3 would take us-east-1
        raise Refused(f"{uri}: no region is known: give --region, or set AWS_DEFAULT_REGION")
    return Place(s3=session.client("s3", config=CALLS), bucket=bucket, prefix=prefix)


def key_name(name: str, sha256: str) -> str:
    """NAME-SHA8; a hash that the name ends in already, its own or an older one's, is not kept."""
    return f"{HASHED.sub('', name)}-{sha256[:8]}"


def put_archive(to: Place, path: Path, name: str) -> tuple[str, bool]:
    """The TargetModel of this archive, and whether it had to be put."""
    with bar(f"read {path.name}", path.stat().st_size) as count:
        file = upload.measured(path, count)
    target = to.target(key_name(name, file.sha256) + SUFFIX)
    with bar(f"put {path.name}", file.size) as count:
        return target.key.removeprefix(to.prefix), upload.put(target, file, count)


def put_tree(to: Place, files: tuple[Source, ...], name: str) -> tuple[str, bool]:
    """The prefix, NAME-SHA8/, under which these files lie as they are, and whether any had to be put."""
    with bar(f"read {name}", sum(each.size for each in files)) as count:
        measured = {each.name: upload.measured(each.path, count) for each in files}
    below = key_name(name, _of_tree(measured)) + "/"
    there = {each.name for each in stored(to, below)}
    if strange := sorted(there - {below + each for each in measured}):
        raise Refused(f"{to.uri}{strange[0]} does not belong to it, and an endpoint would take it too: remove it")
    with bar(f"put {name}", sum(each.size for each in measured.values())) as count:
        put = [upload.put(to.target(below + each), file, count) for each, file in measured.items()]
    return below, any(put)


def stored(at: Place, below: str = "") -> Iterator[Stored]:
    """What lies there, by name."""
    for page in at.s3.get_paginator("list_objects_v2").paginate(Bucket=at.bucket, Prefix=at.prefix + below):
        for each in page.get("Contents", ()):
            name = each["Key"].removeprefix(at.prefix)
            yield Stored(name=name, size=each["Size"], changed=each["LastModified"])


def remove(at: Place, name: str) -> int:
    """Take a model away, NAME.tar.gz or all below NAME/, and what was begun of it; how many objects that were."""
    wanted = [each.name for each in stored(at, name) if each.name == name or name.endswith("/")]
    for each in wanted:
        at.s3.delete_object(**at.target(each).where)
    for key, begun in upload.unfinished(at.s3, at.bucket, at.prefix + name):
        at.s3.abort_multipart_upload(Bucket=at.bucket, Key=key, UploadId=begun)
    return len(wanted)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="archives, or directories to be packed first"
    )
    parser.add_argument("to", metavar="S3URI", help="s3://bucket/prefix/")
    parser.add_argument("--uncompressed", action="store_true", help="a directory as it is, file by file: for a bundle")
    parser.add_argument("--region", help="of the bucket and the endpoint; else as boto3 finds it")


def run(arguments: argparse.Namespace) -> int:
    """Standard output is a TargetModel for each file; what was done is told on standard error."""
    try:
        to = place(arguments.to, arguments.region)
        _refuse_other_region(to)
        for path in arguments.files:
            name = path.resolve().name.removesuffix(SUFFIX)
            found, put = _put(to, path, name, arguments.uncompressed)
            print(f"{'put' if put else 'already there:'} {to.uri}{found}", file=sys.stderr)
            print(found)
    except (ClientError, BotoCoreError) as error:
        print(f"put: {s3_errors.explained(error, arguments.to)}", file=sys.stderr)
    except (Refused, Changed) as error:
        print(f"put: {error}", file=sys.stderr)
    except OSError as error:
        print(f"put: {error.filename}: {error.strerror}", file=sys.stderr)
    except KeyboardInterrupt:
        print("put: interrupted; the same command goes on from here", file=sys.stderr)
    else:
        return 0
    return 1


def _put(to: Place, path: Path, name: str, uncompressed: bool) -> tuple[str, bool]:
    if not path.is_dir():
        if uncompressed:
            raise Refused(f"{path}: --uncompressed is for directories")
        if not path.name.endswith(SUFFIX):
            raise Refused(f"{path}: neither a directory nor NAME{SUFFIX}")
        contents.of_archive(path, HASHED.sub("", name))
        return put_archive(to, path, name)
    found = contents.of_directory(path, name)
    if uncompressed:
        return put_tree(to, found.files, name)
    with tempfile.TemporaryDirectory(prefix="packing-") as beside:
        with bar(f"pack {name}", found.size) as count:
            packed = pack.pack(found.files, Path(beside, name + SUFFIX), count)
        pack.tell(name, found, packed)
        return put_archive(to, packed.path, name)


def _of_tree(files: dict[str, File]) -> str:
    listed = "".join(f"{file.sha256}  {name}\n" for name, file in sorted(files.items()))
    return hashlib.sha256(listed.encode()).hexdigest()


def _refuse_other_region(to: Place) -> None:
    """An endpoint reads models of its own region only, while boto3 would put them anywhere."""
    try:
        there = to.s3.head_bucket(Bucket=to.bucket).get("BucketRegion")
    except ClientError as error:
        # An answer to HEAD has no words: what is wrong with the credentials (400) or forbidden (403) the put will say.
        if error.response["Error"]["Code"] in ("400", "403"):
            return
        raise
    if there and there != to.s3.meta.region_name:
        raise Refused(
            f"{to.uri}: the bucket is in {there}, and you are in {to.s3.meta.region_name}: give --region {there}, for "
            "the endpoint too, or take another bucket"
        )

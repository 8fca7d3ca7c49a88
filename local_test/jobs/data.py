"""A job's data: what its inputs select in S3, the share of each host, and its results back in S3."""

import gzip
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local_test.jobs.hosts import OPT_ML
from local_test.jobs.job import JobFailed
from local_test.platform.calls import PlatformError, ValidationError
from local_test.platform.containers import model_data

DATA_TYPES = ("S3Prefix", "ManifestFile")
SHARDED = "ShardedByS3Key"


@dataclass(frozen=True, slots=True)
class Item:
    """An object in S3, and its path in the directory of its input."""

    bucket: str
    key: str
    path: str


def check_source(source: Mapping[str, Any], where: str) -> None:
    """Raises ValidationError for an S3DataSource, S3Input or TransformS3DataSource that cannot be read here."""
    kind = source.get("S3DataType", "S3Prefix")
    if kind not in DATA_TYPES:
        supported = " and ".join(DATA_TYPES)
        raise ValidationError(f"{where}: S3DataType {kind} is not supported by this emulator, only {supported}.")
    if source.get("S3InputMode") == "Pipe" or source.get("InputMode") == "Pipe":
        raise ValidationError(f"{where}: input mode Pipe is not supported by this emulator: use File or FastFile.")


def selected(s3: Any, source: Mapping[str, Any]) -> list[Item]:
    """The objects of a source, in the order of their keys. Raises JobFailed if there is none."""
    uri = source["S3Uri"]
    try:
        found = list(_manifest(s3, uri) if source.get("S3DataType") == "ManifestFile" else below(s3, uri))
    except PlatformError as error:
        raise JobFailed(f"ClientError: Data download failed: {uri}: {error.message}") from error
    except (BotoCoreError, ClientError) as error:
        raise JobFailed(f"ClientError: Data download failed: {uri}: {error}") from error
    if not found:
        bucket = uri.removeprefix("s3://").partition("/")[0]
        raise JobFailed(
            f'ClientError: Data download failed: No S3 objects found under S3 URL "{uri}" given in input data source. '
            "Please ensure that the bucket exists in the selected region, that objects exist under that S3 prefix, and "
            f'that the role has "s3:ListBucket" permissions on bucket "{bucket}".'
        )
    return found


def share(items: Sequence[Item], source: Mapping[str, Any], host: int, hosts: int) -> list[Item]:
    """The objects of one host: with ShardedByS3Key every n-th, else all."""
    return list(items[host::hosts]) if source.get("S3DataDistributionType") == SHARDED else list(items)


def download(s3: Any, items: Iterable[Item], into: Path, check: Callable[[], None]) -> None:
    """Writes the objects into a directory, which is created. `check` is called before each. Raises JobFailed."""
    into.mkdir(parents=True, exist_ok=True)
    for item in items:
        check()
        target = into / item.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            s3.download_file(item.bucket, item.key, str(target))
        except (BotoCoreError, ClientError, OSError) as error:
            uri = f"s3://{item.bucket}/{item.key}"
            raise JobFailed(f"ClientError: Data download failed: {uri}: {error}") from error


def upload(s3: Any, path: Path, uri: str) -> None:
    """Puts one file at a URI. Raises JobFailed."""
    try:
        bucket, key = model_data.parts(uri)
        s3.upload_file(str(path), bucket, key)
    except PlatformError as error:
        raise JobFailed(f"ClientError: Artifact upload failed: {error.message}") from error
    except Exception as error:  # boto3's S3UploadFailedError is of no common class
        raise JobFailed(f"ClientError: Artifact upload failed: {uri}: {error}") from error


def upload_files(s3: Any, directory: Path, uri: str) -> None:
    """Puts all files of a directory below a URI. Raises JobFailed."""
    for path in files_of(directory):
        upload(s3, path, f"{uri.rstrip('/')}/{path.relative_to(directory)}")


def files_of(directory: Path) -> list[Path]:
    return sorted(each for each in directory.rglob("*") if each.is_file())


def pack(directories: Sequence[Path], to: Path) -> None:
    """The files of all hosts' directories as one .tar.gz; of equal names the first host's file is used.

    Its bytes depend on names and contents alone, so equal files are the same model.
    """
    found: dict[str, Path] = {}
    for directory in directories:
        for path in files_of(directory):
            found.setdefault(str(path.relative_to(directory)), path)
    with (
        to.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name, path in sorted(found.items()):
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(entry, file)


def inside(files: Path, path: str) -> Path:
    """The path on this machine of a path below the container's /opt/ml. Raises ValidationError for another path."""
    if not path.startswith(f"{OPT_ML}/") or ".." in PurePosixPath(path).parts:
        raise ValidationError(f"LocalPath {path} must be below {OPT_ML}/processing.")
    return files / path.removeprefix(f"{OPT_ML}/")


def below(s3: Any, uri: str) -> Iterator[Item]:
    """The objects below a URI, in the order of their keys."""
    bucket, prefix = model_data.parts(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for key in sorted(each["Key"] for page in pages for each in page.get("Contents", ())):
        if not key.endswith("/"):  # the empty objects that represent directories
            yield Item(bucket, key, relative(key, prefix))


def relative(key: str, prefix: str) -> str:
    """An object's path in its input: below the prefix if that is a directory, else from the prefix's last directory.

    Raises ValidationError for a path that leads out of the directory.
    """
    whole = not prefix or prefix.endswith("/") or key.startswith(f"{prefix}/")
    base = prefix if whole else prefix[: prefix.rfind("/") + 1]
    path = PurePosixPath(key.removeprefix(base).lstrip("/"))
    if ".." in path.parts or not path.parts:
        raise ValidationError(f"{key} leads out of the directory of its input")
    return str(path)


def _manifest(s3: Any, uri: str) -> Iterator[Item]:
    """The objects of a manifest: [{"prefix": "s3://b/p/"}, "path", ...]."""
    bucket, key = model_data.parts(uri)
    try:
        prefix, *names = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        home, base = model_data.parts(prefix["prefix"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValidationError(
            f'the manifest must be [{{"prefix": "s3://bucket/prefix/"}}, "path", ...]: {error}'
        ) from error
    for name in sorted(names):
        yield Item(home, f"{base}{name}", relative(f"{base}{name}", base))

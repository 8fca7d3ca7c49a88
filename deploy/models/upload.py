"""A file uploaded to an S3 key that no other content will ever have: in parts, each verified, resumed after a stop.

boto3's own `upload_file` starts again after an interruption. Here the parts of an unfinished upload are listed,
compared with the file, and only missing parts are sent. The object appears last, and only if the key is free
(If-None-Match): of two uploads of the same file one creates the object, and the other finds it.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import code
from deploy.errors import Failed

MB = 1 << 20
PART = 16 * MB  # a file up to this size is one request; 4 parts in flight take 64 MB of memory
MOST_PARTS = 10_000  # S3's limit
AT_ONCE = 4
METADATA = "sha256"  # of the whole object, under x-amz-meta-
# S3's codes where If-None-Match finds an object, and where another request is creating one.
THERE, RACING = ("PreconditionFailed", "412"), ("ConditionalRequestConflict", "409")

Count = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    s3: Any  # boto3's client
    bucket: str
    key: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def where(self) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.key}


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file at the time when it was measured."""

    path: Path
    size: int
    changed: int  # ns
    sha256: str  # in hexadecimal

    def is_unchanged(self) -> bool:
        now = self.path.stat()
        return (now.st_size, now.st_mtime_ns) == (self.size, self.changed)


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    start: int
    size: int


def measured(path: Path, count: Count = lambda _: None) -> File:
    """Size, time and hash of a file, which is read once."""
    before, digest = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(MB):
            digest.update(data)
            count(len(data))
    return File(path=path, size=before.st_size, changed=before.st_mtime_ns, sha256=digest.hexdigest())


def put(target: Target, file: File, count: Count = lambda _: None) -> bool:
    """Upload the file; False if the object exists already. Raises ClientError and OSError.

    Raises Failed if the file changes meanwhile, or if the key has other content.
    """
    if _exists(target, file):
        return False
    try:
        if file.size <= PART:
            _put_whole(target, file)
            count(file.size)
        else:
            _put_parts(target, file, count)
    except ClientError as error:
        # A concurrent upload created the object, or it may not be read. The key contains the content's hash.
        if code(error) not in (*THERE, *RACING, "NoSuchUpload"):
            raise
        if not _exists(target, file) and code(error) not in THERE:
            raise
        return False
    return True


def _exists(target: Target, file: File) -> bool:
    try:
        found = target.s3.head_object(**target.where)
    except ClientError as error:
        # Without the right to list a bucket, S3 answers 403 for a missing key. If more is forbidden, the upload fails.
        if code(error) in ("404", "403", "400"):
            return False
        raise
    if (found["ContentLength"], found["Metadata"].get(METADATA, file.sha256)) != (file.size, file.sha256):
        raise Failed(f"{target.uri} exists with other content: remove it, then run the same command again")
    return True


def parts(size: int) -> Iterator[Part]:
    """The parts of a file of this size: always the same, so that a later run recognises them."""
    length = max(PART, -(-size // MOST_PARTS // MB + 1) * MB if size > PART * MOST_PARTS else PART)
    for number, start in enumerate(range(0, size, length), 1):
        yield Part(number, start, min(length, size - start))


def unfinished(s3: Any, bucket: str, prefix: str) -> list[tuple[str, str]]:
    """(key, upload) of the unfinished uploads below a prefix, oldest first."""
    found = []
    for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
        found += [(each["Initiated"], each["Key"], each["UploadId"]) for each in page.get("Uploads", ())]
    return [(key, upload) for _, key, upload in sorted(found)]


def _put_whole(target: Target, file: File) -> None:
    body = file.path.read_bytes()
    digest = hashlib.sha256(body)
    if digest.hexdigest() != file.sha256:
        raise _changed(file)
    checks = {"IfNoneMatch": "*", "ChecksumSHA256": _base64(digest.digest())}
    target.s3.put_object(**target.where, Body=body, Metadata={METADATA: file.sha256}, **checks)


def _put_parts(target: Target, file: File, count: Count) -> None:
    upload, there = _begun(target, file)
    location = {**target.where, "UploadId": upload}

    def send(part: Part) -> dict[str, Any]:
        with file.path.open("rb") as opened:
            opened.seek(part.start)
            data = opened.read(part.size)
        known = there.get(part.number)
        checksum = _base64(hashlib.sha256(data).digest())
        if known is None or not _is_same(known, data, checksum):
            known = target.s3.upload_part(**location, PartNumber=part.number, Body=data, ChecksumSHA256=checksum)
        count(part.size)
        return {"PartNumber": part.number, "ETag": known["ETag"], "ChecksumSHA256": checksum}

    with ThreadPoolExecutor(AT_ONCE) as threads:
        try:
            sent = list(threads.map(send, parts(file.size)))
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    if not file.is_unchanged():
        target.s3.abort_multipart_upload(**location)
        raise _changed(file)
    try:
        target.s3.complete_multipart_upload(**location, MultipartUpload={"Parts": sent}, IfNoneMatch="*")
    except ClientError as error:
        if code(error) in THERE:
            target.s3.abort_multipart_upload(**location)
        raise


def _begun(target: Target, file: File) -> tuple[str, dict[int, Any]]:
    """An upload of this key and its parts: the latest unfinished one, or a new one."""
    try:
        uploads = [upload for key, upload in unfinished(target.s3, target.bucket, target.key) if key == target.key]
        if uploads:
            location = {**target.where, "UploadId": uploads[-1]}
            pages = target.s3.get_paginator("list_parts").paginate(**location)
            return uploads[-1], {each["PartNumber"]: each for page in pages for each in page.get("Parts", ())}
    except ClientError as error:
        # Without s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts the upload starts again.
        if code(error) not in ("AccessDenied", "NoSuchUpload"):
            raise
    made = target.s3.create_multipart_upload(
        **target.where, ChecksumAlgorithm="SHA256", Metadata={METADATA: file.sha256}
    )
    return made["UploadId"], {}


def _is_same(known: dict[str, Any], data: bytes, checksum: str) -> bool:
    """Whether a part in S3 equals the data. Its ETag is an MD5, unless the bucket encrypts by KMS."""
    if known["Size"] != len(data):
        return False
    if "ChecksumSHA256" in known:
        return bool(known["ChecksumSHA256"] == checksum)
    return bool(known["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest())


def _changed(file: File) -> Failed:
    return Failed(f"{file.path} changed during the upload: run the same command again")


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()

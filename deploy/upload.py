"""A file to an S3 key that no other content will ever have: in parts, each checked, and going on where it once stopped.

boto3's own `upload_file` begins anew after an interruption. Here the parts of an upload that was not finished are asked
for, compared with the file, and only what is missing is sent. The object appears last, and only where there is none
(If-None-Match): of two who put the same at once one does it, and the other is told that it is there.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

MB = 1 << 20
PART = 16 * MB  # a file that is no longer goes in one request; 4 in flight are 64 MB of memory
MOST_PARTS = 10_000  # S3's limit
AT_ONCE = 4
METADATA = "sha256"  # of the whole object, under x-amz-meta-
# What S3 says where If-None-Match finds an object, and where another request is just about to make one.
THERE, RACING = ("PreconditionFailed", "412"), ("ConditionalRequestConflict", "409")

Count = Callable[[int], object]


class Changed(Exception):
    """The file is not what it was when its key was made."""


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
    """A file as it was when it was measured."""

    path: Path
    size: int
    changed: int  # ns
    sha256: str  # in hexadecimal

    def is_as_it_was(self) -> bool:
        now = self.path.stat()
        return (now.st_size, now.st_mtime_ns) == (self.size, self.changed)


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    start: int
    size: int


def measured(path: Path, count: Count = lambda _: None) -> File:
    """Reads the file once."""
    before, digest = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(MB):
            digest.update(data)
            count(len(data))
    return File(path=path, size=before.st_size, changed=before.st_mtime_ns, sha256=digest.hexdigest())


def put(target: Target, file: File, count: Count = lambda _: None) -> bool:
    """Whether it had to be put: False when it is there already. Raises ClientError, OSError and Changed."""
    if _is_there(target, file):
        return False
    try:
        if file.size <= PART:
            _put_whole(target, file)
            count(file.size)
        else:
            _put_parts(target, file, count)
    except ClientError as error:
        # Somebody else has put it while we did, or before, and we may not see it: the key holds its hash.
        if _code(error) not in (*THERE, *RACING, "NoSuchUpload"):
            raise
        if not _is_there(target, file) and _code(error) not in THERE:
            raise
        return False
    return True


def _is_there(target: Target, file: File) -> bool:
    try:
        found = target.s3.head_object(**target.where)
    except ClientError as error:
        # Who may not list a bucket is told 403 of what is not in it; if more than that is forbidden, the put will say.
        if _code(error) in ("404", "403", "400"):
            return False
        raise
    if (found["ContentLength"], found["Metadata"].get(METADATA, file.sha256)) != (file.size, file.sha256):
        raise Changed(f"{target.uri} is there, but is another file: remove it, then put again")
    return True


def parts(size: int) -> Iterator[Part]:
    """How a file of this size is cut: the same each time, so that another run finds its parts again."""
    length = max(PART, -(-size // MOST_PARTS // MB + 1) * MB if size > PART * MOST_PARTS else PART)
    for number, start in enumerate(range(0, size, length), 1):
        yield Part(number, start, min(length, size - start))


def unfinished(s3: Any, bucket: str, prefix: str) -> list[tuple[str, str]]:
    """(key, upload) of what was begun below a prefix and neither finished nor given up, oldest first."""
    found = []
    for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
        found += [(each["Initiated"], each["Key"], each["UploadId"]) for each in page.get("Uploads", ())]
    return [(key, upload) for _, key, upload in sorted(found)]


def _put_whole(target: Target, file: File) -> None:
    body = file.path.read_bytes()
    digest = hashlib.sha256(body)
    if digest.hexdigest() != file.sha256:
        raise Changed(f"{file.path} was written to meanwhile: run the same command again")
    checks = {"IfNoneMatch": "*", "ChecksumSHA256": _base64(digest.digest())}
    target.s3.put_object(**target.where, Body=body, Metadata={METADATA: file.sha256}, **checks)


def _put_parts(target: Target, file: File, count: Count) -> None:
    upload, there = _begun(target, file)
    asked = {**target.where, "UploadId": upload}

    def send(part: Part) -> dict[str, Any]:
        with file.path.open("rb") as opened:
            opened.seek(part.start)
            data = opened.read(part.size)
        known = there.get(part.number)
        checksum = _base64(hashlib.sha256(data).digest())
        if known is None or not _is_same(known, data, checksum):
            known = target.s3.upload_part(**asked, PartNumber=part.number, Body=data, ChecksumSHA256=checksum)
        count(part.size)
        return {"PartNumber": part.number, "ETag": known["ETag"], "ChecksumSHA256": checksum}

    with ThreadPoolExecutor(AT_ONCE) as threads:
        try:
            sent = list(threads.map(send, parts(file.size)))
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    if not file.is_as_it_was():
        target.s3.abort_multipart_upload(**asked)
        raise Changed(f"{file.path} was written to meanwhile: run the same command again")
    try:
        target.s3.complete_multipart_upload(**asked, MultipartUpload={"Parts": sent}, IfNoneMatch="*")
    except ClientError as error:
        if _code(error) in THERE:
            target.s3.abort_multipart_upload(**asked)
        raise


def _begun(target: Target, file: File) -> tuple[str, dict[int, Any]]:
    """An upload of this key and the parts it has: the latest that was not finished, else a new one."""
    try:
        uploads = [upload for key, upload in unfinished(target.s3, target.bucket, target.key) if key == target.key]
        if uploads:
            asked = {**target.where, "UploadId": uploads[-1]}
            pages = target.s3.get_paginator("list_parts").paginate(**asked)
            return uploads[-1], {each["PartNumber"]: each for page in pages for each in page.get("Parts", ())}
    except ClientError as error:
        # Without s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts, begin anew.
        if _code(error) not in ("AccessDenied", "NoSuchUpload"):
            raise
    made = target.s3.create_multipart_upload(
        **target.where, ChecksumAlgorithm="SHA256", Metadata={METADATA: file.sha256}
    )
    return made["UploadId"], {}


def _is_same(known: dict[str, Any], data: bytes, checksum: str) -> bool:
    """Whether a part that S3 has is this one; its ETag is an MD5 but where the bucket encrypts by KMS."""
    if known["Size"] != len(data):
        return False
    if "ChecksumSHA256" in known:
        return bool(known["ChecksumSHA256"] == checksum)
    return bool(known["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest())


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()

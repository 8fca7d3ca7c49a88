"""Unpacking of model archives. They are untrusted: each member is checked before a byte of it is written."""

import errno
import gzip
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from serve.catalog.recognition import shown, top
from serve.errors import DoesNotFit, ModelUnusable
from serve.failures import HINTS

MOST_MEMBERS = 100_000
# Bytes of all headers between two members. A path needs 4 KB, and tarfile reads a whole header into memory.
HEADERS = 256 * 1024
CHUNK = 64 * 1024
GZIP = b"\x1f\x8b"
FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of the system for a bad path in an archive: too long, or a file where another member has a directory.
BAD_PATH = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ)
DEPTH = 100  # directories in a path: the standard library makes and removes directories by recursion
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}


def unpack(archive: Path, into: Path, *, limit_bytes: int, seconds: float = float("inf")) -> Path:
    """Unpack an archive; the directory of the model, which is `into` or the only directory in it.

    `into` appears whole or not at all. A crash leaves a `.unpacking-*` beside it, which later calls ignore. Of two
    concurrent calls the slower one returns the directory of the faster one. Raises ModelUnusable, naming the member at
    fault, and DoesNotFit when the disk is full or the content is larger than `limit_bytes`; ModelUnusable after so
    many `seconds` too, for the unpacking is a part of the load.
    """
    if into.exists():
        return top(into)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=into.parent, ignore_cleanup_errors=True) as beside:
        fresh = Path(beside, "model")
        try:
            fresh.mkdir(mode=0o755)
            _extract_all(archive, fresh, limit_bytes, seconds)
        except (ModelUnusable, DoesNotFit) as error:
            where = f" in {into.parent}" if isinstance(error, DoesNotFit) else ""
            error.message = f"{shown(archive.name)}: {error.message}{where}"
            error.hint = error.hint or (
                "pack plain files again with tar czf NAME.tar.gz -C DIRECTORY . and copy the whole archive"
                if isinstance(error, ModelUnusable)
                else HINTS["disk space"]
            )
            raise
        except OSError as error:
            if error.errno not in FULL:
                raise
            message = f"{into.parent}: the disk is full while {shown(archive.name)} is unpacked"
            raise DoesNotFit(message, hint=HINTS["disk space"]) from error
        try:
            fresh.rename(into)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    return top(into)


def disk(path: Path) -> tuple[int, int]:
    """Free bytes, and all bytes, of the disk of a path."""
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


class _Member(tarfile.TarInfo):
    """A member of a tar. tarfile by itself takes a broken or missing header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as bad:
            if isinstance(bad, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # missing in typeshed
                raise
            raise tarfile.ReadError(f"truncated or damaged ({bad})") from None


class _Meter:
    """A file that can be read for `left` more bytes: a limit on headers, whose size it chooses, and for a time."""

    def __init__(self, file: gzip.GzipFile | BinaryIO, seconds: float) -> None:
        self._file = file
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self.left = HEADERS

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.left -= len(data)
        if time.monotonic() > self._until:
            raise ModelUnusable(
                f"not unpacked within {self._seconds:g} s (SERVE_LOAD_LIMIT)",
                hint="raise SERVE_LOAD_LIMIT, or pack fewer and smaller files",
            )
        if self.left < 0:
            raise ModelUnusable("a header between two members is too long")
        return data


def _extract_all(archive: Path, into: Path, limit_bytes: int, seconds: float) -> None:
    try:
        with archive.open("rb") as raw:
            packed = raw.read(len(GZIP)) == GZIP
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else raw as plain:
                meter = _Meter(plain, seconds)
                _extract_from(meter, into, limit_bytes)
                # Read to the end: gzip's checksum is there.
                meter.left = limit_bytes
                while meter.read(CHUNK):
                    pass
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        if error.filename != str(archive):
            raise
        raise ModelUnusable(f"cannot be read: {error.strerror}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ModelUnusable(f"truncated or damaged: {error}") from error
    except tarfile.TarError as error:
        raise ModelUnusable(f"invalid or truncated tar.gz: {error}") from error


def _extract_from(meter: _Meter, into: Path, limit_bytes: int) -> None:
    seen: dict[PurePosixPath, bool] = {}  # path -> whether it is a directory
    count = total = 0
    with tarfile.open(fileobj=meter, mode="r|", bufsize=CHUNK, tarinfo=_Member) as tar:  # type: ignore[call-overload]
        for member in tar:
            name = shown(member.name)
            count += 1
            if count > MOST_MEMBERS:
                raise ModelUnusable(f"more than {MOST_MEMBERS:,} members; {name} is the first beyond the limit")
            path = _checked(member)
            if path in seen and not (seen[path] and member.isdir()):
                raise ModelUnusable(f"{name}: duplicate member")
            seen[path] = member.isdir()
            total += member.size
            if total > limit_bytes:
                raise DoesNotFit(
                    f"{name}: the content up to this member is larger than {limit_bytes:,} bytes, the free disk space"
                )
            meter.left = member.size + HEADERS
            if path.parts:
                _extract(tar, member, into)
            tar.members = []  # tarfile would keep all of them in memory
    if all(seen.values()):
        raise ModelUnusable("the archive contains no file")


def _checked(member: tarfile.TarInfo) -> PurePosixPath:
    """The path of a member, relative to the directory. Raises ModelUnusable for members that must not be written."""
    name, path = shown(member.name), PurePosixPath(member.name)
    if not member.name or path.is_absolute():
        raise ModelUnusable(f"{name or '/'}: an absolute path is not supported")
    if ".." in path.parts:
        raise ModelUnusable(f"{name}: a path with .. is not supported")
    if len(path.parts) > DEPTH:
        raise ModelUnusable(f"{name}: a path of {len(path.parts)} directories, the limit is {DEPTH}")
    if any(ord(char) < 32 or ord(char) == 127 for char in member.name):
        raise ModelUnusable(f"{name}: a name with control characters is not supported")
    if not (member.isreg() or member.isdir()):
        raise ModelUnusable(
            f"{name}: {KINDS.get(member.type, 'an unknown type')} is not supported; pack plain files only"
        )
    if member.issparse() or member.size < 0:
        raise ModelUnusable(f"{name}: a sparse file is not supported; pack plain files only")
    return path


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    """Write a member that `_checked` has accepted. TarFile.extract has no filter in Debian 12's Python 3.11.2."""
    target = into / member.name
    try:
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            target.chmod(0o755)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        content = tar.extractfile(member)
        assert content is not None
        with content, target.open("xb") as file:
            shutil.copyfileobj(content, file, CHUNK)
        target.chmod(0o644)
    except OSError as error:
        if error.errno not in BAD_PATH:
            raise
        raise ModelUnusable(f"{shown(member.name)}: {os.strerror(error.errno or 0)}") from error

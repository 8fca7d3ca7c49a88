"""What the platform asks of S3, kept in memory: the one thing that its tests put in another's place."""

import io
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.live.stack import TOYS
from tests.patience import PATIENCE


class Bucket:
    """Objects by key, whatever the bucket is called. Where `gate` is given, no object comes before it is set."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads: list[str] = []
        self.gate: threading.Event | None = None

    def get_object(self, *, Bucket: str, Key: str) -> Any:  # noqa: N803 - boto3's names
        self.reads.append(Key)
        if self.gate:
            self.gate.wait(PATIENCE)
        if Key not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey", "Message": "it is not there"}}, "GetObject")
        return {"Body": io.BytesIO(self.objects[Key])}

    def list_objects_v2(self, **asked: str) -> Any:
        """Two keys a page, so that paging is seen."""
        keys = sorted(key for key in self.objects if key.startswith(asked["Prefix"]))
        start = int(asked.get("ContinuationToken", "0"))
        more = {"NextContinuationToken": str(start + 2)} if len(keys) > start + 2 else {}
        return {"Contents": [{"Key": key} for key in keys[start : start + 2]], "IsTruncated": bool(more), **more}

    def put_toy(self, key: str, kind: str, files: Mapping[str, str] | None = None) -> str:
        """A toy of tests/toys as an archive, with further files; its key again."""
        self.objects[key] = archive(kind, files)
        return key


def archive(kind: str, files: Mapping[str, str] | None = None) -> bytes:
    """A toy of tests/toys as .tar.gz."""
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory, "model")
        shutil.copytree(TOYS / kind, model, ignore=shutil.ignore_patterns("__pycache__"))
        for name, text in (files or {}).items():
            (model / name).write_text(text)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
            tar.add(model, ".")
        return packed.getvalue()

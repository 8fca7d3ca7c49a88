"""A real S3 server for tests that checks signatures and permissions: SeaweedFS, one process on free ports."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from local_test.ports import free_port
from tests.live.stack import wait_until

OWNER = {"accessKey": "owner", "secretKey": "owner-secret"}
READER = {"accessKey": "reader", "secretKey": "reader-secret"}  # of bucket `inputs` only
WRITER = {"accessKey": "writer", "secretKey": "writer-secret"}  # to bucket `inputs`, and nothing else
PORTS = ("master", "volume", "filer", "s3")


class BucketServer:
    """The buckets `inputs` and `secret` exist after construction."""

    def __init__(self, work: Path) -> None:
        identities = [
            {"name": "owner", "credentials": [OWNER], "actions": ["Admin"]},
            {"name": "reader", "credentials": [READER], "actions": ["Read:inputs", "List:inputs"]},
            {"name": "writer", "credentials": [WRITER], "actions": ["Write:inputs"]},
        ]
        (work / "identities.json").write_text(json.dumps({"identities": identities}))
        ports = {name: free_port() for name in (*PORTS, *(f"{each}.port.grpc" for each in PORTS))}
        # Each bucket takes seven volumes at its first object; without free volumes S3 answers InternalError.
        flags = [f"-{name if '.' in name else f'{name}.port'}={port}" for name, port in ports.items()]
        weed = shutil.which("weed", path=str(Path(sys.executable).parent))
        assert weed
        with (work / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={work}", "-volume.max=200"),
                    *("-s3", f"-s3.config={work / 'identities.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
                    *("-master.volumeSizeLimitMB=64", "-master.telemetry=false", *flags),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.url = f"http://127.0.0.1:{ports['s3']}"
        self.client = self._client()
        try:
            wait_until(self._has_buckets, every=0.2)
        except BaseException:
            self.stop()
            raise

    def environ(self, identity: dict[str, str] = READER) -> dict[str, str]:
        """The environment that directs a process to this server, with this identity."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": identity["accessKey"],
            "AWS_SECRET_ACCESS_KEY": identity["secretKey"],
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def put(self, key: str, body: bytes, bucket: str = "inputs", **more: str) -> bytes:
        """Store an object; returns the body of a request that refers to it."""
        self.client.put_object(Bucket=bucket, Key=key, Body=body, **more)
        return f"s3://{bucket}/{key}".encode()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=OWNER["accessKey"],
            aws_secret_access_key=OWNER["secretKey"],
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=60),
        )

    def _has_buckets(self) -> bool:
        assert self.process.poll() is None, "weed has ended"
        try:
            for bucket in ("inputs", "secret"):
                self.client.create_bucket(Bucket=bucket)
                self.client.put_object(Bucket=bucket, Key="ready", Body=b"")
        except Exception:  # any error during the start
            return False
        return True

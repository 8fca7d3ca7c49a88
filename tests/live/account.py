"""An AWS account on an emulator: boto3 clients, and helpers for models, endpoint configs and endpoints."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from botocore.client import Config
from botocore.exceptions import ClientError

from local_test.platform.emulator import Emulator
from local_test.platform.events import Events
from local_test.platform.options import Options
from tests.live.stack import NOT_AHEAD, wait_until
from tests.patience import PATIENCE

ROLE = "arn:aws:iam::123456789012:role/endpoint"
BUCKET = "models"
IN_PROGRESS = ("Creating", "Updating", "RollingBack", "Deleting")


class Account:
    """Requests to one emulator, through boto3 only."""

    def __init__(self, platform: Emulator, output: io.StringIO) -> None:
        self.platform = platform
        self._output = output
        # AWS advises this read timeout for endpoints. Retries would hide errors.
        once = Config(read_timeout=PATIENCE, retries={"total_max_attempts": 1})
        self.s3 = platform.client("s3")
        self.sagemaker = platform.client("sagemaker", config=once)
        self.runtime = platform.client("sagemaker-runtime", config=once)
        self.cloudwatch = platform.client("cloudwatch", config=once)
        self.s3.create_bucket(Bucket=BUCKET)

    def events(self, event: str) -> list[dict[str, Any]]:
        """The events with this action."""
        lines = [json.loads(line) for line in self._output.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    def put(self, key: str, *directories: Path) -> str:
        """Uploads an archive of one model directory, or of several beside each other. Returns its S3 URI."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for directory in directories:
                archive.add(directory, arcname="." if len(directories) == 1 else directory.name)
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=packed.getvalue())
        return f"s3://{BUCKET}/{key}"

    def model(self, name: str, *containers: Mapping[str, Any], **options: Any) -> str:
        """Creates a model of one or several containers. Image is optional."""
        full = [{"Image": "serve", **container} for container in containers]
        members: dict[str, Any] = {"PrimaryContainer": full[0]} if len(full) == 1 else {"Containers": full}
        self.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, **members, **options)
        return name

    def config(self, name: str, *variants: Mapping[str, Any], **options: Any) -> str:
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=list(variants), **options)
        return name

    def create(self, name: str, config: str) -> dict[str, Any]:
        """Creates an endpoint. Returns its description once no operation is in progress."""
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
        return self.settled(name)

    def endpoint(self, name: str, *containers: Mapping[str, Any], count: int = 1, **options: Any) -> str:
        """Creates a model, a config and an endpoint of this name. The endpoint is in service on return."""
        self.model(name, *containers, **options)
        self.config(name, variant(name, InitialInstanceCount=count))
        described = self.create(name, name)
        assert described["EndpointStatus"] == "InService", described
        return name

    def describe(self, name: str) -> dict[str, Any]:
        return self.sagemaker.describe_endpoint(EndpointName=name)  # type: ignore[no-any-return]

    def exists(self, name: str) -> bool:
        return not self._gone(name)

    def settled(self, name: str) -> dict[str, Any]:
        """The endpoint's description once no operation is in progress."""

        def when() -> dict[str, Any] | None:
            described = self.describe(name)
            return None if described["EndpointStatus"] in IN_PROGRESS else described

        return wait_until(when)  # type: ignore[no-any-return]

    def is_at(self, name: str, status: str, phase: str | None = None) -> bool:
        """Whether the endpoint has this status, and its new fleet this VariantStatus."""
        described = self.describe(name)
        new = described.get("PendingDeploymentSummary", {}).get("ProductionVariants", [{}])[0]
        phases = [each["Status"] for each in new.get("VariantStatus", ())]
        return described["EndpointStatus"] == status and (phase is None or phase in phases)

    def invoke(self, name: str, body: Any = b"{}", **options: Any) -> bytes:
        """The body of the answer. The request is JSON unless the options name another ContentType."""
        raw = body if isinstance(body, bytes | str) else json.dumps(body)
        given = {"ContentType": "application/json", **options}
        return self.runtime.invoke_endpoint(EndpointName=name, Body=raw, **given)["Body"].read()  # type: ignore[no-any-return]

    def pid(self, name: str, **options: Any) -> int:
        """The process id in the answer of the model echo."""
        return int(self.invoke(name, b"x", ContentType="text/plain", **options).partition(b":")[0])

    def delete(self, name: str) -> None:
        """Deletes the endpoint. Returns once it is gone."""
        self.sagemaker.delete_endpoint(EndpointName=name)
        wait_until(partial(self._gone, name))

    def _gone(self, name: str) -> bool:
        try:
            self.describe(name)
        except ClientError as error:
            return bool(error.response["Error"]["Code"] == "ValidationException")
        return False


def variant(model: str, name: str = "AllTraffic", **options: Any) -> dict[str, Any]:
    given = {"VariantName": name, "ModelName": model, "InstanceType": "ml.m7i.large", "InitialInstanceCount": 1}
    return {**given, **options}


def multi_model(prefix: str, **options: Any) -> dict[str, Any]:
    """A multi-model container for this prefix."""
    return {
        "Mode": "MultiModel",
        "ModelDataUrl": f"s3://{BUCKET}/{prefix}/",
        **options,
        "Environment": NOT_AHEAD | options.get("Environment", {}),
    }


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Code and message of a call's error."""
    try:
        call()
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["Error"]["Message"]
    raise AssertionError("the call was not refused")


@contextmanager
def account(work: Path, **options: Any) -> Iterator[Account]:
    """An account on its own emulator, with short time limits. At the end all endpoints are stopped."""
    output = io.StringIO()
    given: dict[str, Any] = {"runtime": "process", "ping_every": 0.5, **options}
    with Emulator(Options(work=work, **given), Events(output, as_json=True), seed=1) as platform:
        yield Account(platform, output)
    left = [path for path in work.rglob("*") if path.is_file()]
    assert not left, f"left behind: {left}"

"""One call of an asynchronous endpoint: its body goes to S3, it waits in a queue, its answer comes to S3.

docs.aws.amazon.com/sagemaker/latest/dg/async-inference.html
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy import upload
from deploy.aws import Aws, Failed, code, denied
from deploy.progress import Progress, looks
from deploy.spec import INPUTS, S3
from deploy.upload import Changed, Target

# One call may take an hour (InvocationTimeoutSeconds), and wait for as long behind others.
PATIENCE = 7200.0
NOT_THERE = ("NoSuchKey", "404")


def output(endpoint: Mapping[str, Any]) -> str | None:
    """Where the answers of an endpoint (DescribeEndpoint's) go; None: it answers at once."""
    found = endpoint.get("AsyncInferenceConfig", {}).get("OutputConfig", {}).get("S3OutputPath")
    return f"{found.rstrip('/')}/" if found else None


def put(aws: Aws, output: str, body: Path) -> str:
    """The address of a body, below the endpoint's own output, where its role may read. Equal bodies are put once."""
    file = upload.measured(body)
    bucket, key = _split(f"{output}{INPUTS}{file.sha256[:16]}{body.suffix}")
    target = Target(s3=aws.client("s3"), bucket=bucket, key=key)
    try:
        upload.put(target, file)
    except Changed as error:
        raise Failed(str(error)) from error
    return target.uri


def put_bytes(aws: Aws, output: str, body: bytes) -> str:
    with tempfile.TemporaryDirectory() as beside:
        path = Path(beside, "body")
        path.write_bytes(body)
        return put(aws, output, path)


def request(
    name: str, source: str, content_type: str, *, accept: str | None = None, attributes: str | None = None
) -> dict[str, Any]:
    """InvokeEndpointAsync's."""
    options = {"Accept": accept, "CustomAttributes": attributes}
    given = {key: value for key, value in options.items() if value is not None}
    return {"EndpointName": name, "InputLocation": source, "ContentType": content_type, **given}


def answered(aws: Aws, asked: Mapping[str, Any], progress: Progress) -> bytes:
    """The output object, when it is there. `asked` is InvokeEndpointAsync's. Raises Failed for the failure object."""
    queued = aws.client("sagemaker-runtime").invoke_endpoint_async(**asked)
    output, failure = queued["OutputLocation"], queued.get("FailureLocation")
    progress.say(f"queued; the answer will be {output}" + (f", a failure {failure}" if failure else ""))
    until = time.monotonic() + PATIENCE
    with progress.waiting("asynchronous call") as show:
        for _ in looks():
            body = _object(aws, output)
            if body is not None:
                return body
            failed = _object(aws, failure) if failure else None
            if failed is not None:
                raise Failed(f"the call failed: {failed.decode(errors='replace')}\n  {failure}")
            if time.monotonic() > until:
                break
            show("waiting")
    told = "" if failure else "; without `failures` under [async] a failure is told nowhere but in its log"
    raise Failed(
        f"no answer after {PATIENCE / 3600:g} h; it may still come to {output}{told}: "
        f"python -m deploy logs {asked['EndpointName']}"
    )


def _object(aws: Aws, uri: str) -> bytes | None:
    bucket, key = _split(uri)
    try:
        return bytes(aws.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())
    except ClientError as error:
        if code(error) in NOT_THERE:
            return None
        if denied(error):
            raise Failed(
                f"{uri}: {code(error)}: to see the answer you need s3:GetObject on it, and s3:ListBucket on {bucket}, "
                "without which what is not there yet is forbidden too"
            ) from error
        raise


def _split(uri: str) -> tuple[str, str]:
    found = S3.fullmatch(uri)
    if not found:
        raise Failed(f"{uri} is no place in S3: s3://bucket/key")
    return found[1], found[2]

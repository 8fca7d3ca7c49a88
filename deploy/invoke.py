"""Calls of an endpoint: one call of the command line, asynchronous calls, and the smoke calls of a deployment."""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from deploy.aws import Aws, code, denied, explained
from deploy.errors import Failed, SpecError
from deploy.models import upload
from deploy.models.upload import Target
from deploy.progress import Progress, polls
from deploy.spec import INPUTS, S3, Spec
from deploy.status import existing

TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".txt": "text/plain",
    ".libsvm": "text/libsvm",
    ".npy": "application/x-npy",
}
LOADING = 360.0  # seconds that a model may take to load: AWS's limit for multi-model endpoints
# Seconds to wait for an asynchronous response: a call may take an hour (InvocationTimeoutSeconds) and queue as long.
QUEUED = 7200.0
NOT_THERE = ("NoSuchKey", "404")
SMOKE_LINE = "expected MODEL CONTENT-TYPE PAYLOAD, for example a.tar.gz text/csv 1,2"


def run(aws: Aws, given: argparse.Namespace) -> int:
    """Print the response on stdout, and status and time on stderr. Raises Failed."""
    output = _output(aws, given.name)
    _refuse_unsupported(given, queued=output is not None)
    progress, began = Progress(sys.stderr), time.monotonic()
    try:
        if output is None:
            how = _at_once(aws, given, progress)
        else:
            how = _queued(aws, given, output, progress)
    except OSError as error:
        if error.filename is None:
            raise
        raise Failed(f"{given.file}: {error.strerror}") from error
    print(f"\n{how} in {(time.monotonic() - began) * 1000:.0f} ms", file=sys.stderr)
    return 0


def _output(aws: Aws, name: str) -> str | None:
    """The output prefix of an asynchronous endpoint; None for other endpoints, or if AWS denies the question."""
    try:
        return output_of(existing(aws, name))
    except ClientError as error:
        if denied(error):
            return None
        raise


def _refuse_unsupported(given: argparse.Namespace, *, queued: bool) -> None:
    """Raise Failed for options that no operation of AWS combines."""
    options = {"--target-model": given.target_model, "--variant": given.variant, "--stream": given.stream}
    if queued and (named := [name for name, value in options.items() if value]):
        raise Failed(f"endpoint {given.name} is asynchronous, which does not support {' and '.join(named)}")
    if given.stream and given.target_model:
        raise Failed(
            "--stream does not support --target-model (InvokeEndpointWithResponseStream has no such field): use a "
            "bundle of models, and --attributes model_type=NAME"
        )
    if given.file.startswith("s3://") and not queued:
        raise Failed(f"endpoint {given.name} is not asynchronous and does not read bodies from S3: give a file")


def _at_once(aws: Aws, given: argparse.Namespace, progress: Progress) -> str:
    body = sys.stdin.buffer.read() if given.file == "-" else Path(given.file).read_bytes()
    fields = request(
        given.name,
        body,
        _type(given),
        target=given.target_model,
        variant=given.variant,
        accept=given.accept,
        attributes=given.attributes,
    )
    if given.stream:
        answer = called(aws, fields, "invoke_endpoint_with_response_stream", progress)
        for event in answer["Body"]:
            _print(event["PayloadPart"]["Bytes"])
    else:
        answer = called(aws, fields, progress=progress)
        _print(answer["Body"].read())
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    return f"{status} from {answer.get('InvokedProductionVariant', '?')}"


def _queued(aws: Aws, given: argparse.Namespace, output: str, progress: Progress) -> str:
    if given.file.startswith("s3://"):
        source = given.file
    elif given.file == "-":
        source = put_body(aws, output, sys.stdin.buffer.read())
    else:
        source = put_file(aws, output, Path(given.file))
    fields = request_async(given.name, source, _type(given), accept=given.accept, attributes=given.attributes)
    _print(called_async(aws, fields, progress))
    return "done"


def _type(given: argparse.Namespace) -> str:
    return given.type or TYPES.get(Path(given.file).suffix, "application/octet-stream")


def _print(body: bytes) -> None:
    sys.stdout.buffer.write(body)
    sys.stdout.buffer.flush()


# A call with a response


def request(
    name: str,
    body: bytes,
    content_type: str,
    *,
    target: str | None = None,
    variant: str | None = None,
    accept: str | None = None,
    attributes: str | None = None,
) -> dict[str, Any]:
    """InvokeEndpoint's."""
    options = {"TargetModel": target, "TargetVariant": variant, "Accept": accept, "CustomAttributes": attributes}
    given = {key: value for key, value in options.items() if value is not None}
    return {"EndpointName": name, "Body": body, "ContentType": content_type, **given}


def called(
    aws: Aws, fields: dict[str, Any], operation: str = "invoke_endpoint", progress: Progress | None = None
) -> Any:
    """The response; the call is retried while the model loads (429). Raises Failed for the container's errors."""
    call = getattr(aws.client("sagemaker-runtime"), operation)
    until = time.monotonic() + LOADING
    with (progress or Progress(sys.stderr)).waiting(f"model {fields.get('TargetModel', '')}") as show:
        for _ in polls():
            try:
                return call(**fields)
            except ClientError as error:
                if code(error) == "ModelError":
                    raise Failed(refusal(error)) from error
                if code(error) != "ModelNotReadyException" or time.monotonic() > until:
                    raise
                show("is being loaded")
    raise AssertionError


def refusal(error: ClientError) -> str:
    """The container's status and body, without AWS's text around it."""
    status, body = error.response.get("OriginalStatusCode"), error.response.get("OriginalMessage")
    return f"the container answered {status}: {body}" if body else str(error)


# An asynchronous call: docs.aws.amazon.com/sagemaker/latest/dg/async-inference.html


def output_of(endpoint: Mapping[str, Any]) -> str | None:
    """The prefix of an endpoint's responses (from DescribeEndpoint); None: the endpoint is not asynchronous."""
    found = endpoint.get("AsyncInferenceConfig", {}).get("OutputConfig", {}).get("S3OutputPath")
    return f"{found.rstrip('/')}/" if found else None


def put_file(aws: Aws, output: str, body: Path) -> str:
    """Upload a body below the output prefix, where the endpoint's role may read; its URI. Equal bodies share a key."""
    file = upload.measured(body)
    bucket, key = _split(f"{output}{INPUTS}{file.sha256[:16]}{body.suffix}")
    target = Target(s3=aws.client("s3"), bucket=bucket, key=key)
    upload.put(target, file)
    return target.uri


def put_body(aws: Aws, output: str, body: bytes) -> str:
    with tempfile.TemporaryDirectory() as beside:
        path = Path(beside, "body")
        path.write_bytes(body)
        return put_file(aws, output, path)


def request_async(
    name: str, source: str, content_type: str, *, accept: str | None = None, attributes: str | None = None
) -> dict[str, Any]:
    """InvokeEndpointAsync's."""
    options = {"Accept": accept, "CustomAttributes": attributes}
    given = {key: value for key, value in options.items() if value is not None}
    return {"EndpointName": name, "InputLocation": source, "ContentType": content_type, **given}


def called_async(aws: Aws, fields: Mapping[str, Any], progress: Progress) -> bytes:
    """The output object, as soon as it exists. Raises Failed with the failure object, or after QUEUED seconds."""
    queued = aws.client("sagemaker-runtime").invoke_endpoint_async(**fields)
    output, failure = queued["OutputLocation"], queued.get("FailureLocation")
    progress.say(f"queued: the response will be {output}" + (f", a failure {failure}" if failure else ""))
    until = time.monotonic() + QUEUED
    with progress.waiting("asynchronous call") as show:
        for _ in polls():
            body = _object(aws, output)
            if body is not None:
                return body
            failed = _object(aws, failure) if failure else None
            if failed is not None:
                raise Failed(f"the call failed: {failed.decode(errors='replace')}\n  {failure}")
            if time.monotonic() > until:
                break
            show("waiting")
    silent = "" if failure else "; without `failures` under [async] a failure appears in the log only"
    raise Failed(
        f"timeout: no response after {QUEUED / 3600:g} h; {output} may still be written{silent}: "
        f"python -m deploy logs {fields['EndpointName']}"
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
                f"{uri}: {code(error)}: reading the response needs s3:GetObject on it, and s3:ListBucket on {bucket}: "
                "without the latter a missing object is reported as forbidden"
            ) from error
        raise


def _split(uri: str) -> tuple[str, str]:
    found = S3.fullmatch(uri)
    if not found:
        raise Failed(f"{uri!r} must be s3://bucket/key")
    return found[1], found[2]


# Smoke calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    model: str | None
    content_type: str
    payload: bytes


def load_checks(path: Path) -> list[Check]:
    """The calls of a smoke file. Raises SpecError, which names file and line.

    A line: the model (a TargetModel; of a bundle its name; `-` for none), a Content-Type, the payload or @FILE.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: {error}") from error
    checks = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split(None, 2)
        if len(parts) < 3 or "/" not in parts[1]:
            raise SpecError(f"{path}, line {number}: {SMOKE_LINE}")
        checks.append(_check(path, number, *parts))
    if not checks:
        raise SpecError(f"{path}: no calls in the file: {SMOKE_LINE}")
    return checks


def run_checks(aws: Aws, spec: Spec, checks: list[Check], progress: Progress) -> None:
    """Send every call to every variant. Raises Failed with all failures after the last call."""
    failures = []
    for variant in spec.variants:
        for check in checks:
            name = f"smoke {variant.name} {check.model or '-'}"
            began = time.monotonic()
            try:
                status = _checked(aws, spec, variant.name, check, progress)
            except Failed as error:
                failures.append(f"{name}: {error}")
            except (ClientError, BotoCoreError) as error:
                failures.append(f"{name}: {explained(error)}")
            else:
                progress.say(f"{name}: {status} in {(time.monotonic() - began) * 1000:.0f} ms")
    if failures:
        raise Failed("\n".join(failures))


def _checked(aws: Aws, spec: Spec, variant: str, check: Check, progress: Progress) -> str:
    multi_model = any(spec.multi_model(each) for each in spec.variants if each.name == variant)
    attributes = f"model_type={check.model}" if check.model and not multi_model else None
    if spec.asynchronous:  # InvokeEndpointAsync cannot address a variant
        source = put_body(aws, f"{spec.asynchronous.output.rstrip('/')}/", check.payload)
        fields = request_async(spec.name, source, check.content_type, attributes=attributes)
        called_async(aws, fields, progress)
        return "done"
    fields = request(
        spec.name,
        check.payload,
        check.content_type,
        target=check.model if multi_model else None,
        attributes=attributes,
        variant=variant if len(spec.variants) > 1 else None,
    )
    answer = called(aws, fields, progress=progress)
    answer["Body"].read()
    return str(answer["ResponseMetadata"]["HTTPStatusCode"])


def _check(path: Path, number: int, model: str, content_type: str, payload: str) -> Check:
    body = payload.encode()
    if payload.startswith("@"):
        file = path.parent / payload[1:].strip()
        try:
            body = file.read_bytes()
        except OSError as error:
            raise SpecError(f"{path}, line {number}: {file}: {error.strerror}") from error
    return Check(model=None if model == "-" else model, content_type=content_type, payload=body)

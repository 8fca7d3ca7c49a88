"""One call of an endpoint, as its users make it."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy import asynchronous
from deploy.aws import Aws, Failed, code, denied
from deploy.progress import Progress, looks
from deploy.settling import existing

TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".txt": "text/plain",
    ".libsvm": "text/libsvm",
    ".npy": "application/x-npy",
}
PATIENCE = 360.0  # seconds that a model may take to load (contract of multi-model endpoints)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the endpoint")
    parser.add_argument(
        "file", help="the body; - is stdin; of an asynchronous endpoint also s3://BUCKET/KEY, which its role can read"
    )
    parser.add_argument("--target-model", metavar="MODEL", help="of a multi-model endpoint: its key below the prefix")
    parser.add_argument("--variant", help="that must answer, whatever the weights")
    parser.add_argument("--type", help="Content-Type; else by the file's suffix")
    parser.add_argument("--accept", help="the format of the answer")
    parser.add_argument(
        "--attributes", help="X-Amzn-SageMaker-Custom-Attributes: `model_type=NAME` picks one of a bundle"
    )
    parser.add_argument("--stream", action="store_true", help="print the answer as it comes")


def run(aws: Aws, given: argparse.Namespace) -> int:
    """The answer on stdout, how it came on stderr. Raises Failed."""
    output = _output(aws, given.name)
    _check(given, asynchronous=output is not None)
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
    """Where an asynchronous endpoint's answers go; None of one that answers at once, or that one may not look at."""
    try:
        return asynchronous.output(existing(aws, name))
    except ClientError as error:
        if denied(error):
            return None
        raise


def _check(given: argparse.Namespace, *, asynchronous: bool) -> None:
    """Raises Failed for what no operation of AWS has."""
    options = {"--target-model": given.target_model, "--variant": given.variant, "--stream": given.stream}
    if asynchronous and (named := [name for name, value in options.items() if value]):
        raise Failed(f"endpoint {given.name} is asynchronous, which goes without {' and '.join(named)}")
    if given.stream and given.target_model:
        raise Failed(
            "a stream goes without --target-model (InvokeEndpointWithResponseStream has none): it needs a bundle of "
            "models, and --attributes model_type=NAME"
        )
    if given.file.startswith("s3://") and not asynchronous:
        raise Failed(f"endpoint {given.name} answers at once and reads nothing from S3: give a file")


def _at_once(aws: Aws, given: argparse.Namespace, progress: Progress) -> str:
    body = sys.stdin.buffer.read() if given.file == "-" else Path(given.file).read_bytes()
    asked = request(
        given.name,
        body,
        _type(given),
        target=given.target_model,
        variant=given.variant,
        accept=given.accept,
        attributes=given.attributes,
    )
    if given.stream:
        answer = called(aws, asked, "invoke_endpoint_with_response_stream", progress)
        for event in answer["Body"]:
            _print(event["PayloadPart"]["Bytes"])
    else:
        answer = called(aws, asked, progress=progress)
        _print(answer["Body"].read())
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    return f"{status} from {answer.get('InvokedProductionVariant', '?')}"


def _queued(aws: Aws, given: argparse.Namespace, output: str, progress: Progress) -> str:
    if given.file.startswith("s3://"):
        source = given.file
    elif given.file == "-":
        source = asynchronous.put_bytes(aws, output, sys.stdin.buffer.read())
    else:
        source = asynchronous.put(aws, output, Path(given.file))
    asked = asynchronous.request(given.name, source, _type(given), accept=given.accept, attributes=given.attributes)
    _print(asynchronous.answered(aws, asked, progress))
    return "done"


def _type(given: argparse.Namespace) -> str:
    return given.type or TYPES.get(Path(given.file).suffix, "application/octet-stream")


def _print(body: bytes) -> None:
    sys.stdout.buffer.write(body)
    sys.stdout.buffer.flush()


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
    aws: Aws, asked: dict[str, Any], operation: str = "invoke_endpoint", progress: Progress | None = None
) -> Any:
    """The answer; while the model is still being loaded (429) it is asked again. Raises Failed for its refusal."""
    call = getattr(aws.client("sagemaker-runtime"), operation)
    until = time.monotonic() + PATIENCE
    with (progress or Progress(sys.stderr)).waiting(f"model {asked.get('TargetModel', '')}") as show:
        for _ in looks():
            try:
                return call(**asked)
            except ClientError as error:
                if code(error) == "ModelError":
                    raise Failed(refusal(error)) from error
                if code(error) != "ModelNotReadyException" or time.monotonic() > until:
                    raise
                show("is being loaded")
    raise AssertionError


def refusal(error: ClientError) -> str:
    """What the container answered, without AWS's words around it."""
    status, said = error.response.get("OriginalStatusCode"), error.response.get("OriginalMessage")
    return f"the container answered {status}: {said}" if said else str(error)

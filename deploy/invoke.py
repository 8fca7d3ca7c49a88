"""One call of an endpoint, as its users make it."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import Aws, Failed, code
from deploy.progress import looks

TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".txt": "text/plain",
    ".libsvm": "text/libsvm",
    ".npy": "application/x-npy",
    ".parquet": "application/x-parquet",
}
PATIENCE = 360.0  # seconds that a model may take to load (contract of multi-model endpoints)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the endpoint")
    parser.add_argument("file", help="the body; - is stdin")
    parser.add_argument("--target-model", metavar="MODEL", help="of a multi-model endpoint: its key below the prefix")
    parser.add_argument("--variant", help="that must answer, whatever the weights")
    parser.add_argument("--type", help="Content-Type; else by the file's suffix")
    parser.add_argument("--accept", help="the format of the answer")
    parser.add_argument(
        "--attributes", help="X-Amzn-SageMaker-Custom-Attributes: `model_type=NAME` picks one of a bundle"
    )
    parser.add_argument("--stream", action="store_true", help="print the answer as it comes")


def run(aws: Aws, given: argparse.Namespace) -> int:
    """The answer on stdout; status, variant and milliseconds on stderr. Raises Failed."""
    path = None if given.file == "-" else Path(given.file)
    try:
        body = path.read_bytes() if path else sys.stdin.buffer.read()
    except OSError as error:
        raise Failed(f"{given.file}: {error.strerror}") from error
    asked = request(
        given.name,
        body,
        given.type or TYPES.get(path.suffix if path else "", "application/octet-stream"),
        target=given.target_model,
        variant=given.variant,
        accept=given.accept,
        attributes=given.attributes,
    )
    began = time.monotonic()
    if given.stream:
        answer = called(aws, asked, "invoke_endpoint_with_response_stream")
        for event in answer["Body"]:
            sys.stdout.buffer.write(event["PayloadPart"]["Bytes"])
            sys.stdout.buffer.flush()
    else:
        answer = called(aws, asked)
        sys.stdout.buffer.write(answer["Body"].read())
        sys.stdout.buffer.flush()
    took = (time.monotonic() - began) * 1000
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    print(f"\n{status} from {answer.get('InvokedProductionVariant', '?')} in {took:.0f} ms", file=sys.stderr)
    return 0


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


def called(aws: Aws, asked: dict[str, Any], operation: str = "invoke_endpoint") -> Any:
    """The answer; while the model is still being loaded (429) it is asked again. Raises Failed for its refusal."""
    call = getattr(aws.client("sagemaker-runtime"), operation)
    until = time.monotonic() + PATIENCE
    for _ in looks():
        try:
            return call(**asked)
        except ClientError as error:
            if code(error) == "ModelError":
                raise Failed(refusal(error)) from error
            if code(error) != "ModelNotReadyException" or time.monotonic() > until:
                raise
    raise AssertionError


def refusal(error: ClientError) -> str:
    """What the container answered, without AWS's words around it."""
    status, said = error.response.get("OriginalStatusCode"), error.response.get("OriginalMessage")
    return f"the container answered {status}: {said}" if said else str(error)

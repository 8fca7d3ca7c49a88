"""Batch transform: one instance is started for the model, and every object below a prefix is sent through it.

How lines are batched and responses assembled: docs.aws.amazon.com/sagemaker/latest/dg/batch-transform.html
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from local_test.pipelines.execution import Properties, Running, Step, StepFailed
from local_test.pipelines.jobs import ACCOUNT, REASON
from local_test.platform.calls import Call, PlatformError
from local_test.platform.containers import model_data, runtimes
from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.spec import ContainerSpec
from local_test.platform.events import Events
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.instance import Instance
from local_test.platform.options import Options

PAYLOAD_MB, STRATEGY = 6, "MultiRecord"  # SageMaker's defaults
LIMIT = 600.0  # seconds an invocation may take, SageMaker's default


def transform(s3: Any, sagemaker: Any, options: Options, running: Running, step: Step) -> Properties:
    """DescribeTransformJob's response. Raises StepFailed; an object whose invocation fails has no output."""
    name, request = step.job, step.arguments
    source, target = request["TransformInput"], request["TransformOutput"]
    check_supported(request)
    payload_mb = request.get("MaxPayloadInMB", PAYLOAD_MB)
    strategy = request.get("BatchStrategy", STRATEGY)
    events = Events(io.StringIO(), as_json=True)
    spec = _spec(sagemaker, request, strategy, payload_mb)
    instance = Instance(name, [spec], runtimes.runtime(options, events), s3, options, events)
    headers = {"Content-Type": source.get("ContentType", "application/octet-stream")}
    if "Accept" in target:
        headers["Accept"] = target["Accept"]
    uri = source["DataSource"]["S3DataSource"]["S3Uri"]
    out, prefix = model_data.parts(target["S3OutputPath"])
    try:
        with running.held(instance.stop):
            instance.start()
            for bucket, key, below in list(objects(s3, uri)):
                body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
                answers = []
                for batch in batches(body, source.get("SplitType", "None"), strategy, payload_mb << 20):
                    reply = instance.invoke(Call(body=batch, headers=headers, limit=LIMIT))
                    assert isinstance(reply.body, bytes)
                    answers.append(reply.body)
                place = "/".join(filter(None, [prefix.rstrip("/"), f"{below}.out"]))
                s3.put_object(Bucket=out, Key=place, Body=assembled(answers, target.get("AssembleWith", "None")))
    except (PlatformError, Unhealthy) as error:
        raise StepFailed(f"{name}: {error}"[:REASON]) from error
    finally:
        instance.stop()
    return {
        "TransformJobName": name,
        "TransformJobArn": f"{ACCOUNT}:transform-job/{name}",
        "TransformJobStatus": "Completed",
    }


def check_supported(request: Mapping[str, Any]) -> None:
    """Raise StepFailed for options of SageMaker that this module does not implement."""
    source = request["TransformInput"]
    split, data = source.get("SplitType", "None"), source["DataSource"]["S3DataSource"]["S3DataType"]
    for key, value, supported in (("SplitType", split, ("None", "Line")), ("S3DataType", data, ("S3Prefix",))):
        if value not in supported:
            raise StepFailed(
                f"{key} {value} is not supported on this machine, only {' and '.join(supported)}: run this step on AWS"
            )
    if request.get("DataProcessing"):
        raise StepFailed("DataProcessing is not supported on this machine: leave it out, or run this step on AWS")


def batches(body: bytes, split: str, strategy: str, most: int) -> Iterator[bytes]:
    """The payloads of a body: all of it, a line each, or as many lines as fit. Raises StepFailed for a longer line."""
    if split == "None":
        yield body
        return
    held: list[bytes] = []
    size = 0
    for line in io.BytesIO(body):  # lines end at \n only: a field may contain \r
        if len(line) > most:
            raise StepFailed(f"a record of {len(line)} bytes is over MaxPayloadInMB, {most >> 20}")
        if held and (strategy == "SingleRecord" or size + len(line) > most):
            yield b"".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield b"".join(held)


def assembled(answers: list[bytes], how: str) -> bytes:
    """The responses of one object. `Line`: a newline follows each, even if it already ends in one."""
    return b"".join(answer + b"\n" for answer in answers) if how == "Line" else b"".join(answers)


def objects(s3: Any, uri: str) -> Iterator[tuple[str, str, str]]:
    """(bucket, key, path below the prefix) of each object. Raises StepFailed if there is none."""
    bucket, prefix = model_data.parts(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [each["Key"] for page in pages for each in page.get("Contents", ()) if not each["Key"].endswith("/")]
    if not keys:
        raise StepFailed(f"no data at {uri}")
    for key in keys:
        yield bucket, key, model_data.inside(key, prefix)


def _spec(sagemaker: Any, request: Mapping[str, Any], strategy: str, payload_mb: int) -> ContainerSpec:
    container = sagemaker.describe_model(ModelName=request["ModelName"])["PrimaryContainer"]
    environment = {
        **container.get("Environment", {}),
        **request.get("Environment", {}),
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_BATCH_STRATEGY": strategy,
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(payload_mb),
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(request.get("MaxConcurrentTransforms", 1)),
    }
    return ContainerSpec(image=container["Image"], environment=environment, model=ModelData(container["ModelDataUrl"]))

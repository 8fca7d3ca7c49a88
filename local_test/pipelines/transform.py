"""Batch transform: a model brought up by itself, and every object below a prefix sent through it.

How lines are sent and answers put together: docs.aws.amazon.com/sagemaker/latest/dg/batch-transform.html
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from local_test.pipelines.execution import Properties, Step, StepFailed
from local_test.pipelines.jobs import ACCOUNT, REASON
from local_test.pipelines.running import Running
from local_test.platform.calls import Call, PlatformError
from local_test.platform.containers import model_data, runtimes
from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.spec import ContainerSpec
from local_test.platform.events import Events
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.instance import Instance
from local_test.platform.options import Options

PAYLOAD_MB, STRATEGY = 6, "MultiRecord"  # where neither the job nor the container says otherwise
LIMIT = 600.0  # seconds an invocation may take, SageMaker's default


def transform(s3: Any, sagemaker: Any, options: Options, running: Running, step: Step) -> Properties:
    """What DescribeTransformJob would say. Raises StepFailed, and leaves no output of an object that failed."""
    name, asked = step.job, step.arguments
    source, target = asked["TransformInput"], asked["TransformOutput"]
    check_played(asked)
    payload_mb = asked.get("MaxPayloadInMB", PAYLOAD_MB)
    strategy = asked.get("BatchStrategy", STRATEGY)
    events = Events(io.StringIO(), as_json=True)
    spec = _spec(sagemaker, asked, strategy, payload_mb)
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


def check_played(asked: Mapping[str, Any]) -> None:
    """Raises StepFailed for what SageMaker would do with such a job, and nobody here."""
    source = asked["TransformInput"]
    split, data = source.get("SplitType", "None"), source["DataSource"]["S3DataSource"]["S3DataType"]
    for what, value, played in (("SplitType", split, ("None", "Line")), ("S3DataType", data, ("S3Prefix",))):
        if value not in played:
            raise StepFailed(f"{what} {value} is not played here, only {' and '.join(played)}: run this step on AWS")
    if asked.get("DataProcessing"):
        raise StepFailed("DataProcessing is not played here: leave it out, or run this step on AWS")


def batches(body: bytes, split: str, strategy: str, most: int) -> Iterator[bytes]:
    """What is sent at once: all, a line, or as many lines as go into a payload. Raises StepFailed for a longer line."""
    if split == "None":
        yield body
        return
    held: list[bytes] = []
    size = 0
    for line in io.BytesIO(body):  # to \n alone: a field may hold a \r
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
    """`Line`: a newline follows each answer, whether or not it ended in one."""
    return b"".join(answer + b"\n" for answer in answers) if how == "Line" else b"".join(answers)


def objects(s3: Any, uri: str) -> Iterator[tuple[str, str, str]]:
    """Bucket, key and path below the prefix of all that is there. Raises StepFailed where there is nothing."""
    bucket, prefix = model_data.parts(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [each["Key"] for page in pages for each in page.get("Contents", ()) if not each["Key"].endswith("/")]
    if not keys:
        raise StepFailed(f"there is no data at {uri}")
    for key in keys:
        yield bucket, key, model_data.inside(key, prefix)


def _spec(sagemaker: Any, asked: Mapping[str, Any], strategy: str, payload_mb: int) -> ContainerSpec:
    container = sagemaker.describe_model(ModelName=asked["ModelName"])["PrimaryContainer"]
    environment = {
        **container.get("Environment", {}),
        **asked.get("Environment", {}),
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_BATCH_STRATEGY": strategy,
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(payload_mb),
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(asked.get("MaxConcurrentTransforms", 1)),
    }
    return ContainerSpec(image=container["Image"], environment=environment, model=ModelData(container["ModelDataUrl"]))

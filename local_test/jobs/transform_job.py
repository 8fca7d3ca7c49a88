"""Batch transform: instances are started for a model, and every object of the input is sent through them.

How lines are batched and responses assembled: docs.aws.amazon.com/sagemaker/latest/dg/batch-transform.html
"""

import bz2
import gzip
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from local_test.jobs import data
from local_test.jobs.data import Item
from local_test.jobs.data_processing import DataProcessing
from local_test.jobs.job import Job, JobFailed, JobStopped, Platform, now
from local_test.platform.calls import Call, ModelError, PlatformError, ValidationError
from local_test.platform.containers import model_data
from local_test.platform.fleet import plans
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.instance import Instance

PAYLOAD_MB, STRATEGY = 6, "MultiRecord"  # SageMaker's defaults
SECONDS, RETRIES = 600, 3  # of an invocation, SageMaker's defaults
SPLITS = ("None", "Line")
LOGS = "/aws/sagemaker/TransformJobs"
LOG_LINES = 1000
UNPACK: Mapping[str, Callable[[bytes], bytes]] = {"None": bytes, "Gzip": gzip.decompress, "Bzip2": bz2.decompress}


class TransformJob(Job):
    KIND, ARN, SHORT, WORD = "TransformJob", "transform-job", "Transform", "transform"

    def __init__(self, request: Mapping[str, Any], platform: Platform) -> None:
        super().__init__(request, platform)
        self._instances: list[Instance] = []

    def validate(self) -> None:
        name = self.request["ModelName"]
        model = self.platform.model(name)
        if model is None:
            raise ValidationError(f'Could not find model "{name}".')
        if any(map(plans.multi_model, plans.containers(model))):
            raise ValidationError("Batch transform does not support a container with Mode MultiModel.")
        source = self.request["TransformInput"]
        data.check_source(source["DataSource"]["S3DataSource"], "TransformInput")
        if (split := source.get("SplitType", "None")) not in SPLITS:
            supported = " and ".join(SPLITS)
            raise ValidationError(f"SplitType {split} is not supported by this emulator, only {supported}.")
        DataProcessing.read(self.request)

    def run(self) -> str:
        source, platform = self.request["TransformInput"], self.platform
        items = data.selected(platform.s3, source["DataSource"]["S3DataSource"])
        self._instances = [self._instance(number) for number in range(self._count)]
        failures: list[str] = []
        try:
            with ThreadPoolExecutor(self._count) as threads:
                list(threads.map(Instance.start, self._instances))
            self.check()
            with self.changed:
                self.began = now()
            with ThreadPoolExecutor(self._count) as threads:
                shares = [items[number :: self._count] for number in range(self._count)]
                for failed in threads.map(self._transform, self._instances, shares):
                    failures += failed
        except (PlatformError, Unhealthy) as error:
            if self.stopping:
                raise JobStopped from error
            raise JobFailed(f"AlgorithmError: {error}") from error
        finally:
            for instance in self._instances:
                self._keep_log(instance)
                instance.stop()
        self.check()
        if failures:
            raise JobFailed(f"AlgorithmError: {len(failures)} of {len(items)} objects failed: {failures[0]}")
        return "Completed"

    def halt(self) -> None:
        super().halt()
        for instance in self._instances:
            instance.stop()

    @property
    def _count(self) -> int:
        return int(self.request["TransformResources"].get("InstanceCount") or 1)

    def _transform(self, instance: Instance, items: Sequence[Item]) -> list[str]:
        """Sends objects through an instance; the failures. An object whose invocation fails has no output."""
        failures = []
        for item in items:
            self.check()
            try:
                self._transform_one(instance, item)
            except PlatformError as error:
                failures.append(f"s3://{item.bucket}/{item.key}: {error}")
        return failures

    def _transform_one(self, instance: Instance, item: Item) -> None:
        s3, source, target = self.platform.s3, self.request["TransformInput"], self.request["TransformOutput"]
        packed = s3.get_object(Bucket=item.bucket, Key=item.key)["Body"].read()
        body = UNPACK[source.get("CompressionType", "None")](packed)
        strategy, most = self.request.get("BatchStrategy", STRATEGY), self._payload_mb << 20
        split, processing = source.get("SplitType", "None"), DataProcessing.read(self.request)
        given = list(batches(body, split, "SingleRecord", most)) if processing else []
        if processing:
            body = b"".join(map(processing.selected, given))
        records = list(batches(body, split, strategy, most))
        with ThreadPoolExecutor(self.request.get("MaxConcurrentTransforms") or 1) as threads:
            answers = list(threads.map(lambda record: self._answer(instance, record), records))
        if processing and (processing.join or processing.after):
            made = [line for answer in answers for line in (answer.splitlines() if split == "Line" else [answer])]
            answers = processing.finished(given, made)
        out, prefix = model_data.parts(target["S3OutputPath"])
        key = "/".join(filter(None, [prefix.rstrip("/"), f"{item.path}.out"]))
        s3.put_object(Bucket=out, Key=key, Body=assembled(answers, target.get("AssembleWith", "None")))

    def _answer(self, instance: Instance, record: bytes) -> bytes:
        """The response to one request; server errors are retried as often as ModelClientConfig says."""
        config, target = self.request.get("ModelClientConfig") or {}, self.request["TransformOutput"]
        # Without a ContentType there is no header: XGBoost then finds the format itself, as in AWS's samples.
        given = {"Content-Type": self.request["TransformInput"].get("ContentType"), "Accept": target.get("Accept")}
        headers = {name: value for name, value in given.items() if value}
        limit = float(config.get("InvocationsTimeoutInSeconds") or SECONDS)
        retries = int(config.get("InvocationsMaxRetries", RETRIES))
        for left in reversed(range(retries + 1)):
            self.check()
            try:
                reply = instance.invoke(Call(body=record, headers=headers, limit=limit))
            except ModelError as error:
                if not left or 400 <= error.original_status < 500:
                    raise
            else:
                assert isinstance(reply.body, bytes)
                return reply.body
        raise AssertionError  # the last turn has returned or raised

    @property
    def _payload_mb(self) -> int:
        given = self.request.get("MaxPayloadInMB")
        return PAYLOAD_MB if given is None else int(given) or 100  # 0: no limit; SageMaker's largest object is 100 MB

    def _instance(self, number: int) -> Instance:
        platform = self.platform
        model = platform.model(self.request["ModelName"]) or {}
        environment = {
            **(self.request.get("Environment") or {}),
            "SAGEMAKER_BATCH": "true",
            "SAGEMAKER_BATCH_STRATEGY": self.request.get("BatchStrategy", STRATEGY),
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(self._payload_mb),
            "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(self.request.get("MaxConcurrentTransforms", 1)),
        }
        plan = plans.plan({"VariantName": "AllTraffic", "ModelName": self.request["ModelName"]}, model)
        role = {} if plan.isolated else platform.environment(plan.role)
        specs = [replace(each, environment={**role, **each.environment, **environment}) for each in plan.specs]
        name = f"transform-{self.name}-{number + 1}"
        return Instance(
            name,
            specs,
            platform.runtime,
            platform.s3,
            replace(platform.options, payload_bytes=max(platform.options.payload_bytes, self._payload_mb << 20)),
            platform.events,
            log_stream=f"arn:aws:logs:{platform.region}:{platform.account}:log-group:{LOGS}",
        )

    def _keep_log(self, instance: Instance) -> None:
        for container in instance.containers:
            if container.running is None:
                continue
            lines = container.running.log_tail(LOG_LINES).splitlines()
            if lines:
                self.platform.watch.log(LOGS, f"{self.name}/{instance.name}", lines)


def batches(body: bytes, split: str, strategy: str, most: int) -> Iterator[bytes]:
    """The payloads of a body: all of it, a line each, or as many lines as fit.

    Raises ValidationError for a longer line.
    """
    if split == "None":
        yield body
        return
    held: list[bytes] = []
    size = 0
    for line in io.BytesIO(body):  # lines end at \n only: a field may contain \r
        if len(line) > most:
            raise ValidationError(f"a record of {len(line)} bytes is over MaxPayloadInMB, {most >> 20}")
        if held and (strategy == "SingleRecord" or size + len(line) > most):
            yield b"".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield b"".join(held)


def assembled(answers: Sequence[bytes], how: str) -> bytes:
    """The responses of one object. `Line`: a newline follows each, even if it already ends in one."""
    return b"".join(answer + b"\n" for answer in answers) if how == "Line" else b"".join(answers)

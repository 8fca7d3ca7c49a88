"""A pipeline run on this machine: installed on an emulator as in AWS, started, and followed through the API."""

import argparse
import hashlib
import io
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import CALLS, Aws, session
from deploy.errors import Failed, SpecError
from deploy.pipelines import command, executions, installation, sources, validation
from deploy.pipelines.definitions import PIPELINES
from deploy.pipelines.installation import Home
from deploy.pipelines.sources import Source
from deploy.progress import Progress
from deploy.spec import image_parts
from local_test.pipelines import function
from local_test.platform.containers.images import repository
from local_test.platform.containers.runtimes import engine_answers
from local_test.platform.emulator import Emulator
from local_test.platform.events import Events
from local_test.platform.options import Options
from local_test.recipes import abalone
from local_test.recipes.packages import ABALONE, CannotMake, fetch

CACHE = Path(__file__).parents[1] / ".cache"
BUCKET = "pipelines"
IMAGE = "sagemaker-serve"  # of `make image`
STOPS = 30.0  # seconds that a stopped execution has to stop its jobs
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class LocalAws(Aws):
    """Clients of an emulator; `environment` directs any other AWS client to it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(environment["AWS_DEFAULT_REGION"])
        self.environment = environment
        self._session = session(
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_DEFAULT_REGION"],
        )

    def client(self, name: str) -> Any:
        if name not in self._clients:
            url = self.environment["AWS_ENDPOINT_URL"]
            self._clients[name] = self._session.client(name, endpoint_url=url, config=CALLS)
        return self._clients[name]


@contextmanager
def emulated(runtime: str, image: str = IMAGE) -> Iterator[LocalAws]:
    """The emulator that AWS_ENDPOINT_URL names; without it a new one, which ends with the block."""
    if url := os.environ.get("AWS_ENDPOINT_URL"):
        given = {name: os.environ.get(name, value) for name, value in CREDENTIALS.items()}
        yield LocalAws({"AWS_ENDPOINT_URL": url, **given})
        return
    with tempfile.TemporaryDirectory(prefix="pipeline-", ignore_cleanup_errors=True) as work:
        options = Options(
            work=Path(work),
            runtime=runtime,
            ping_every=0.5,
            stop_limit=10.0,
            job_stop_limit=STOPS,
            images=tuple({IMAGE, repository(image)}),
        )
        with Emulator(options, Events(io.StringIO(), as_json=True)) as emulator:
            yield LocalAws(emulator.environment)


def run(given: argparse.Namespace) -> int:
    """Run one pipeline and print its progress and results. Raises SpecError and Failed."""
    progress, image = Progress(), given.image or IMAGE
    parameters = command.checked(given)
    if given.name in PIPELINES:  # an invalid parameter is an error before anything starts
        validation.check(PIPELINES[given.name](command.NOWHERE), parameters)
    runtime = runtime_for(given.runtime or "auto", image)
    with emulated(runtime, image) as aws:
        os.environ.update(aws.environment)  # a module's own AWS clients, and the SageMaker SDK, use the emulator too
        source = sources.named(given.name)
        name = source.name
        progress.say(how(runtime))
        began = time.monotonic()
        execution = started(aws, source, parameters, data=given.data, image=with_host(image))
        try:
            command.follow(aws, execution, progress, name, given.picture, often=True)
        except Failed as failed:
            raise Failed(f"{name} failed after {time.monotonic() - began:.0f} s\n  {failed}") from failed
        except BaseException:
            stop(aws, execution, progress)
            raise
        progress.say(f"{name} succeeded in {time.monotonic() - began:.0f} s")
        for line in results(aws, execution):
            progress.say(line)
    return 0


def started(
    aws: LocalAws, source: Source, parameters: Mapping[str, str], *, data: Path | None = None, image: str = IMAGE
) -> str:
    """The ARN of a new execution; the pipeline and its data are on the emulator then."""
    quiet = Progress(io.StringIO())
    ensure_bucket(aws)
    made = installation.upsert(aws, source, Home(bucket=BUCKET), quiet)
    wanted = {
        each["Name"]
        for each in made.get("Parameters") or ()
        if "DefaultValue" not in each and each["Name"] not in parameters
    }
    filled = {"Image": image} if "Image" in wanted else {}
    for parameter in wanted & {"InputData", "TrainData"}:
        filled[parameter] = uploaded(aws, rows(data))
    return executions.start(aws, source.name, {**filled, **parameters}, quiet, again=True)


def stop(aws: LocalAws, execution: str, progress: Progress) -> None:
    """Stop an execution, and wait until its jobs have ended. A function that runs is not waited for."""
    sagemaker, until = aws.client("sagemaker"), time.monotonic() + STOPS
    before = executions.states(executions.defined_for(aws, execution), executions.steps(aws, execution))
    try:
        sagemaker.stop_pipeline_execution(PipelineExecutionArn=execution)
    except ClientError:
        return  # it has ended in the meantime
    while time.monotonic() < until:
        now = executions.states(executions.defined_for(aws, execution), executions.steps(aws, execution))
        for line in executions.changes(before, now):
            progress.say(line)
        before = now
        if not any(each.status in ("Executing", "Stopping") and each.kind != "Lambda" for each in now.values()):
            return
        time.sleep(executions.OFTEN / 5)


def with_host(image: str) -> str:
    """The image's name with a registry's host: deploy looks names without a host up in ECR."""
    return image if image_parts(image)[0] else f"localhost/{image}"


def runtime_for(choice: str, image: str) -> str:
    """`docker` or `process`. `auto`: Docker if an engine answers and has the image, which then gets a host's name."""
    if choice == "process" or not engine_answers():
        if choice == "docker":
            raise Failed("--runtime docker: no Docker engine answers; leave the option out")
        return "process"
    if subprocess.run(["docker", "tag", image, with_host(image)], capture_output=True).returncode == 0:
        return "docker"
    if choice == "docker":
        raise Failed(f"--runtime docker: image {image} not found: `make image`, or give another one with --image")
    return "process"


def how(runtime: str) -> str:
    """The replacements of SageMaker's jobs and of Lambda."""
    jobs = "Docker" if runtime == "docker" else "`python -m serve` in place of the image"
    lambdas = "AWS's emulator" if function.is_emulated() else "a process (AWS's emulator: `make lambda`)"
    return f"jobs: {jobs}; functions: {lambdas}"


def results(aws: LocalAws, execution: str) -> Iterator[str]:
    """A line for each result: the best training, the registered package, the scores."""
    sagemaker = aws.client("sagemaker")
    for name, step in executions.steps(aws, execution).items():
        found = step.get("Metadata", {})
        if "TuningJob" in found:
            job = found["TuningJob"]["Arn"].rpartition("/")[2]
            tuned = sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=job)
            best = tuned["BestTrainingJob"]
            value = best["FinalHyperParameterTuningJobObjectiveMetric"]
            chosen = ", ".join(f"{key} {number}" for key, number in best["TunedHyperParameters"].items())
            yield f"{name}: best has {value['MetricName']} {value['Value']:g}, with {chosen}"
        if "RegisterModel" in found:
            arn = found["RegisterModel"]["Arn"]
            status = sagemaker.describe_model_package(ModelPackageName=arn)["ModelApprovalStatus"]
            yield f"{name}: {arn.rpartition(':')[2]} is {status}"
        if "TransformJob" in found:
            job = found["TransformJob"]["Arn"].rpartition("/")[2]
            scores = sagemaker.describe_transform_job(TransformJobName=job)["TransformOutput"]
            yield f"{name}: {scores['S3OutputPath']}"


def ensure_bucket(aws: LocalAws) -> None:
    try:
        aws.client("s3").create_bucket(Bucket=BUCKET)
    except ClientError as error:
        if "BucketAlready" not in str(error):
            raise


def uploaded(aws: LocalAws, data: str) -> str:
    """The S3 prefix with the rows; concurrent runs may have different data."""
    where = f"data/{hashlib.sha256(data.encode()).hexdigest()[:8]}"
    aws.client("s3").put_object(Bucket=BUCKET, Key=f"{where}/rows.csv", Body=data.encode())
    return f"s3://{BUCKET}/{where}"


def rows(path: Path | None) -> str:
    """CSV, the label first."""
    if path is not None:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"--data {path}: {error}") from error
    try:
        features, rings = abalone.read_rows(fetch(ABALONE, CACHE))
    except CannotMake as why:
        raise Failed(f"{why}\n  or give your own data: --data FILE") from why
    return "".join(
        ",".join(f"{value:g}" for value in [label, *row]) + "\n" for label, row in zip(rings, features, strict=True)
    )

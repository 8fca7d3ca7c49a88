"""A pipeline executed on this machine, from data to invoked models: on a platform of its own, or on one that runs."""

import argparse
import io
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from deploy import pipelines
from deploy.aws import CALLS, Aws, Failed
from deploy.pipeline import tried
from deploy.pipelines import Given, definition, executions, function, installation, picture, split, tuned_model
from deploy.pipelines.parameters import values_of
from deploy.pipelines.picture import Shown
from deploy.progress import Progress
from deploy.table import SpecError
from local_test.pipelines import function as functions
from local_test.pipelines.execution import Execution, Properties, Step
from local_test.pipelines.jobs import Jobs
from local_test.pipelines.machine import machine
from local_test.pipelines.transform import transform
from local_test.pipelines.tuning import tune
from local_test.platform.containers import engine_answers
from local_test.platform.events import Events
from local_test.platform.options import Options
from local_test.platform.platform import Platform
from local_test.recipes import abalone
from local_test.recipes.packages import ABALONE, fetch

CACHE = Path(__file__).parents[1] / ".cache"
ROWS = Path(__file__).parents[1] / "payloads" / "abalone.csv"
BUCKET = "pipelines"
IMAGE = "localhost/serve"  # a host in the name, so that nobody looks for it in ECR
ROLE = "arn:aws:iam::123456789012:role/pipelines"
FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:local"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Here(Aws):
    """The platform where a pipeline is executed; `environment` is what makes any AWS client talk to it."""

    def __init__(self, environment: Mapping[str, str], options: Options) -> None:
        super().__init__(environment["AWS_DEFAULT_REGION"])
        self.environment = environment
        self.options = options
        self._session = boto3.session.Session(
            environment["AWS_ACCESS_KEY_ID"],
            environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_DEFAULT_REGION"],
        )

    def client(self, service: str) -> Any:
        if service not in self._clients:
            url = self.environment["AWS_ENDPOINT_URL"]
            self._clients[service] = self._session.client(service, endpoint_url=url, config=CALLS)
        return self._clients[service]


def run(name: str, parameters: Mapping[str, str], given: argparse.Namespace) -> int:
    """The command. Raises SpecError and Failed."""
    progress = Progress()
    runtime = _runtime(given.runtime, given.image)
    data = _data(given.data)
    with platform(runtime) as here:
        progress.say(how(runtime))
        width = max(len(step["Name"]) for step in definition_of(name)["Steps"])
        began = time.monotonic()
        done = execution(
            here,
            name,
            {**prepared(here, name, data), **parameters},
            lambda step, shown: progress.say(executions.line(step, shown, width)),
        )
        took = time.monotonic() - began
        if given.svg:
            given.svg.write_text(picture.svg(name, definition.order(done.definition), done.steps), encoding="utf-8")
            progress.say(f"picture: {given.svg}")
        if not done.succeeded:
            raise Failed(f"{name} failed after {took:.0f} s")
        progress.say(f"{name} succeeded in {took:.0f} s")
        for line in results(done):
            progress.say(line)
        for properties in done.properties.values():
            outputs = properties.get("OutputParameters", {})
            if "endpoint_name" in outputs:
                tried(here, outputs["endpoint_name"], outputs["body"], ROWS.read_bytes(), progress)
    return 0


@contextmanager
def platform(runtime: str) -> Iterator[Here]:
    """The platform that AWS_ENDPOINT_URL names; where it names none, one that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="pipeline-") as work:
        options = Options(work=Path(work), runtime=runtime, ping_every=0.5)
        if url := os.environ.get("AWS_ENDPOINT_URL"):
            theirs = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
            yield Here({"AWS_ENDPOINT_URL": url, **theirs}, options)
            return
        with Platform(options, Events(io.StringIO(), as_json=True)) as played:
            yield Here(played.environment, options)


def prepared(here: Here, name: str, data: str) -> dict[str, str]:
    """Parameters for a run here: the bucket is made, CSV's text put there, and the processing script."""
    s3 = here.client("s3")
    try:
        s3.create_bucket(Bucket=BUCKET)
    except ClientError as error:
        if "BucketAlready" not in str(error):
            raise
    s3.upload_file(split.__file__, BUCKET, f"scripts/{tuned_model.SCRIPT}")
    s3.put_object(Bucket=BUCKET, Key="data/rows.csv", Body=data.encode())
    where = "TrainData" if name == "two-models" else "InputData"
    return {"Image": IMAGE, where: f"s3://{BUCKET}/data"}


def definition_of(name: str) -> pipelines.Definition:
    home = f"s3://{BUCKET}"
    return pipelines.defined(
        name, Given(role=ROLE, function=FUNCTION, home=f"{home}/{name}", scripts=f"{home}/scripts")
    )


def execution(here: Here, name: str, given: Mapping[str, Any], told: Callable[[str, Shown], None]) -> Execution:
    """Executed, whatever came of it. Raises SpecError where it could not begin."""
    s3, sagemaker = here.client("s3"), here.client("sagemaker")
    jobs = Jobs(s3, machine(here.options.runtime, here.options.memory_mb), here.options.work / "jobs")
    made = definition_of(name)
    installation.ensure_group(here, made, values_of(made, given), Progress(io.StringIO()))
    done = Execution(made, given, name, told)
    done.run(
        {
            "Training": jobs.train,
            "Processing": jobs.process,
            "Tuning": partial(tune, jobs),
            "Transform": partial(transform, s3, sagemaker, here.options),
            "Model": partial(_model, sagemaker),
            "RegisterModel": partial(_package, sagemaker),
            "Lambda": partial(_function, here),
        }
    )
    return done


def results(done: Execution) -> Iterator[str]:
    """What somebody would look for."""
    for name, said in done.properties.items():
        if best := said.get("BestTrainingJob"):
            value, jobs = best["FinalHyperParameterTuningJobObjectiveMetric"], len(said["TrainingJobSummaries"])
            tuned = ", ".join(f"{key} {number}" for key, number in best["TunedHyperParameters"].items())
            yield f"{name}: best of {jobs} has {value['MetricName']} {value['Value']:g}, with {tuned}"
        if arn := said.get("ModelPackageArn"):
            yield f"{name}: {arn.rpartition(':')[2]} is {said['ModelApprovalStatus']}"
        if scores := said.get("TransformOutput"):
            yield f"{name}: {scores['S3OutputPath']}"


def how(runtime: str) -> str:
    """By what in SageMaker's place."""
    jobs = "Docker" if runtime == "docker" else "`python -m serve` in place of any image"
    lambdas = "AWS's emulator" if functions.is_emulated() else "a process (AWS's emulator: `make lambda`)"
    return f"jobs: {jobs}; function: {lambdas}; tuning: draws at random, searches nothing"


def _model(sagemaker: Any, step: Step) -> Properties:
    sagemaker.create_model(ModelName=step.job, **step.arguments)
    return {"ModelName": step.job}


def _package(sagemaker: Any, step: Step) -> Properties:
    made = sagemaker.create_model_package(**step.arguments)
    return dict(sagemaker.describe_model_package(ModelPackageName=made["ModelPackageArn"]))


def _function(here: Here, step: Step) -> Properties:
    code = functions.Function(
        code=function.zipped(),
        handler=function.HANDLER,
        environment=here.environment,
        seconds=function.SECONDS,
        work=here.options.work,
    )
    said = code.call(step.arguments)
    return {
        "OutputParameters": {
            each["OutputName"]: said[each["OutputName"]] for each in step.definition["OutputParameters"]
        }
    }


def _runtime(asked: str, image: str) -> str:
    """`auto` is Docker where an engine answers and has the image; that gets a name nobody looks for elsewhere."""
    if asked == "process" or not engine_answers():
        if asked == "docker":
            raise Failed("no Docker engine answers: leave out --runtime docker")
        return "process"
    if subprocess.run(["docker", "tag", image, IMAGE], capture_output=True).returncode == 0:
        return "docker"
    if asked == "docker":
        raise Failed(f"Docker has no image {image}: `make image`, or name another with --image")
    return "process"


def _data(path: Path | None) -> str:
    """CSV, the label first."""
    if path is not None:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"--data {path}: {error}") from error
    features, rings = abalone.read_rows(fetch(ABALONE, CACHE))
    return "".join(
        ",".join(f"{value:g}" for value in [label, *row]) + "\n" for label, row in zip(rings, features, strict=True)
    )

"""A pipeline of deploy run on this machine, from the data to the calls of the models."""

import argparse
import hashlib
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

from botocore.exceptions import ClientError

from deploy.aws import CALLS, Aws, session
from deploy.errors import Failed, SpecError
from deploy.pipelines import command, definitions, executions, installation, split, validation
from deploy.pipelines.definitions import Given
from deploy.pipelines.executions import StepState
from deploy.pipelines.validation import values_of
from deploy.progress import Progress
from deploy.spec import image_parts
from local_test.pipelines import function
from local_test.pipelines.execution import Execution, Properties, Running, Step
from local_test.pipelines.jobs import Jobs, machine
from local_test.pipelines.transform import transform
from local_test.pipelines.tuning import tune
from local_test.platform.containers.runtimes import engine_answers
from local_test.platform.emulator import Emulator
from local_test.platform.events import Events
from local_test.platform.options import Options
from local_test.recipes import abalone
from local_test.recipes.packages import ABALONE, CannotMake, fetch

CACHE = Path(__file__).parents[1] / ".cache"
BUCKET = "pipelines"
IMAGE = "localhost/sagemaker-serve"
ROLE = "arn:aws:iam::123456789012:role/pipelines"
FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:local"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class LocalAws(Aws):
    """Clients of an emulator; `environment` directs any other AWS client to it."""

    def __init__(self, environment: Mapping[str, str], options: Options) -> None:
        super().__init__(environment["AWS_DEFAULT_REGION"])
        self.environment = environment
        self.options = options
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
def emulated(runtime: str) -> Iterator[LocalAws]:
    """The emulator that AWS_ENDPOINT_URL names; without it a new one, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="pipeline-", ignore_cleanup_errors=True) as work:
        options = Options(work=Path(work), runtime=runtime, ping_every=0.5, stop_limit=10.0)
        if url := os.environ.get("AWS_ENDPOINT_URL"):
            given = {name: os.environ.get(name, value) for name, value in CREDENTIALS.items()}
            yield LocalAws({"AWS_ENDPOINT_URL": url, **given}, options)
            return
        with Emulator(options, Events(io.StringIO(), as_json=True)) as emulator:
            yield LocalAws(emulator.environment, options)


def run(given: argparse.Namespace) -> int:
    """Run one pipeline and print its progress and results. Raises SpecError and Failed."""
    name, progress = given.name, Progress()
    parameters = command.checked(given)
    validation.check(definition_of(name), parameters)
    runtime = runtime_for(given.runtime, given.image)
    data = _data(given.data)
    with emulated(runtime) as aws:
        progress.say(how(runtime))
        width = max(len(step["Name"]) for step in definition_of(name)["Steps"])
        began = time.monotonic()
        done = execution(
            aws,
            name,
            {**prepared(aws, name, data, with_host(given.image)), **parameters},
            lambda step, state: progress.say(executions.line(step, state, width)),
        )
        took = time.monotonic() - began
        if given.picture:
            executions.write(given.picture, name, validation.order(done.definition), done.steps)
            progress.say(f"picture: {given.picture}")
        if not done.succeeded:
            raise Failed(f"{name} failed after {took:.0f} s")
        progress.say(f"{name} succeeded in {took:.0f} s")
        for line in results(done):
            progress.say(line)
    return 0


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
    """The replacements of SageMaker, Lambda and its tuning."""
    jobs = "Docker" if runtime == "docker" else "`python -m serve` in place of any image"
    lambdas = "AWS's emulator" if function.is_emulated() else "a process (AWS's emulator: `make lambda`)"
    return f"jobs: {jobs}; function: {lambdas}; tuning: random draws instead of a search"


def prepared(aws: LocalAws, name: str, data: str, image: str = IMAGE) -> dict[str, str]:
    """The parameters of a local run; bucket, CSV and processing script are in S3 then."""
    s3 = aws.client("s3")
    try:
        s3.create_bucket(Bucket=BUCKET)
    except ClientError as error:
        if "BucketAlready" not in str(error):
            raise
    s3.upload_file(split.__file__, BUCKET, f"scripts/{definitions.SCRIPT}")
    where = f"data/{hashlib.sha256(data.encode()).hexdigest()[:8]}"  # concurrent runs may have different data
    s3.put_object(Bucket=BUCKET, Key=f"{where}/rows.csv", Body=data.encode())
    parameter = "TrainData" if name == "two-models" else "InputData"
    return {"Image": image, parameter: f"s3://{BUCKET}/{where}"}


def definition_of(name: str) -> definitions.Definition:
    home = f"s3://{BUCKET}"
    return definitions.defined(
        name, Given(role=ROLE, function=FUNCTION, home=f"{home}/{name}", scripts=f"{home}/scripts")
    )


def execution(
    aws: LocalAws, name: str, given: Mapping[str, Any], on_change: Callable[[str, StepState], None]
) -> Execution:
    """An execution that has ended, in success or failure. Raises SpecError before it starts."""
    s3, sagemaker, running = aws.client("s3"), aws.client("sagemaker"), Running()
    jobs = Jobs(s3, machine(aws.options.runtime, aws.options.memory_mb, running), aws.options.work / "jobs")
    made = definition_of(name)
    installation.ensure_group(aws, made, values_of(made, given), Progress(io.StringIO()))
    done = Execution(made, given, name, on_change)
    done.run(
        {
            "Training": jobs.train,
            "Processing": jobs.process,
            "Tuning": partial(tune, jobs),
            "Transform": partial(transform, s3, sagemaker, aws.options, running),
            "Model": partial(_model, sagemaker),
            "RegisterModel": partial(_package, sagemaker),
            "Lambda": partial(_function, aws, running),
        },
        running.stop,
    )
    return done


def results(done: Execution) -> Iterator[str]:
    """A line for each result: the best training, the registered package, the scores, the function's outputs."""
    for name, found in done.properties.items():
        if best := found.get("BestTrainingJob"):
            value, jobs = best["FinalHyperParameterTuningJobObjectiveMetric"], len(found["TrainingJobSummaries"])
            tuned = ", ".join(f"{key} {number}" for key, number in best["TunedHyperParameters"].items())
            yield f"{name}: best of {jobs} has {value['MetricName']} {value['Value']:g}, with {tuned}"
        if arn := found.get("ModelPackageArn"):
            yield f"{name}: {arn.rpartition(':')[2]} is {found['ModelApprovalStatus']}"
        if scores := found.get("TransformOutput"):
            yield f"{name}: {scores['S3OutputPath']}"
        yield from executions.outputs(name, found.get("OutputParameters", {}))


def _model(sagemaker: Any, step: Step) -> Properties:
    sagemaker.create_model(ModelName=step.job, **step.arguments)
    return {"ModelName": step.job}


def _package(sagemaker: Any, step: Step) -> Properties:
    made = sagemaker.create_model_package(**step.arguments)
    return dict(sagemaker.describe_model_package(ModelPackageName=made["ModelPackageArn"]))


def _function(aws: LocalAws, running: Running, step: Step) -> Properties:
    code = function.Function(
        code=installation.zipped(),
        handler=installation.HANDLER,
        environment=aws.environment,
        seconds=installation.SECONDS,
        work=aws.options.work,
        running=running,
    )
    returned = code.call(step.arguments)
    return {
        "OutputParameters": {
            each["OutputName"]: returned[each["OutputName"]] for each in step.definition["OutputParameters"]
        }
    }


def _data(path: Path | None) -> str:
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

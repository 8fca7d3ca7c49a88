"""A pipeline executed on this machine, from data to models that were called."""

import argparse
import hashlib
import io
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from botocore.exceptions import ClientError

from deploy import pipelines
from deploy.aws import Failed
from deploy.pipelines import Given, definition, executions, function, installation, picture, split, tuned_model
from deploy.pipelines.parameters import values_of
from deploy.pipelines.picture import Shown
from deploy.progress import Progress
from deploy.table import SpecError
from local_test.pipelines import function as functions
from local_test.pipelines.execution import Execution, Properties, Step
from local_test.pipelines.here import Here, how, platform, runtime_for, with_host
from local_test.pipelines.jobs import Jobs
from local_test.pipelines.machine import machine
from local_test.pipelines.running import Running
from local_test.pipelines.transform import transform
from local_test.pipelines.tuning import tune
from local_test.recipes import abalone
from local_test.recipes.packages import ABALONE, CannotMake, fetch

CACHE = Path(__file__).parents[1] / ".cache"
BUCKET = "pipelines"
IMAGE = "localhost/sagemaker-serve"
ROLE = "arn:aws:iam::123456789012:role/pipelines"
FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:local"
ENDS = (signal.SIGTERM, signal.SIGHUP)


def run(name: str, parameters: Mapping[str, str], given: argparse.Namespace) -> int:
    """The command. Raises SpecError and Failed."""
    progress = Progress()
    try:
        with _ended_as_by_ctrl_c():
            _run(name, parameters, given, progress)
    except KeyboardInterrupt:
        raise Failed(f"{name} was stopped, and its jobs with it") from None
    return 0


def _run(name: str, parameters: Mapping[str, str], given: argparse.Namespace, progress: Progress) -> None:
    runtime = runtime_for(given.runtime, given.image)
    data = _data(given.data)
    with platform(runtime) as here:
        progress.say(how(runtime))
        width = max(len(step["Name"]) for step in definition_of(name)["Steps"])
        began = time.monotonic()
        done = execution(
            here,
            name,
            {**prepared(here, name, data, with_host(given.image)), **parameters},
            lambda step, shown: progress.say(executions.line(step, shown, width)),
        )
        took = time.monotonic() - began
        if given.svg:
            picture.write(given.svg, name, definition.order(done.definition), done.steps)
            progress.say(f"picture: {given.svg}")
        if not done.succeeded:
            raise Failed(f"{name} failed after {took:.0f} s")
        progress.say(f"{name} succeeded in {took:.0f} s")
        for line in results(done):
            progress.say(line)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Whoever ends us otherwise, or closes the terminal, leaves no job running either."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepared(here: Here, name: str, data: str, image: str = IMAGE) -> dict[str, str]:
    """Parameters for a run here: the bucket is made, CSV's text put there, and the processing script."""
    s3 = here.client("s3")
    try:
        s3.create_bucket(Bucket=BUCKET)
    except ClientError as error:
        if "BucketAlready" not in str(error):
            raise
    s3.upload_file(split.__file__, BUCKET, f"scripts/{tuned_model.SCRIPT}")
    where = f"data/{hashlib.sha256(data.encode()).hexdigest()[:8]}"  # two runs at once may have two sets of data
    s3.put_object(Bucket=BUCKET, Key=f"{where}/rows.csv", Body=data.encode())
    parameter = "TrainData" if name == "two-models" else "InputData"
    return {"Image": image, parameter: f"s3://{BUCKET}/{where}"}


def definition_of(name: str) -> pipelines.Definition:
    home = f"s3://{BUCKET}"
    return pipelines.defined(
        name, Given(role=ROLE, function=FUNCTION, home=f"{home}/{name}", scripts=f"{home}/scripts")
    )


def execution(here: Here, name: str, given: Mapping[str, Any], told: Callable[[str, Shown], None]) -> Execution:
    """Executed, whatever came of it. Raises SpecError where it could not begin."""
    s3, sagemaker, running = here.client("s3"), here.client("sagemaker"), Running()
    jobs = Jobs(s3, machine(here.options.runtime, here.options.memory_mb, running), here.options.work / "jobs")
    made = definition_of(name)
    installation.ensure_group(here, made, values_of(made, given), Progress(io.StringIO()))
    done = Execution(made, given, name, told)
    done.run(
        {
            "Training": jobs.train,
            "Processing": jobs.process,
            "Tuning": partial(tune, jobs),
            "Transform": partial(transform, s3, sagemaker, here.options, running),
            "Model": partial(_model, sagemaker),
            "RegisterModel": partial(_package, sagemaker),
            "Lambda": partial(_function, here, running),
        },
        running.stop,
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
        yield from executions.outputs(name, said.get("OutputParameters", {}))


def _model(sagemaker: Any, step: Step) -> Properties:
    sagemaker.create_model(ModelName=step.job, **step.arguments)
    return {"ModelName": step.job}


def _package(sagemaker: Any, step: Step) -> Properties:
    made = sagemaker.create_model_package(**step.arguments)
    return dict(sagemaker.describe_model_package(ModelPackageName=made["ModelPackageArn"]))


def _function(here: Here, running: Running, step: Step) -> Properties:
    code = functions.Function(
        code=function.zipped(),
        handler=function.HANDLER,
        environment=here.environment,
        seconds=function.SECONDS,
        work=here.options.work,
        running=running,
    )
    said = code.call(step.arguments)
    return {
        "OutputParameters": {
            each["OutputName"]: said[each["OutputName"]] for each in step.definition["OutputParameters"]
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
        raise Failed(f"{why}\n  or give data of your own: --data FILE") from why
    return "".join(
        ",".join(f"{value:g}" for value in [label, *row]) + "\n" for label, row in zip(rings, features, strict=True)
    )

"""Training and processing jobs as in SageMaker: /opt/ml filled from S3, the container run, its files uploaded to S3.

A container runs in Docker, or `python -m serve` runs as a process in its place.
"""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from local_test.pipelines.execution import Properties, Running, Step, StepFailed
from local_test.platform.calls import PlatformError
from local_test.platform.containers import model_data
from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.process import ROOT
from local_test.platform.containers.runtimes import engine_answers

OPT_ML = "/opt/ml"
LABEL = "local-pipeline"  # on every container, so that containers of a killed run can be found
STOP = 30.0  # seconds between SIGTERM and SIGKILL; SageMaker gives a training 120
REASON = 1024  # characters of a FailureReason
ACCOUNT = "arn:aws:sagemaker:us-east-1:123456789012"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    image: str
    files: Path  # mounted as /opt/ml
    command: Sequence[str]  # for the entrypoint
    entrypoint: Sequence[str] = ()  # replaces the image's
    environment: Mapping[str, str]
    limit: float  # seconds


class Machine(Protocol):
    def run(self, job: Job, log: Path) -> int | None:
        """The exit code; None if the job was stopped at its limit. Output is appended to the log."""
        ...


def machine(runtime: str, memory_mb: int, running: Running) -> Machine:
    """`docker`, `process`, or `auto`: Docker if an engine answers."""
    if runtime == "docker" or (runtime == "auto" and engine_answers()):
        return Docker(memory_mb, running)
    return Process(running)


@dataclass(frozen=True, slots=True)
class Docker:
    memory_mb: int
    running: Running

    def run(self, job: Job, log: Path) -> int | None:
        for each in (job.files, *job.files.rglob("*")):
            each.chmod(0o777 if each.is_dir() else 0o644)  # the container may run as any user
        name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
        command = [
            *("docker", "run", "--rm", "--name", name, "--label", LABEL),
            # A user other than root could not remove files that the container's root leaves.
            *(("--user", f"{os.getuid()}:{os.getgid()}") if os.getuid() else ()),
            *("--memory", f"{self.memory_mb}m", "--memory-swap", f"{self.memory_mb}m"),
            *("--volume", f"{job.files.absolute()}:{OPT_ML}"),
            *(part for key, value in job.environment.items() for part in ("--env", f"{key}={value}")),
            *(("--entrypoint", job.entrypoint[0]) if job.entrypoint else ()),
            *(job.image, *job.entrypoint[1:], *job.command),
        ]
        with log.open("ab") as file:
            client = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

        def end(number: signal.Signals) -> bool:
            killed = subprocess.run(["docker", "kill", "--signal", number.name, name], capture_output=True)
            return killed.returncode == 0

        def kill() -> None:
            while client.poll() is None and not end(signal.SIGKILL):
                time.sleep(0.1)  # the engine has not created the container yet

        with self.running.held(kill):
            return _ended(client, job.limit, lambda: end(signal.SIGTERM), kill)


@dataclass(frozen=True, slots=True)
class Process:
    """Replaces any image: `train` is `python -m serve train`; an entrypoint runs with the paths of this machine."""

    running: Running

    def run(self, job: Job, log: Path) -> int | None:
        root = str(job.files.absolute())
        if job.entrypoint:
            words = [*job.entrypoint, *job.command]
            command = [sys.executable if word == "python3" else word.replace(OPT_ML, root) for word in words]
        else:
            command = [sys.executable, "-m", "serve", *job.command]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SERVE_", "SAGEMAKER_", "SM_"))}
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**clean, **job.environment, "SERVE_ML_ROOT": root},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

        def kill() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the entrypoint's own children

        with self.running.held(kill):
            return _ended(process, job.limit, process.terminate, kill)


def _ended(
    process: "subprocess.Popen[bytes]", limit: float, stop: Callable[[], object], kill: Callable[[], None]
) -> int | None:
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        stop()
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        kill()
        process.wait()
    return None


@dataclass(frozen=True, slots=True)
class Jobs:
    """`work`: holds a directory for each job, with its log, until the execution ends."""

    s3: Any
    machine: Machine
    work: Path

    def train(self, step: Step) -> Properties:
        return self.training(step.job, step.arguments)

    def training(self, name: str, request: Mapping[str, Any]) -> Properties:
        """One training job, from CreateTrainingJob's request to DescribeTrainingJob's response. Raises StepFailed."""
        files = self.work / name / "ml"
        for each in ("input/config", "input/data", "model", "output/data"):
            (files / each).mkdir(parents=True)
        channels = request.get("InputDataConfig", [])
        for channel in channels:
            if (mode := channel.get("InputMode", request["AlgorithmSpecification"]["TrainingInputMode"])) == "Pipe":
                raise StepFailed(f"TrainingInputMode {mode} is not supported on this machine: use File or FastFile")
            self._fetch(channel["DataSource"]["S3DataSource"], files / "input/data" / channel["ChannelName"])
        config = {
            "hyperparameters": request.get("HyperParameters", {}),
            "inputdataconfig": {each["ChannelName"]: _channel(each) for each in channels},
            "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"},
        }
        for file, content in config.items():
            (files / "input/config" / f"{file}.json").write_text(json.dumps(content))
        arn = f"{ACCOUNT}:training-job/{name}"
        environment = {"TRAINING_JOB_NAME": name, "TRAINING_JOB_ARN": arn, **request.get("Environment", {})}
        algorithm = request["AlgorithmSpecification"]
        job = Job(
            image=algorithm["TrainingImage"],
            files=files,
            entrypoint=algorithm.get("ContainerEntrypoint", ()),
            command=algorithm.get("ContainerArguments", ("train",)),
            environment=environment,
            limit=request["StoppingCondition"].get("MaxRuntimeInSeconds", 86400),
        )
        self._run(name, job, files / "output/failure")
        target = f"{request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output"
        self._put_packed(files / "model", f"{target}/model.tar.gz", must=True)
        self._put_packed(files / "output/data", f"{target}/output.tar.gz")
        return {
            "TrainingJobName": name,
            "TrainingJobArn": arn,
            "TrainingJobStatus": "Completed",
            "ModelArtifacts": {"S3ModelArtifacts": f"{target}/model.tar.gz"},
            "FinalMetricDataList": [
                {"MetricName": metric, "Value": value}
                for metric, value in metrics(self.log(name), algorithm.get("MetricDefinitions", ())).items()
            ],
        }

    def process(self, step: Step) -> Properties:
        name, request = step.job, step.arguments
        files = self.work / name / "ml"
        (files / "processing").mkdir(parents=True)
        for each in request.get("ProcessingInputs", ()):
            self._fetch(each["S3Input"], _inside(files, each["S3Input"]["LocalPath"]))
        outputs = [each["S3Output"] for each in request.get("ProcessingOutputConfig", {}).get("Outputs", ())]
        for output in outputs:
            _inside(files, output["LocalPath"]).mkdir(parents=True, exist_ok=True)
        app = request["AppSpecification"]
        job = Job(
            image=app["ImageUri"],
            files=files,
            entrypoint=app.get("ContainerEntrypoint", ()),
            command=app.get("ContainerArguments", ()),
            environment={"PROCESSING_JOB_NAME": name, **request.get("Environment", {})},
            limit=request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86400),
        )
        self._run(name, job, files / "output/message")
        for output in outputs:
            self._put_files(_inside(files, output["LocalPath"]), output["S3Uri"])
        return {
            "ProcessingJobName": name,
            "ProcessingJobArn": f"{ACCOUNT}:processing-job/{name}",
            "ProcessingJobStatus": "Completed",
            **({"ExitMessage": text} if (text := _text(files / "output/message")) else {}),
        }

    def log(self, name: str) -> Path:
        return self.work / name / "log"

    def _run(self, name: str, job: Job, failure: Path) -> None:
        code = self.machine.run(job, self.log(name))
        if code == 0:
            return
        if code is None:
            raise StepFailed(f"{name} did not end within MaxRuntimeInSeconds, {job.limit:g} s")
        text = _text(failure) or "\n".join(self.log(name).read_text(errors="replace").splitlines()[-5:])
        # SageMaker's form: AlgorithmError if the container failed.
        raise StepFailed(f"AlgorithmError: {text or 'the log is empty'}, exit code: {code}"[:REASON])

    def _fetch(self, source: Mapping[str, Any], into: Path) -> None:
        uri, kind = source["S3Uri"], source["S3DataType"]
        if kind != "S3Prefix":
            raise StepFailed(
                f"S3DataType {kind} of {uri} is not supported on this machine, only S3Prefix: run this step on AWS"
            )
        try:
            model_data.fetch(self.s3, ModelData(uri, prefix=True, packed=False), into)
        except PlatformError as error:
            raise StepFailed(f"ClientError: Data download failed: {uri}: {error.message}"[:REASON]) from error

    def _put_packed(self, directory: Path, uri: str, *, must: bool = False) -> None:
        if not any(each.is_file() for each in directory.rglob("*")):
            if must:
                raise StepFailed(f"ClientError: Artifact upload failed: {OPT_ML}/{directory.name} contains no file")
            return
        packed = directory.with_name(f"{directory.name}.tar.gz")
        pack(directory, packed)
        self._put(packed, uri)

    def _put_files(self, directory: Path, uri: str) -> None:
        for path in sorted(each for each in directory.rglob("*") if each.is_file()):
            self._put(path, f"{uri.rstrip('/')}/{path.relative_to(directory)}")

    def _put(self, path: Path, uri: str) -> None:
        bucket, key = model_data.parts(uri)
        self.s3.upload_file(str(path), bucket, key)


def metrics(log: Path, definitions: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """The last value of each metric in a log, found by the expressions of its definitions."""
    found: dict[str, float] = {}
    lines = log.read_text(errors="replace").splitlines()
    for each in definitions:
        values = [match[1] for line in lines if (match := re.search(each["Regex"], line))]
        if values:
            found[each["Name"]] = float(values[-1])
    return found


def pack(directory: Path, to: Path) -> None:
    """The files as .tar.gz; its bytes depend on names and contents alone, so equal files are the same model."""
    with (
        to.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for path in sorted(each for each in directory.rglob("*") if each.is_file()):
            entry = tarfile.TarInfo(str(path.relative_to(directory)))
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(entry, file)


def _channel(channel: Mapping[str, Any]) -> dict[str, str]:
    """The channel's entry in inputdataconfig.json."""
    return {
        "TrainingInputMode": channel.get("InputMode", "File"),
        "S3DistributionType": channel["DataSource"]["S3DataSource"].get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
        **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
    }


def _inside(files: Path, path: str) -> Path:
    """The path on this machine of a path below the container's /opt/ml."""
    if not path.startswith(f"{OPT_ML}/") or ".." in PurePosixPath(path).parts:
        raise StepFailed(f"{path} is not below {OPT_ML}")
    return files / path.removeprefix(f"{OPT_ML}/")


def _text(file: Path) -> str:
    return file.read_text(errors="replace")[:REASON].strip() if file.is_file() else ""

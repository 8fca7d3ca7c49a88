"""Training and processing as SageMaker does it: /opt/ml filled from S3, the container run, what it left put into S3."""

import gzip
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from local_test.pipelines.execution import Properties, Step, StepFailed
from local_test.pipelines.machine import OPT_ML, Job, Machine
from local_test.platform.calls import PlatformError
from local_test.platform.containers import model_data
from local_test.platform.containers.model_data import ModelData

REASON = 1024  # characters of a FailureReason
ACCOUNT = "arn:aws:sagemaker:us-east-1:123456789012"


@dataclass(frozen=True, slots=True)
class Jobs:
    """`work`: a directory a job, with its log, kept until the runner ends."""

    s3: Any
    machine: Machine
    work: Path

    def train(self, step: Step) -> Properties:
        return self.training(step.job, step.arguments)

    def training(self, name: str, asked: Mapping[str, Any]) -> Properties:
        """One training job, as CreateTrainingJob asks for it; what DescribeTrainingJob would say. Raises StepFailed."""
        files = self.work / name / "ml"
        for each in ("input/config", "input/data", "model", "output/data"):
            (files / each).mkdir(parents=True)
        channels = asked.get("InputDataConfig", [])
        for channel in channels:
            if (mode := channel.get("InputMode", asked["AlgorithmSpecification"]["TrainingInputMode"])) == "Pipe":
                raise StepFailed(f"TrainingInputMode {mode} is not played here: take File or FastFile")
            self._fetch(channel["DataSource"]["S3DataSource"], files / "input/data" / channel["ChannelName"])
        config = {
            "hyperparameters": asked.get("HyperParameters", {}),
            "inputdataconfig": {each["ChannelName"]: _channel(each) for each in channels},
            "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"},
        }
        for file, content in config.items():
            (files / "input/config" / f"{file}.json").write_text(json.dumps(content))
        arn = f"{ACCOUNT}:training-job/{name}"
        environment = {"TRAINING_JOB_NAME": name, "TRAINING_JOB_ARN": arn, **asked.get("Environment", {})}
        algorithm = asked["AlgorithmSpecification"]
        job = Job(
            image=algorithm["TrainingImage"],
            files=files,
            entrypoint=algorithm.get("ContainerEntrypoint", ()),
            command=algorithm.get("ContainerArguments", ("train",)),
            environment=environment,
            limit=asked["StoppingCondition"].get("MaxRuntimeInSeconds", 86400),
        )
        self._run(name, job, files / "output/failure")
        target = f"{asked['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output"
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
        name, asked = step.job, step.arguments
        files = self.work / name / "ml"
        (files / "processing").mkdir(parents=True)
        for each in asked.get("ProcessingInputs", ()):
            self._fetch(each["S3Input"], _inside(files, each["S3Input"]["LocalPath"]))
        outputs = [each["S3Output"] for each in asked.get("ProcessingOutputConfig", {}).get("Outputs", ())]
        for output in outputs:
            _inside(files, output["LocalPath"]).mkdir(parents=True, exist_ok=True)
        app = asked["AppSpecification"]
        job = Job(
            image=app["ImageUri"],
            files=files,
            entrypoint=app.get("ContainerEntrypoint", ()),
            command=app.get("ContainerArguments", ()),
            environment={"PROCESSING_JOB_NAME": name, **asked.get("Environment", {})},
            limit=asked.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86400),
        )
        self._run(name, job, files / "output/message")
        for output in outputs:
            self._put_files(_inside(files, output["LocalPath"]), output["S3Uri"])
        return {
            "ProcessingJobName": name,
            "ProcessingJobArn": f"{ACCOUNT}:processing-job/{name}",
            "ProcessingJobStatus": "Completed",
            **({"ExitMessage": said} if (said := _first(files / "output/message")) else {}),
        }

    def log(self, name: str) -> Path:
        return self.work / name / "log"

    def _run(self, name: str, job: Job, failure: Path) -> None:
        code = self.machine.run(job, self.log(name))
        if code == 0:
            return
        said = _first(failure) or "\n".join(self.log(name).read_text(errors="replace").splitlines()[-5:])
        if code is None:
            raise StepFailed(f"{name} did not end within MaxRuntimeInSeconds, {job.limit:g} s")
        # As SageMaker has it: AlgorithmError where the container failed.
        raise StepFailed(f"AlgorithmError: {said or 'nothing was said'}, exit code: {code}"[:REASON])

    def _fetch(self, source: Mapping[str, Any], into: Path) -> None:
        uri, kind = source["S3Uri"], source["S3DataType"]
        if kind != "S3Prefix":
            raise StepFailed(f"S3DataType {kind} of {uri} is not played here, only S3Prefix: run this step on AWS")
        try:
            model_data.fetch(self.s3, ModelData(uri, prefix=True, packed=False), into)
        except PlatformError as error:
            raise StepFailed(f"ClientError: Data download failed: {uri}: {error.message}"[:REASON]) from error

    def _put_packed(self, directory: Path, uri: str, *, must: bool = False) -> None:
        if not any(each.is_file() for each in directory.rglob("*")):
            if must:
                raise StepFailed(f"ClientError: Artifact upload failed: nothing was left in {OPT_ML}/{directory.name}")
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
    """The last value of each metric in a log, by the expressions of its definitions."""
    found: dict[str, float] = {}
    lines = log.read_text(errors="replace").splitlines()
    for each in definitions:
        values = [match[1] for line in lines if (match := re.search(each["Regex"], line))]
        if values:
            found[each["Name"]] = float(values[-1])
    return found


def pack(directory: Path, to: Path) -> None:
    """Its files as .tar.gz, whose bytes depend on their names and contents alone: alike, it is the same model."""
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
    """Its entry in inputdataconfig.json."""
    return {
        "TrainingInputMode": channel.get("InputMode", "File"),
        "S3DistributionType": channel["DataSource"]["S3DataSource"].get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
        **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
    }


def _inside(files: Path, path: str) -> Path:
    """A path of the container's, in what it sees as /opt/ml."""
    if not path.startswith(f"{OPT_ML}/") or ".." in PurePosixPath(path).parts:
        raise StepFailed(f"{path} is not below {OPT_ML}")
    return files / path.removeprefix(f"{OPT_ML}/")


def _first(file: Path) -> str:
    return file.read_text(errors="replace")[:REASON].strip() if file.is_file() else ""

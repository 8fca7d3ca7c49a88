"""Training jobs: /opt/ml filled from S3, the image run on each host, its model and its metrics kept."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local_test.jobs import data, metrics
from local_test.jobs.hosts import OPT_ML, Task
from local_test.jobs.job import HostedJob, JobStopped, Platform, now
from local_test.platform.calls import ValidationError
from local_test.platform.containers import images

NAMESPACE = "/aws/sagemaker/TrainingJobs"
OURS = "model.ubj"  # the model file of `python -m serve train`
PICKLE = "import pickle, sys, xgboost; pickle.dump(xgboost.Booster(model_file=sys.argv[1]), open(sys.argv[2], 'wb'))"
MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
}


class TrainingJob(HostedJob):
    KIND, ARN, SHORT = "TrainingJob", "training-job", "Training"
    WORD = "training"
    LOGS, FAILURE = "/aws/sagemaker/TrainingJobs", "output/failure"

    def __init__(self, request: Mapping[str, Any], platform: Platform, tuning: str = "") -> None:
        """`tuning`: the ARN of the tuning job that has created this one."""
        super().__init__(request, platform)
        self._tuning = tuning
        self._transitions: list[dict[str, Any]] = []
        self._artifacts = ""
        algorithm = self.request["AlgorithmSpecification"]
        if images.is_xgboost(self.image) and not algorithm.get("MetricDefinitions"):
            self.request["AlgorithmSpecification"] = {**algorithm, "MetricDefinitions": metrics.of_xgboost()}
        self._metrics = metrics.Metrics((), self._put_metric)
        self._phase("Starting")

    def validate(self) -> None:
        algorithm = self.request["AlgorithmSpecification"]
        if not algorithm.get("TrainingImage"):
            raise ValidationError("AlgorithmName is not supported by this emulator: give a TrainingImage.")
        if algorithm.get("TrainingInputMode") == "Pipe":
            raise ValidationError("TrainingInputMode Pipe is not supported by this emulator: use File or FastFile.")
        for channel in self._channels:
            where = f"channel {channel['ChannelName']}"
            if channel.get("InputMode") == "Pipe":
                raise ValidationError(
                    f"{where}: InputMode Pipe is not supported by this emulator: use File or FastFile."
                )
            source = channel["DataSource"].get("S3DataSource")
            if not source:
                raise ValidationError(f"{where}: only an S3DataSource is supported by this emulator, no file system.")
            data.check_source(source, where)
        for group in ("InstanceGroups", "TrainingPlanArn"):
            if self.request["ResourceConfig"].get(group):
                raise ValidationError(f"ResourceConfig.{group} is not supported by this emulator: use InstanceCount.")
        try:
            self._metrics = metrics.Metrics(algorithm.get("MetricDefinitions") or (), self._put_metric)
        except re.error as error:
            raise ValidationError(f"MetricDefinitions: {error} in the Regex {error.pattern!r}.") from error
        self.check_image()

    @property
    def image(self) -> str:
        return str(self.request["AlgorithmSpecification"].get("TrainingImage", ""))

    @property
    def entrypoint(self) -> Sequence[str]:
        return self.request["AlgorithmSpecification"].get("ContainerEntrypoint") or ()

    @property
    def hyperparameters(self) -> Mapping[str, str]:
        return self.request.get("HyperParameters") or {}

    @property
    def count(self) -> int:
        return int(self.request["ResourceConfig"].get("InstanceCount") or 1)

    @property
    def instance_type(self) -> str:
        return str(self.request["ResourceConfig"].get("InstanceType", ""))

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric so far."""
        return {each["MetricName"]: each["Value"] for each in self._metrics.final()}

    @property
    def _channels(self) -> Sequence[Mapping[str, Any]]:
        return self.request.get("InputDataConfig") or ()

    def change(self, *, status: str = "", reason: str = "") -> None:
        with self.changed:
            if status and status != "InProgress":
                late = self._transitions and self._transitions[-1]["Status"] == "MaxRuntimeExceeded"
                if not (status == "Stopped" and late):
                    self._phase(status, reason)
            super().change(status=status, reason=reason)

    def work(self, files: Path) -> str:
        roots = [files / host for host in self.hosts]
        self._phase("Downloading")
        items = {
            each["ChannelName"]: data.selected(self.platform.s3, each["DataSource"]["S3DataSource"])
            for each in self._channels
        }
        for number, root in enumerate(roots):
            self._fill(root, number, items)
        self.check()
        with self.changed:
            self.began = now()
            self._phase("Training")
        late = self.run_hosts([self._task(root, host) for root, host in zip(roots, self.hosts, strict=True)], files)
        if self.closing:
            raise JobStopped
        self._phase("MaxRuntimeExceeded" if late else "Uploading")
        for root in roots:
            if images.is_xgboost(self.image) and (root / "model" / OURS).is_file():
                name_as_aws(root / "model", pickled=images.pickles_model(self.image))
        self._upload(roots, files)
        return "Stopped" if late or self.stopping else "Completed"

    def read(self, line: str) -> None:
        self._metrics.read(line)

    def _phase(self, status: str, reason: str = "") -> None:
        """Begins a secondary status; the one before ends."""
        with self.changed:
            at = now()
            if self._transitions:
                self._transitions[-1].setdefault("EndTime", at)
            message = f"{MESSAGES[status]}{': ' if reason else ''}{reason}" if status == "Failed" else MESSAGES[status]
            ended = {"EndTime": at} if status in ("Completed", "Failed", "Stopped", "MaxRuntimeExceeded") else {}
            self._transitions.append({"Status": status, "StartTime": at, "StatusMessage": message, **ended})
            self.modified = at
            self.changed.notify_all()

    def _fill(self, root: Path, number: int, items: Mapping[str, Sequence[data.Item]]) -> None:
        """Writes one host's /opt/ml."""
        for directory in ("input/config", "input/data", "model", "output/data", "checkpoints"):
            (root / directory).mkdir(parents=True)
        config = {
            "hyperparameters": self.hyperparameters,
            "inputdataconfig": {each["ChannelName"]: channel(each) for each in self._channels},
            "resourceconfig": self.resources(self.hosts[number]),
        }
        for file, content in config.items():
            (root / "input/config" / f"{file}.json").write_text(json.dumps(content))
        for each in self._channels:
            source = each["DataSource"]["S3DataSource"]
            mine = data.share(items[each["ChannelName"]], source, number, self.count)
            data.download(self.platform.s3, mine, root / "input/data" / each["ChannelName"], self.check)
        if uri := self._checkpoints[0]:
            found = data.below(self.platform.s3, uri)
            data.download(self.platform.s3, found, data.inside(root, self._checkpoints[1]), self.check)

    @property
    def _checkpoints(self) -> tuple[str, str]:
        """URI and path of the checkpoints; an empty URI without a CheckpointConfig."""
        config = self.request.get("CheckpointConfig") or {}
        return config.get("S3Uri", ""), config.get("LocalPath") or f"{OPT_ML}/checkpoints"

    def _task(self, root: Path, host: str) -> Task:
        algorithm = self.request["AlgorithmSpecification"]
        return Task(
            host=host,
            hosts=self.hosts,
            image=self.image,
            files=root,
            entrypoint=self.entrypoint,
            command=algorithm.get("ContainerArguments") or (() if self.entrypoint else ("train",)),
            environment={
                **self.role,
                "TRAINING_JOB_NAME": self.name,
                "TRAINING_JOB_ARN": self.arn,
                **(self.request.get("Environment") or {}),
            },
        )

    def _upload(self, roots: Sequence[Path], files: Path) -> None:
        s3, output = self.platform.s3, self.request["OutputDataConfig"]
        target = f"{output['S3OutputPath'].rstrip('/')}/{self.name}/output"
        plain = output.get("CompressionType") == "NONE"
        for name, directory in (("model", "model"), ("output", "output/data")):
            directories = [root / directory for root in roots]
            if not any(map(data.files_of, directories)):
                continue
            if plain:
                for each in directories:
                    data.upload_files(s3, each, f"{target}/{name}/")
            else:
                data.pack(directories, files / f"{name}.tar.gz")
                data.upload(s3, files / f"{name}.tar.gz", f"{target}/{name}.tar.gz")
        if not any(data.files_of(root / "model") for root in roots):
            self.platform.events.emit("job", self.name, f"no model: there is no file in {OPT_ML}/model")
        if uri := self._checkpoints[0]:
            for root in roots:
                data.upload_files(s3, data.inside(root, self._checkpoints[1]), uri)
        with self.changed:
            self._artifacts = f"{target}/model/" if plain else f"{target}/model.tar.gz"

    def _put_metric(self, name: str, value: float) -> None:
        self.platform.watch.metric(NAMESPACE, name, value, {"TrainingJobName": self.name})

    def _more(self) -> dict[str, Any]:
        seconds = int((self.ended - self.began).total_seconds()) if self.began and self.ended else None
        final = self._metrics.final()
        return {
            "SecondaryStatus": self._transitions[-1]["Status"],
            "SecondaryStatusTransitions": [dict(each) for each in self._transitions],
            **({"ModelArtifacts": {"S3ModelArtifacts": self._artifacts}} if self._artifacts else {}),
            **({"FinalMetricDataList": final} if final else {}),
            **({"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": seconds} if seconds is not None else {}),
            **({"TuningJobArn": self._tuning} if self._tuning else {}),
        }


def name_as_aws(directory: Path, *, pickled: bool) -> None:
    """Gives the model of this repository's training the name and the form of AWS's XGBoost.

    Evaluation scripts open `xgboost-model`. Another process makes the pickle: importing XGBoost costs 100 MB.
    """
    made, wanted = directory / OURS, directory / "xgboost-model"
    if not pickled:
        made.rename(wanted)
        return
    subprocess.run([sys.executable, "-c", PICKLE, made, wanted], check=True, capture_output=True)
    made.unlink()


def channel(given: Mapping[str, Any]) -> dict[str, str]:
    """A channel's entry in inputdataconfig.json."""
    return {
        "TrainingInputMode": given.get("InputMode", "File"),
        "S3DistributionType": given["DataSource"]["S3DataSource"].get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": given.get("RecordWrapperType", "None"),
        **({"ContentType": given["ContentType"]} if "ContentType" in given else {}),
    }

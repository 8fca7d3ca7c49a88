"""Processing jobs: a script or program of an image, with its inputs from S3 and its outputs to S3."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from local_test.jobs import data
from local_test.jobs.hosts import Task
from local_test.jobs.job import HostedJob, JobStopped, now, text
from local_test.platform.calls import ValidationError


class ProcessingJob(HostedJob):
    KIND, ARN, SHORT = "ProcessingJob", "processing-job", "Processing"
    WORD = "processing"
    LOGS, FAILURE = "/aws/sagemaker/ProcessingJobs", "output/message"
    _message = ""

    def validate(self) -> None:
        for each in self._inputs:
            source = each.get("S3Input")
            if not source:
                raise ValidationError(
                    f"ProcessingInput {each['InputName']}: DatasetDefinition is not supported by this emulator: "
                    "use S3Input."
                )
            data.check_source(source, f"ProcessingInput {each['InputName']}")
            data.inside(Path(), source["LocalPath"])
        for each in self._outputs:
            if not each.get("S3Output"):
                raise ValidationError(
                    f"ProcessingOutput {each['OutputName']}: FeatureStoreOutput is not supported by this emulator: "
                    "use S3Output."
                )
            data.inside(Path(), each["S3Output"]["LocalPath"])
        self.check_image()

    @property
    def image(self) -> str:
        return str(self.request["AppSpecification"]["ImageUri"])

    @property
    def entrypoint(self) -> Sequence[str]:
        return self.request["AppSpecification"].get("ContainerEntrypoint") or ()

    @property
    def count(self) -> int:
        return int(self._cluster.get("InstanceCount") or 1)

    @property
    def instance_type(self) -> str:
        return str(self._cluster.get("InstanceType", ""))

    @property
    def _cluster(self) -> Mapping[str, Any]:
        cluster: Mapping[str, Any] = self.request["ProcessingResources"]["ClusterConfig"]
        return cluster

    @property
    def _inputs(self) -> Sequence[Mapping[str, Any]]:
        return self.request.get("ProcessingInputs") or ()

    @property
    def _outputs(self) -> Sequence[Mapping[str, Any]]:
        return (self.request.get("ProcessingOutputConfig") or {}).get("Outputs") or ()

    def work(self, files: Path) -> str:
        s3, roots = self.platform.s3, [files / host for host in self.hosts]
        for each in self._inputs:
            source = each["S3Input"]
            items = data.selected(s3, source)
            for number, root in enumerate(roots):
                mine = data.share(items, source, number, self.count)
                data.download(s3, mine, data.inside(root, source["LocalPath"]), self.check)
        for host, root in zip(self.hosts, roots, strict=True):
            for directory in ("config", "output", "processing"):
                (root / directory).mkdir(parents=True, exist_ok=True)
            config = {"processingjobconfig": self._config(), "resourceconfig": self.resources(host)}
            for file, content in config.items():
                (root / "config" / f"{file}.json").write_text(json.dumps(content))
            for each in self._outputs:
                data.inside(root, each["S3Output"]["LocalPath"]).mkdir(parents=True, exist_ok=True)
        self.check()
        with self.changed:
            self.began = now()
        late = self.run_hosts([self._task(root, host) for root, host in zip(roots, self.hosts, strict=True)], files)
        if self.closing:
            raise JobStopped
        with self.changed:
            self._message = next(filter(None, (text(root / self.FAILURE) for root in roots)), "")
        for each in self._outputs:
            for root in roots:
                data.upload_files(s3, data.inside(root, each["S3Output"]["LocalPath"]), each["S3Output"]["S3Uri"])
        return "Stopped" if late or self.stopping else "Completed"

    def _task(self, root: Path, host: str) -> Task:
        return Task(
            host=host,
            hosts=self.hosts,
            image=self.image,
            files=root,
            entrypoint=self.entrypoint,
            command=self.request["AppSpecification"].get("ContainerArguments") or (),
            environment={
                **self.role,
                "PROCESSING_JOB_NAME": self.name,
                "PROCESSING_JOB_ARN": self.arn,
                **(self.request.get("Environment") or {}),
            },
        )

    def _config(self) -> dict[str, Any]:
        """The content of processingjobconfig.json."""
        return {"ProcessingJobArn": self.arn, **self.request}

    def _more(self) -> dict[str, Any]:
        return {"ExitMessage": self._message} if self._message else {}

"""The control plane's API of jobs: created and started, described, listed, stopped."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Protocol, TypeVar

from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.exceptions import AWSValidationException, ResourceInUseException, ResourceNotFound
from moto.sagemaker.models import sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse

from local_test.jobs.job import Job, Platform
from local_test.jobs.processing_job import ProcessingJob
from local_test.jobs.training_job import TrainingJob
from local_test.jobs.transform_job import TransformJob
from local_test.jobs.tuning_job import TuningJob
from local_test.platform.calls import ValidationError

T = TypeVar("T")

KINDS: dict[str, type[Job]] = {each.KIND: each for each in (TrainingJob, ProcessingJob, TransformJob, TuningJob)}
# moto's collection of each kind. Its tags and its Search find the jobs there.
COLLECTIONS = {
    "TrainingJob": "training_jobs",
    "ProcessingJob": "processing_jobs",
    "TransformJob": "transform_jobs",
    "HyperParameterTuningJob": "hyper_parameter_tuning_jobs",
}
MAX_RESULTS = 100


class JobsEmulator(Protocol):
    """The part of the emulator that the API of jobs uses."""

    def job_platform(self, account: str, region: str, model: Callable[[str], Mapping[str, Any] | None]) -> Platform: ...
    def start_job(self, job: Job) -> None:
        """Makes a job known to Describe and List, and starts it."""
        ...

    def register(self, collection: MutableMapping[str, Any], name: str) -> None:
        """Registers one of moto's records, to be removed when the emulator closes."""
        ...


class JobsApi(SageMakerResponse):
    """The operations of jobs, of one request."""

    emulator: ClassVar[Any]

    def create_training_job(self) -> ActionResult:
        return self._create("TrainingJob")

    def describe_training_job(self) -> ActionResult:
        return self._describe("TrainingJob")

    def stop_training_job(self) -> ActionResult:
        return self._stop("TrainingJob")

    def list_training_jobs(self) -> ActionResult:
        return self._list("TrainingJob")

    def create_processing_job(self) -> ActionResult:
        return self._create("ProcessingJob")

    def describe_processing_job(self) -> ActionResult:
        return self._describe("ProcessingJob")

    def stop_processing_job(self) -> ActionResult:
        return self._stop("ProcessingJob")

    def list_processing_jobs(self) -> ActionResult:
        return self._list("ProcessingJob")

    def create_transform_job(self) -> ActionResult:
        return self._create("TransformJob")

    def describe_transform_job(self) -> ActionResult:
        return self._describe("TransformJob")

    def stop_transform_job(self) -> ActionResult:
        return self._stop("TransformJob")

    def list_transform_jobs(self) -> ActionResult:
        return self._list("TransformJob")

    def create_hyper_parameter_tuning_job(self) -> ActionResult:
        return self._create("HyperParameterTuningJob")

    def describe_hyper_parameter_tuning_job(self) -> ActionResult:
        return self._describe("HyperParameterTuningJob")

    def stop_hyper_parameter_tuning_job(self) -> ActionResult:
        return self._stop("HyperParameterTuningJob")

    def list_hyper_parameter_tuning_jobs(self) -> ActionResult:
        return self._list("HyperParameterTuningJob")

    def list_training_jobs_for_hyper_parameter_tuning_job(self) -> ActionResult:
        job = self._job("HyperParameterTuningJob")
        assert isinstance(job, TuningJob)
        shown, token = trainings_page(job.trainings(), self.params)
        return ActionResult({"TrainingJobSummaries": shown, **({"NextToken": token} if token else {})})

    def _model(self, name: str) -> Mapping[str, Any] | None:
        """A model's description, with image and data of its model packages filled in."""
        raise NotImplementedError

    def _create(self, kind: str) -> ActionResult:
        emulator: JobsEmulator = self.emulator
        jobs, name = self._jobs(kind), self.params[f"{kind}Name"]
        if name in jobs:
            raise ResourceInUseException(
                f"Job name must be unique within an AWS account and region, and a job with this name already exists "
                f"({jobs[name].arn})"
            )
        job = KINDS[kind](self.params, emulator.job_platform(self.current_account, self.region, self._model))
        try:
            job.validate()
        except ValidationError as error:
            raise AWSValidationException(error.message) from None
        emulator.start_job(job)
        return ActionResult({f"{kind}Arn": job.arn})

    def _describe(self, kind: str) -> ActionResult:
        return ActionResult(self._job(kind).description())

    def _stop(self, kind: str) -> ActionResult:
        try:
            self._job(kind).stop()
        except ValidationError as error:
            raise AWSValidationException(error.message) from None
        return EmptyResult()

    def _list(self, kind: str) -> ActionResult:
        jobs = list(self._jobs(kind).values())
        shown, token = page(jobs, self.params, kind)
        more = {"NextToken": token} if token else {}
        return ActionResult({f"{kind}Summaries": [each.summary() for each in shown], **more})

    def _jobs(self, kind: str) -> MutableMapping[str, Any]:
        return collection(self.current_account, self.region, kind)

    def _job(self, kind: str) -> Job:
        name = self.params[f"{kind}Name"]
        found: Job | None = self._jobs(kind).get(name)
        if found is None:
            if kind == "HyperParameterTuningJob":
                raise ResourceNotFound(f"Amazon SageMaker can't find a tuning job with the name {name}.")
            if kind == "TrainingJob":
                raise AWSValidationException("Requested resource not found.")
            raise AWSValidationException(f"Could not find requested job with name: {name}")
        return found


def collection(account: str, region: str, kind: str) -> MutableMapping[str, Any]:
    """moto's records of a kind of job, by name."""
    jobs: MutableMapping[str, Any] = getattr(sagemaker_backends[account][region], COLLECTIONS[kind])
    return jobs


def trainings_page(found: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> tuple[list[Any], str]:
    """The trainings of a tuning job that a request selects, in its order, and the token of the next page.

    By FinalObjectiveMetricValue, trainings without a value of the objective are not listed.
    """
    by, final = asked.get("SortBy") or "Name", "FinalHyperParameterTuningJobObjectiveMetric"
    status = asked.get("StatusEquals")
    kept = [each for each in found if status in (None, each["TrainingJobStatus"])]
    if by == "FinalObjectiveMetricValue":
        kept = sorted((each for each in kept if final in each), key=lambda each: each[final]["Value"])
    else:
        member = {"Name": "TrainingJobName", "CreationTime": "CreationTime", "Status": "TrainingJobStatus"}[by]
        kept = sorted(kept, key=lambda each: each[member])
    if asked.get("SortOrder") == "Descending":
        kept.reverse()
    return cut(kept, asked)


def cut(found: list[T], asked: Mapping[str, Any]) -> tuple[list[T], str]:
    """One page, and the token of the next one."""
    first = int(asked.get("NextToken") or 0)
    last = first + int(asked.get("MaxResults") or MAX_RESULTS)
    return found[first:last], str(last) if last < len(found) else ""


def page(jobs: Sequence[Job], asked: Mapping[str, Any], kind: str) -> tuple[list[Job], str]:
    """The jobs that a List request selects, in its order, and the token of the next page."""
    keep: dict[str, Callable[[Job, Any], bool]] = {
        "NameContains": lambda job, text: text in job.name,
        "StatusEquals": lambda job, status: job.status == status,
        "CreationTimeAfter": lambda job, at: job.created.timestamp() > seconds(at),
        "CreationTimeBefore": lambda job, at: job.created.timestamp() < seconds(at),
        "LastModifiedTimeAfter": lambda job, at: job.modified.timestamp() > seconds(at),
        "LastModifiedTimeBefore": lambda job, at: job.modified.timestamp() < seconds(at),
    }
    found = [job for job in jobs if all(asked.get(key) is None or fits(job, asked[key]) for key, fits in keep.items())]
    keys: dict[str, Callable[[Job], Any]] = {
        "Name": lambda job: job.name,
        "CreationTime": lambda job: job.created,
        "Status": lambda job: job.status,
    }
    found.sort(key=keys[asked.get("SortBy") or ("Name" if kind == "HyperParameterTuningJob" else "CreationTime")])
    if (asked.get("SortOrder") or ("Descending" if kind == "TransformJob" else "Ascending")) == "Descending":
        found.reverse()
    return cut(found, asked)


def seconds(at: datetime | float | str) -> float:
    """A time of a request, which moto leaves as the protocol has it."""
    if isinstance(at, datetime):
        return at.timestamp()
    return float(at)

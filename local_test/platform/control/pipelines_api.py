"""The control plane's API of pipelines: their definitions, executions and steps, as SageMaker describes them."""

import datetime as dt
import json
import re
import secrets
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from moto.core.responses import ActionResult
from moto.sagemaker.exceptions import AWSValidationException, ConflictException, ResourceNotFound
from moto.sagemaker.responses import SageMakerResponse

from deploy.errors import SpecError
from deploy.pipelines import validation
from deploy.pipelines.validation import SERVICES, order, steps_of, values_of
from local_test.pipelines.executor import Engine
from local_test.pipelines.records import LIFE, RUNNING, Execution, Owner, Pipeline, Records, Step, Version, now

ID_LENGTH = 12  # of an execution
PAGE = 100  # items, also the most that a caller may ask for
LARGEST = 1 << 20  # characters of a definition

Item = TypeVar("Item")


class PlatformWithPipelines(Protocol):
    """The part of the emulator that this API uses."""

    pipelines: Records
    engine: Engine

    def read(self, bucket: str, key: str, version: str | None) -> str:
        """The text of an S3 object. Raises botocore's ClientError."""
        ...


class PipelinesApi(SageMakerResponse):
    """One request. Times are AWS's; names of members too."""

    emulator: ClassVar[Any]

    # Pipelines

    def create_pipeline(self) -> ActionResult:
        platform, params, name = self._platform, self.params, self.params["PipelineName"]
        text = self._definition()
        existing = platform.pipelines.pipeline(self._owner, name)
        if existing is not None:
            if existing.token == params["ClientRequestToken"] and existing.definition == text:
                return ActionResult({"PipelineArn": existing.arn})
            raise AWSValidationException(
                "Pipeline names must be unique within an AWS account and region. "
                f"Pipeline with name ({name}) already exists."
            )
        moment = now()
        made = Pipeline(
            arn=f"arn:aws:sagemaker:{self.region}:{self.current_account}:pipeline/{name}",
            name=name,
            display_name=params.get("PipelineDisplayName") or name,
            description=params.get("PipelineDescription") or "",
            role=params["RoleArn"],
            token=params["ClientRequestToken"],
            created=moment,
            modified=moment,
            versions=[Version(number=1, definition=text, created=moment)],
            parallelism=_parallelism(params),
            tags=list(params.get("Tags") or ()),
        )
        platform.pipelines.keep(self._owner, made)
        return ActionResult({"PipelineArn": made.arn})

    def update_pipeline(self) -> ActionResult:
        found, params = self._pipeline(), self.params
        if params.get("PipelineDefinition") or params.get("PipelineDefinitionS3Location"):
            text = self._definition()
            if text != found.definition:
                number = found.versions[-1].number + 1
                found.versions.append(Version(number=number, definition=text, created=now()))
        found.display_name = params.get("PipelineDisplayName") or found.display_name
        found.description = params.get("PipelineDescription", found.description)
        found.role = params.get("RoleArn") or found.role
        found.parallelism = _parallelism(params) or found.parallelism
        found.modified = now()
        self._platform.pipelines.keep(self._owner, found)
        return ActionResult({"PipelineArn": found.arn, "PipelineVersionId": found.versions[-1].number})

    def describe_pipeline(self) -> ActionResult:
        self._refuse_aliases()
        found = self._pipeline()
        return ActionResult(
            _without_empty(
                {
                    "PipelineArn": found.arn,
                    "PipelineName": found.name,
                    "PipelineDisplayName": found.display_name,
                    "PipelineDefinition": self._version(found).definition,
                    "PipelineDescription": found.description,
                    "RoleArn": found.role,
                    "PipelineStatus": "Active",
                    "CreationTime": found.created,
                    "LastModifiedTime": found.modified,
                    "LastRunTime": found.last_run,
                    "ParallelismConfiguration": _limit(found.parallelism),
                }
            )
        )

    def list_pipelines(self) -> ActionResult:
        params, prefix = self.params, self.params.get("PipelineNamePrefix") or ""
        found = [each for each in self._platform.pipelines.pipelines(self._owner) if each.name.startswith(prefix)]
        by_name = params.get("SortBy") == "Name"
        summaries, token = self._page(found, lambda each: each.name if by_name else each.created, "Descending")
        return _listed("PipelineSummaries", token, map(_summary, summaries))

    def list_pipeline_versions(self) -> ActionResult:
        found = self._pipeline()
        versions, token = self._page(found.versions, lambda each: each.number, "Descending")
        runs = self._platform.pipelines.executions(self._owner, found.name)

        def last(number: int) -> str | None:
            return next((each.arn for each in reversed(runs) if each.version == number), None)

        return _listed(
            "PipelineVersionSummaries",
            token,
            (
                {
                    "PipelineArn": found.arn,
                    "PipelineVersionId": each.number,
                    "CreationTime": each.created,
                    "LastExecutionPipelineExecutionArn": last(each.number),
                }
                for each in versions
            ),
        )

    def delete_pipeline(self) -> ActionResult:
        found = self._pipeline()
        if any(each.status in RUNNING for each in self._platform.pipelines.executions(self._owner, found.name)):
            raise ConflictException(
                f"Pipeline {found.arn} has an execution that runs: stop it with StopPipelineExecution first."
            )
        self._platform.pipelines.forget(self._owner, found.name)
        return ActionResult({"PipelineArn": found.arn})

    # Executions

    def start_pipeline_execution(self) -> ActionResult:
        self._refuse_aliases()
        found, params = self._pipeline(), self.params
        token = params["ClientRequestToken"]
        for each in self._platform.pipelines.executions(self._owner, found.name):
            if each.token == token:
                return ActionResult({"PipelineExecutionArn": each.arn})
        version = self._version(found)
        definition = json.loads(version.definition)
        _refuse_services(definition)
        given = {each["Name"]: each["Value"] for each in params.get("PipelineParameters") or ()}
        try:
            values = values_of(definition, given)
        except SpecError as error:
            raise AWSValidationException(str(error)) from None
        moment = now()
        execution = Execution(
            arn=f"{found.arn}/execution/{_random_id()}",
            pipeline=found.name,
            definition=version.definition,
            parameters=values,
            role=params.get("RoleArn") or found.role,
            access_key=self.get_access_key(),
            token=token,
            created=moment,
            modified=moment,
            display_name=params.get("PipelineExecutionDisplayName") or f"execution-{int(moment.timestamp() * 1000)}",
            description=params.get("PipelineExecutionDescription") or "",
            parallelism=_parallelism(params) or found.parallelism,
            version=version.number,
            selected=params.get("SelectiveExecutionConfig"),
        )
        if execution.selected:
            self._select(execution, definition)
        found.last_run = moment
        self._platform.pipelines.keep(self._owner, found)
        self._platform.pipelines.save(self._owner, execution)
        self._platform.engine.start(self._owner, execution)
        return ActionResult({"PipelineExecutionArn": execution.arn})

    def describe_pipeline_execution(self) -> ActionResult:
        found = self._execution()
        return ActionResult(
            _without_empty(
                {
                    "PipelineArn": _pipeline_arn(found),
                    "PipelineExecutionArn": found.arn,
                    "PipelineExecutionDisplayName": found.display_name,
                    "PipelineExecutionStatus": found.status,
                    "PipelineExecutionDescription": found.description,
                    "PipelineExperimentConfig": self._experiment(found),
                    "FailureReason": found.reason,
                    "CreationTime": found.created,
                    "LastModifiedTime": found.modified,
                    "ParallelismConfiguration": _limit(found.parallelism),
                    "SelectiveExecutionConfig": found.selected,
                    "PipelineVersionId": found.version,
                    "RoleArn": found.role,
                }
            )
        )

    def update_pipeline_execution(self) -> ActionResult:
        found, params = self._execution(), self.params

        def update() -> None:
            found.display_name = params.get("PipelineExecutionDisplayName") or found.display_name
            found.description = params.get("PipelineExecutionDescription", found.description)
            found.parallelism = _parallelism(params) or found.parallelism

        self._platform.pipelines.change(self._owner, found, update)
        return ActionResult({"PipelineExecutionArn": found.arn})

    def describe_pipeline_definition_for_execution(self) -> ActionResult:
        found = self._execution()
        return ActionResult({"PipelineDefinition": found.definition, "CreationTime": found.created})

    def list_pipeline_executions(self) -> ActionResult:
        self._refuse_aliases()
        found = self._platform.pipelines.executions(self._owner, self._pipeline().name)
        by_arn = self.params.get("SortBy") == "PipelineExecutionArn"
        page, token = self._page(found, lambda each: each.arn if by_arn else each.created, "Descending")
        return _listed(
            "PipelineExecutionSummaries",
            token,
            (
                {
                    "PipelineExecutionArn": each.arn,
                    "StartTime": each.created,
                    "PipelineExecutionStatus": each.status,
                    "PipelineExecutionDescription": each.description,
                    "PipelineExecutionDisplayName": each.display_name,
                    "PipelineExecutionFailureReason": each.reason,
                }
                for each in page
            ),
        )

    def list_pipeline_execution_steps(self) -> ActionResult:
        found = self._platform.pipelines.seen(self._execution())
        definitions = {name: placed.step for name, placed in steps_of(json.loads(found.definition)).items()}
        begun = [each for each in found.steps.values() if each.status != "NotRun"]
        page, token = self._page(begun, lambda each: each.started or found.created, "Descending")
        return _listed("PipelineExecutionSteps", token, (_shown(each, definitions[each.name]) for each in page))

    def list_pipeline_parameters_for_execution(self) -> ActionResult:
        values = self._execution().parameters
        page, token = self._page(list(values), None, "Ascending")
        return _listed("PipelineParameters", token, ({"Name": name, "Value": str(values[name])} for name in page))

    def stop_pipeline_execution(self) -> ActionResult:
        found = self._execution()
        if found.status == "Executing":
            self._platform.engine.stop(self._owner, found)
        elif found.status != "Stopping":
            raise ConflictException(f"Pipeline execution {found.arn} cannot be stopped: its status is {found.status}.")
        return ActionResult({"PipelineExecutionArn": found.arn})

    def retry_pipeline_execution(self) -> ActionResult:
        """Runs the steps that have not succeeded; after a restart of the platform all steps, as no result is left."""
        found = self._execution()
        if found.status not in ("Failed", "Stopped"):
            raise ConflictException(
                f"Pipeline execution {found.arn} cannot be retried: its status is {found.status}; "
                "only a Failed or Stopped one can."
            )

        def reset() -> None:
            kept = found.life == LIFE
            found.steps = {name: step for name, step in found.steps.items() if kept and step.status == "Succeeded"}
            found.status, found.reason, found.life = "Executing", "", LIFE
            found.access_key = self.get_access_key()
            found.parallelism = _parallelism(self.params) or found.parallelism
            if found.selected:
                self._select(found, json.loads(found.definition))

        self._platform.pipelines.change(self._owner, found, reset)
        self._platform.engine.start(self._owner, found)
        return ActionResult({"PipelineExecutionArn": found.arn})

    # Callbacks

    def send_pipeline_execution_step_success(self) -> ActionResult:
        outputs = {each["Name"]: each["Value"] for each in self.params.get("OutputParameters") or ()}
        return self._answered(outputs, None)

    def send_pipeline_execution_step_failure(self) -> ActionResult:
        return self._answered({}, self.params.get("FailureReason") or "")

    def _answered(self, outputs: Mapping[str, str], failure: str | None) -> ActionResult:
        token = self.params["CallbackToken"]
        arn = self._platform.engine.answer(token, outputs, failure)
        if arn is None:
            raise ResourceNotFound(f"No callback step waits for an answer with the token {token}.")
        return ActionResult({"PipelineExecutionArn": arn})

    # Tags, which moto looks up among its own pipelines

    def add_tags(self) -> ActionResult:
        found = self._tagged()
        if found is None:
            return super().add_tags()
        new = list(self.params.get("Tags") or ())
        keys = {each["Key"] for each in new}
        found.tags = [each for each in found.tags if each["Key"] not in keys] + new
        self._platform.pipelines.keep(self._owner, found)
        return ActionResult({"Tags": found.tags})

    def list_tags(self) -> ActionResult:
        found = self._tagged()
        return super().list_tags() if found is None else ActionResult({"Tags": found.tags})

    def delete_tags(self) -> ActionResult:
        found = self._tagged()
        if found is None:
            return super().delete_tags()
        found.tags = [each for each in found.tags if each["Key"] not in self.params["TagKeys"]]
        self._platform.pipelines.keep(self._owner, found)
        return ActionResult({})

    def _tagged(self) -> Pipeline | None:
        match = re.fullmatch(r"arn:[^:]+:sagemaker:[^:]*:[^:]*:pipeline/([^/]+)", self.params.get("ResourceArn", ""))
        return self._platform.pipelines.pipeline(self._owner, match[1]) if match else None

    # Lookups

    @property
    def _platform(self) -> PlatformWithPipelines:
        return self.emulator  # type: ignore[no-any-return]

    @property
    def _owner(self) -> Owner:
        return self.current_account, self.region

    def _pipeline(self) -> Pipeline:
        """The pipeline that the request names, by its name or its ARN."""
        name = self.params["PipelineName"].rpartition("/")[2]
        found = self._platform.pipelines.pipeline(self._owner, name)
        if found is None:
            arn = f"arn:aws:sagemaker:{self.region}:{self.current_account}:pipeline/{name}"
            raise ResourceNotFound(f"Pipeline '{arn}' does not exist.")
        return found

    def _execution(self) -> Execution:
        arn = self.params["PipelineExecutionArn"]
        found = self._platform.pipelines.execution(self._owner, arn)
        if found is None:
            raise ResourceNotFound(f"Pipeline execution '{arn}' does not exist.")
        return found

    def _version(self, found: Pipeline) -> Version:
        number = self.params.get("PipelineVersionId") or found.versions[-1].number
        version = next((each for each in found.versions if each.number == number), None)
        if version is None:
            raise ResourceNotFound(f"Version {number} of pipeline '{found.arn}' does not exist.")
        return version

    def _refuse_aliases(self) -> None:
        if self.params.get("PipelineVersionAlias"):
            raise AWSValidationException(
                "PipelineVersionAlias is not supported by this emulator: use PipelineVersionId."
            )

    def _definition(self) -> str:
        """The definition of the request, checked. Raises AWSValidationException for one that AWS refuses."""
        params, location = self.params, self.params.get("PipelineDefinitionS3Location")
        if bool(params.get("PipelineDefinition")) == bool(location):
            raise AWSValidationException(
                "Give either PipelineDefinition or PipelineDefinitionS3Location, one of the two."
            )
        text: str = params.get("PipelineDefinition") or self._stored(location)
        if len(text) > LARGEST:
            raise AWSValidationException(f"The pipeline definition has {len(text)} characters, at most {LARGEST}.")
        try:
            definition = json.loads(text)
            if not isinstance(definition, dict):
                raise ValueError("it must be an object")
            validation.check(definition)
        except (SpecError, ValueError) as error:
            raise AWSValidationException(f"Unable to parse pipeline definition. {error}") from None
        return text

    def _stored(self, location: Mapping[str, str]) -> str:
        bucket, key = location["Bucket"], location["ObjectKey"]
        try:
            return self._platform.read(bucket, key, location.get("VersionId"))
        except Exception as error:  # of S3, whatever it is: the caller gets its text
            raise AWSValidationException(
                f"Could not read the pipeline definition at s3://{bucket}/{key}: {error}"
            ) from None

    def _experiment(self, found: Execution) -> dict[str, str] | None:
        """The experiment's names, if the definition has a configuration; they are expressions of the execution."""
        given = json.loads(found.definition).get("PipelineExperimentConfig") or {}
        own = {
            "Execution.PipelineName": found.pipeline,
            "Execution.PipelineExecutionId": found.id,
            **{f"Parameters.{name}": str(value) for name, value in found.parameters.items()},
        }
        names = {
            key: own.get(value.get("Get", ""), "") if isinstance(value, dict) else value for key, value in given.items()
        }
        return names if names and all(names.values()) else None

    def _select(self, execution: Execution, definition: Mapping[str, Any]) -> None:
        """Gives the steps that are not selected the results of the source execution, or marks them as not run."""
        config = execution.selected or {}
        selected = [each["StepName"] for each in config["SelectedSteps"]]
        placed, waits = steps_of(definition), order(definition)
        for name in selected:
            if name not in placed:
                raise AWSValidationException(f"SelectiveExecutionConfig: the pipeline has no step {name!r}.")
        arn = config.get("SourcePipelineExecutionArn") or ""
        source = self._platform.pipelines.execution(self._owner, arn)
        if source is None and arn:
            raise ResourceNotFound(f"Pipeline execution '{arn}' does not exist.")
        needed = set().union(*(waits[name] for name in selected)) - set(selected)
        for name in placed:
            if name in selected or name in execution.steps:
                continue
            done = source.steps.get(name) if source else None
            usable = done is not None and done.status == "Succeeded" and source is not None and source.life == LIFE
            if name in needed and not usable:
                raise AWSValidationException(
                    f"SelectiveExecutionConfig: step {name!r} is needed by a selected step, and "
                    f"{arn or 'no source execution'} has no result of it: select it too."
                )
            if name in needed and done is not None:
                step = Step(
                    name=name, kind=done.kind, status="Succeeded", started=now(), ended=now(), selected_from=arn
                )
                step.metadata, step.properties = done.metadata, done.properties
            else:
                step = Step(name=name, kind=placed[name].step["Type"], status="NotRun")
            execution.steps[name] = step

    def _page(
        self, items: Sequence[Item], key: Callable[[Item], Any] | None, default_order: str
    ) -> tuple[Sequence[Item], str | None]:
        """The items that the request asks for, and the token of the next page."""
        params = self.params
        after, before = params.get("CreatedAfter"), params.get("CreatedBefore")
        for moment, later in ((after, True), (before, False)):
            if moment is not None:
                limit = _moment(moment)
                items = [each for each in items if (each.created > limit) == later]  # type: ignore[attr-defined]
        if key is not None:
            items = sorted(items, key=key, reverse=params.get("SortOrder", default_order) == "Descending")
        start, size = params.get("NextToken") or "0", params.get("MaxResults") or PAGE
        if not start.isdigit() or int(start) > len(items):
            raise AWSValidationException(f"Invalid NextToken {start!r}.")
        end = int(start) + size
        return items[int(start) : end], str(end) if end < len(items) else None


def _summary(pipeline: Pipeline) -> dict[str, Any]:
    return {
        "PipelineArn": pipeline.arn,
        "PipelineName": pipeline.name,
        "PipelineDisplayName": pipeline.display_name,
        "PipelineDescription": pipeline.description,
        "RoleArn": pipeline.role,
        "CreationTime": pipeline.created,
        "LastModifiedTime": pipeline.modified,
        "LastExecutionTime": pipeline.last_run,
    }


def _shown(step: Step, definition: Mapping[str, Any]) -> dict[str, Any]:
    """A step as ListPipelineExecutionSteps shows it."""
    return {
        "StepName": step.name,
        "StepDisplayName": definition.get("DisplayName"),
        "StepDescription": definition.get("Description"),
        "StartTime": step.started,
        "EndTime": step.ended,
        "StepStatus": step.status,
        "CacheHitResult": {"SourcePipelineExecutionArn": step.cached_from} if step.cached_from else None,
        "FailureReason": step.reason,
        "Metadata": step.metadata,
        "AttemptCount": step.attempts,
        "SelectiveExecutionResult": (
            {"SourcePipelineExecutionArn": step.selected_from} if step.selected_from else None
        ),
    }


def _refuse_services(definition: Mapping[str, Any]) -> None:
    kinds = {name: placed.step["Type"] for name, placed in steps_of(definition).items()}
    refused = [f"{name} ({kind})" for name, kind in kinds.items() if kind in SERVICES]
    if refused:
        raise AWSValidationException(
            f"Steps of these types are services of AWS, which this emulator does not have: {', '.join(refused)}. "
            "Run the pipeline in AWS, or without these steps."
        )


def _listed(member: str, token: str | None, items: Iterable[Mapping[str, Any]]) -> ActionResult:
    return ActionResult(_without_empty({member: [_without_empty(each) for each in items], "NextToken": token}))


def _without_empty(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer without members that have no value; AWS leaves them out."""
    return {name: value for name, value in answer.items() if value is not None and value not in ("", {})}


def _parallelism(params: Mapping[str, Any]) -> int:
    return int((params.get("ParallelismConfiguration") or {}).get("MaxParallelExecutionSteps") or 0)


def _limit(parallelism: int) -> dict[str, int] | None:
    return {"MaxParallelExecutionSteps": parallelism} if parallelism else None


def _pipeline_arn(execution: Execution) -> str:
    return execution.arn.rpartition("/execution/")[0]


def _moment(value: Any) -> dt.datetime:
    """A timestamp of a request: seconds since 1970, or text."""
    if isinstance(value, int | float):
        return dt.datetime.fromtimestamp(value, dt.UTC)
    parsed = dt.datetime.fromisoformat(str(value))
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=dt.UTC)


def _random_id() -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(ID_LENGTH))

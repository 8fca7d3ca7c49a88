"""The control plane's Search, over the resources that the emulator plays."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moto.core.responses import ActionResult
from moto.sagemaker.exceptions import AWSValidationException

from local_test.platform.calls import ValidationError
from local_test.platform.control import search
from local_test.platform.control.jobs_api import JobsApi, cut
from local_test.platform.control.model_packages_api import ModelPackagesApi
from local_test.platform.control.pipelines_api import PipelinesApi


class SearchApi(PipelinesApi, JobsApi, ModelPackagesApi):
    """Search, by the Describe operations of each kind of resource."""

    def search(self) -> ActionResult:
        asked, resource = self.params, str(self.params["Resource"])
        kinds: dict[str, Callable[[], Iterator[Mapping[str, Any]]]] = {
            "TrainingJob": lambda: self._found_jobs("TrainingJob"),
            "HyperParameterTuningJob": lambda: self._found_jobs("HyperParameterTuningJob"),
            "Pipeline": self._found_pipelines,
            "PipelineExecution": self._found_executions,
            "Endpoint": self._found_endpoints,
            "Model": self._found_models,
            "ModelPackage": self._found_packages,
        }
        if resource not in kinds:
            raise AWSValidationException(
                f"Search of {resource} is not supported by this emulator: use one of {', '.join(kinds)}."
            )
        try:
            found = search.selected(resource, list(kinds[resource]()), asked)
        except ValidationError as error:
            raise AWSValidationException(error.message) from None
        shown, token = cut(found, asked)
        return ActionResult(
            {
                "Results": [{resource: each} for each in shown],
                "TotalHits": {"Value": len(found), "Relation": "EqualTo"},
                **({"NextToken": token} if token else {}),
            }
        )

    def _found_jobs(self, kind: str) -> Iterator[Mapping[str, Any]]:
        for job in list(self._jobs(kind).values()):
            yield self._tagged_as(job.arn, job.description())

    def _found_pipelines(self) -> Iterator[Mapping[str, Any]]:
        for each in self._platform.pipelines.pipelines(self._owner):
            shown = dict(self._answer(self.describe_pipeline, PipelineName=each.name))
            shown.pop("PipelineDefinition", None)  # not in SearchRecord
            yield self._tagged_as(each.arn, shown)

    def _found_executions(self) -> Iterator[Mapping[str, Any]]:
        for pipeline in self._platform.pipelines.pipelines(self._owner):
            for each in self._platform.pipelines.executions(self._owner, pipeline.name):
                yield self._answer(self.describe_pipeline_execution, PipelineExecutionArn=each.arn)

    def _found_endpoints(self) -> Iterator[Mapping[str, Any]]:
        for each in self._answer(self.list_endpoints)["Endpoints"]:
            shown = self._answer(self.describe_endpoint, EndpointName=each["EndpointName"])
            yield self._tagged_as(shown["EndpointArn"], shown)

    def _found_models(self) -> Iterator[Mapping[str, Any]]:
        for name in list(self.sagemaker_backend._models):
            yield {"Model": self._answer(self.describe_model, ModelName=name)}

    def _found_packages(self) -> Iterator[Mapping[str, Any]]:
        for arn in list(self.sagemaker_backend.model_packages):
            shown = self._answer(self.describe_model_package, ModelPackageName=arn)
            yield self._tagged_as(shown["ModelPackageArn"], shown)

    def _answer(self, operation: Callable[[], Any], **params: Any) -> Mapping[str, Any]:
        """What another operation of this request's account answers."""
        asked, self.params = self.params, params
        try:
            answered = operation()
        finally:
            self.params = asked
        result: Mapping[str, Any] = answered.result
        return result

    def _tagged_as(self, arn: str, shown: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**shown, "Tags": self._answer(self.list_tags, ResourceArn=arn)["Tags"]}

"""The control plane's API: models, endpoint configs and endpoints, stored by moto and validated as SageMaker does.

moto keeps the records and answers Describe and List. The endpoints themselves run in the emulator; before each answer
the state of a running endpoint is copied into moto's record of it.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import camelcase_to_underscores, method_names_from_class
from moto.sagemaker.exceptions import AWSValidationException
from moto.sagemaker.models import FakeEndpointConfig

from local_test.platform.calls import ValidationError
from local_test.platform.control import answers, validation
from local_test.platform.control.jobs_api import JobsEmulator
from local_test.platform.control.model_packages_api import EventsEmulator
from local_test.platform.control.search_api import SearchApi
from local_test.platform.fleet import plans
from local_test.platform.fleet.endpoint import Endpoint, Size, retained
from local_test.platform.fleet.plans import Config
from local_test.platform.monitoring.monitor import Monitor

Key = tuple[str, str, str]  # account, region, name
NOUNS = {"model": "model", "endpoint-config": "endpoint configuration", "endpoint": "endpoint"}  # AWS's, by ARN type
Extras = Mapping[str, str]  # a member of a request -> the attribute of moto's object that Describe shows it from
MODEL_EXTRAS = {
    "InferenceExecutionConfig": "inference_execution_config",
    "EnableNetworkIsolation": "enable_network_isolation",
}
CONFIG_EXTRAS = {
    "ShadowProductionVariants": "shadow_production_variants",
    "ExplainerConfig": "explainer_config",
    "ExecutionRoleArn": "execution_role_arn",
    "VpcConfig": "vpc_config",
    "EnableNetworkIsolation": "enable_network_isolation",
}
# Members of DescribeEndpoint's answer that come from the running endpoint.
DESCRIBED = (
    *("EndpointStatus", "FailureReason", "EndpointConfigName", "LastModifiedTime", "ProductionVariants"),
    *("ShadowProductionVariants", "PendingDeploymentSummary", "LastDeploymentConfig", "AsyncInferenceConfig"),
)


class ControlledEmulator(JobsEmulator, EventsEmulator, Protocol):
    """The part of the emulator that the control plane uses."""

    changing: threading.Lock
    monitor: Monitor

    def create_endpoint(self, key: Key, config: Config, deployment: Mapping[str, Any] | None) -> None: ...
    def endpoint(self, key: Key) -> Endpoint | None: ...
    def forget_endpoint(self, key: Key) -> None: ...
    def has_data(self, uri: str) -> bool:
        """Whether an S3 object exists at this URI, or below it if it ends with '/'."""
        ...


class SageMaker(SearchApi):
    """One request of the control plane; each base class has the operations of one area."""

    emulator: ClassVar[ControlledEmulator]

    def call_action(self) -> Any:
        action = self._get_action()
        if action and camelcase_to_underscores(action) not in method_names_from_class(type(self)):
            unsupported = AWSValidationException(f"{action} is not supported by this emulator.")
            return self.serialized(ActionResult(unsupported))
        with self.emulator.changing:
            status, headers, body = super().call_action()
        return status, headers, answers.described(action, body) if status == 200 else body

    # Models

    def create_model(self) -> ActionResult:
        backend, name = self.sagemaker_backend, self.params["ModelName"]
        if name in backend._models:
            raise self._exists("model", name)
        _validate(validation.check_model, self.params)
        for uri in plans.data(self.params):
            if not self.emulator.has_data(uri):
                raise AWSValidationException(f"Could not find model data at {uri}.")
        result = super().create_model()
        _extend(backend._models[name], self.params, MODEL_EXTRAS)
        self.emulator.register(backend._models, name)
        return result

    def describe_model(self) -> ActionResult:
        self._require("model", self.sagemaker_backend._models, "ModelName")
        return super().describe_model()

    def delete_model(self) -> ActionResult:
        self._require("model", self.sagemaker_backend._models, "ModelName")
        return super().delete_model()

    def _model(self, name: str) -> dict[str, Any] | None:
        model = self.sagemaker_backend._models.get(name)
        return None if model is None else self._description(model)

    def _models(self) -> dict[str, dict[str, Any]]:
        return {name: self._description(model) for name, model in self.sagemaker_backend._models.items()}

    def _description(self, model: Any) -> dict[str, Any]:
        """A model's description, with image and data of its model packages filled in."""
        described: dict[str, Any] = model.response_object
        return {
            **described,
            "PrimaryContainer": self._with_package(described.get("PrimaryContainer") or {}),
            "Containers": [self._with_package(each) for each in described.get("Containers") or ()],
        }

    def _with_package(self, container: dict[str, Any]) -> dict[str, Any]:
        package = container.get("ModelPackageName")
        if not package:
            return container
        found = self._package(package)
        return {**found.inference_specification["Containers"][0], **container}

    # Endpoint configs

    def create_endpoint_config(self) -> ActionResult:
        backend, name = self.sagemaker_backend, self.params["EndpointConfigName"]
        if name in backend.endpoint_configs:
            raise self._exists("endpoint-config", name)
        variants = [each for kind in plans.KINDS for each in self.params.get(kind) or ()]
        for variant in variants:
            if variant["ModelName"] not in backend._models:
                raise self._missing("model", variant["ModelName"])
        _validate(validation.check_config, self.params, self._models())
        config = EndpointConfig(  # type: ignore[abstract]  # as moto itself does
            account_id=backend.account_id,
            region_name=backend.region_name,
            endpoint_config_name=name,
            production_variants=self.params["ProductionVariants"],
            async_inference_config=self.params.get("AsyncInferenceConfig"),
            data_capture_config=self.params.get("DataCaptureConfig"),
            tags=self.params.get("Tags"),
            kms_key_id=self.params.get("KmsKeyId"),
        )
        _extend(config, self.params, CONFIG_EXTRAS)
        backend.endpoint_configs[name] = config
        self.emulator.register(backend.endpoint_configs, name)
        return ActionResult({"EndpointConfigArn": config.endpoint_config_arn})

    def describe_endpoint_config(self) -> ActionResult:
        self._require("endpoint-config", self.sagemaker_backend.endpoint_configs, "EndpointConfigName")
        return super().describe_endpoint_config()

    def delete_endpoint_config(self) -> ActionResult:
        self._require("endpoint-config", self.sagemaker_backend.endpoint_configs, "EndpointConfigName")
        return super().delete_endpoint_config()

    def _config(self, name: str) -> Config:
        found = self.sagemaker_backend.endpoint_configs.get(name)
        if found is None:
            raise self._missing("endpoint-config", name)
        models, described = self._models(), found.response_object
        for kind in plans.KINDS:
            for variant in described.get(kind) or ():
                if variant["ModelName"] not in models:
                    raise self._missing("model", variant["ModelName"])
        return plans.config(described, models)

    # Endpoints

    def create_endpoint(self) -> ActionResult:
        backend, name = self.sagemaker_backend, self.params["EndpointName"]
        self._refresh()
        if name in backend.endpoints:
            raise self._exists("endpoint", name)
        config = self._config(self.params["EndpointConfigName"])
        result = super().create_endpoint()
        self.emulator.create_endpoint(self._key(name), config, self.params.get("DeploymentConfig"))
        self.emulator.register(backend.endpoints, name)
        return result

    def update_endpoint(self) -> ActionResult:
        endpoint, params = self._changeable_endpoint(), self.params
        if endpoint.status == "Failed":
            arn = self._arn("endpoint", endpoint.name)
            raise AWSValidationException(f'Cannot update endpoint "{arn}" in status Failed: it can only be deleted.')
        config = self._config(params["EndpointConfigName"])
        deployment = params.get("DeploymentConfig")
        if params.get("RetainDeploymentConfig"):
            deployment = deployment or endpoint.deployment_config
        if deployment and deployment.get("RollingUpdatePolicy") and len(config.variants) > 1:
            raise AWSValidationException("A rolling update is not supported for an endpoint with several variants.")
        counts: dict[str, int] = {}
        if params.get("RetainAllVariantProperties"):
            excluded = [each["VariantPropertyType"] for each in params.get("ExcludeRetainedVariantProperties") or ()]
            config, counts = retained(config, endpoint.sizes, excluded)
        endpoint.update(config, deployment, counts)
        return ActionResult({"EndpointArn": self._arn("endpoint", endpoint.name)})

    def update_endpoint_weights_and_capacities(self) -> ActionResult:
        endpoint = self._changeable_endpoint()
        desired: dict[str, Size] = {}
        for each in self.params["DesiredWeightsAndCapacities"]:
            name = each["VariantName"]
            if name in desired:
                raise AWSValidationException(f'The variant name "{name}" was non-unique within the request.')
            if name not in endpoint.sizes:
                config = endpoint.config.name
                raise AWSValidationException(
                    f'The variant name(s) "{name}" is/are not present within endpoint configuration "{config}".'
                )
            desired[name] = Size(each.get("DesiredWeight"), each.get("DesiredInstanceCount"))
        endpoint.resize(desired)
        return ActionResult({"EndpointArn": self._arn("endpoint", endpoint.name)})

    def delete_endpoint(self) -> ActionResult:
        self._changeable_endpoint().delete()
        return EmptyResult()

    def describe_endpoint(self) -> ActionResult:
        self._refresh()
        self._require("endpoint", self.sagemaker_backend.endpoints, "EndpointName")
        return super().describe_endpoint()

    def list_endpoints(self) -> ActionResult:
        self._refresh()
        return super().list_endpoints()

    def _changeable_endpoint(self) -> Endpoint:
        """The endpoint that the request names. Raises AWSValidationException if it is missing or being changed."""
        self._refresh()
        name = self.params["EndpointName"]
        endpoint = self.emulator.endpoint(self._key(name))
        if endpoint is None:
            raise self._missing("endpoint", name)
        if endpoint.busy:
            raise AWSValidationException(f'Cannot update in-progress endpoint "{self._arn("endpoint", name)}".')
        return endpoint

    def _refresh(self) -> None:
        """Copies the state of all endpoints into moto's records, and removes deleted endpoints."""
        records = self.sagemaker_backend.endpoints
        for name in list(records):
            endpoint = self.emulator.endpoint(self._key(name))
            if endpoint is None or endpoint.deleted:
                del records[name]
                self.emulator.forget_endpoint(self._key(name))
                continue
            described = endpoint.description()
            for member in DESCRIBED:
                setattr(records[name], camelcase_to_underscores(member), described.get(member))

    # Tags

    def list_tags(self) -> ActionResult:
        kind, _, name = self.params["ResourceArn"].rpartition(":")[2].partition("/")
        backend = self.sagemaker_backend
        records: dict[str, Mapping[str, Any]] = {
            "model": backend._models,
            "endpoint-config": backend.endpoint_configs,
            "endpoint": backend.endpoints,
        }
        if kind in records and name not in records[kind]:
            raise self._missing(kind, name)
        if kind == "model-package":
            return ActionResult({"Tags": self._package(self.params["ResourceArn"]).tags or []})
        return super().list_tags()

    # Names

    def _require(self, kind: str, records: Mapping[str, Any], member: str) -> None:
        if self.params[member] not in records:
            raise self._missing(kind, self.params[member])

    def _missing(self, kind: str, name: str) -> AWSValidationException:
        return AWSValidationException(f'Could not find {NOUNS[kind]} "{self._arn(kind, name)}".')

    def _exists(self, kind: str, name: str) -> AWSValidationException:
        return AWSValidationException(f'Cannot create already existing {NOUNS[kind]} "{self._arn(kind, name)}".')

    def _key(self, name: str) -> Key:
        return self.current_account, self.region, name

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.current_account}:{kind}/{name}"


class EndpointConfig(FakeEndpointConfig):
    """moto's endpoint config without its check of instance types, whose list is old; validation.py checks them."""

    def validate_instance_type(self, instance_type: str) -> None:
        pass


def _validate(check: Callable[..., None], *arguments: Any) -> None:
    """Runs a check; its ValidationError becomes ValidationException, the control plane's code."""
    try:
        check(*arguments)
    except ValidationError as error:
        raise AWSValidationException(error.message) from None


def _extend(record: Any, params: Mapping[str, Any], extras: Extras) -> None:
    """Sets the members of a request that moto drops as attributes that Describe shows."""
    for member, attribute in extras.items():
        if params.get(member) is not None:
            setattr(record, attribute, params[member])

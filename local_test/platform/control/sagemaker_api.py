"""The control plane's endpoints: they live, and moto's records say what they are at."""

import threading
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, ClassVar, Protocol

from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import camelcase_to_underscores, method_names_from_class
from moto.sagemaker.exceptions import AWSValidationException
from moto.sagemaker.models import FakeEndpointConfig
from moto.sagemaker.responses import SageMakerResponse

from local_test.platform.calls import ValidationError
from local_test.platform.control import validation
from local_test.platform.fleet import plans
from local_test.platform.fleet.endpoint import Endpoint, Size, retained
from local_test.platform.fleet.plans import Config

Key = tuple[str, str, str]  # account, region, name
WORDS = {"model": "model", "endpoint-config": "endpoint configuration", "endpoint": "endpoint"}  # AWS's, by ARN's kind
Extras = Mapping[str, str]  # a request's member -> the attribute under which moto's object shows it
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


class Owner(Protocol):
    """The platform, as far as the control plane needs it."""

    changing: threading.Lock

    def begin(self, key: Key, config: Config, deployment: Mapping[str, Any] | None) -> None: ...
    def endpoint(self, key: Key) -> Endpoint | None: ...
    def forget(self, key: Key) -> None: ...
    def made(self, where: MutableMapping[str, Any], name: str) -> None:
        """To be removed with the platform."""
        ...

    def has_data(self, uri: str) -> bool:
        """Whether there is an S3 object at this address, or below it where it ends with '/'."""
        ...


class Definitions(SageMakerResponse):
    """One request for what endpoints are made of."""

    owner: ClassVar[Owner]

    def call_action(self) -> Any:
        action = self._get_action()
        if action and camelcase_to_underscores(action) not in method_names_from_class(type(self)):
            why = f"{action} is not played by this emulator."
            return self.serialized(ActionResult(AWSValidationException(why)))
        with self.owner.changing:
            return super().call_action()

    # Models

    def create_model(self) -> ActionResult:
        backend, name = self.sagemaker_backend, self.params["ModelName"]
        if name in backend._models:
            raise self._exists("model", name)
        _refuse(validation.check_model, self.params)
        for uri in plans.data(self.params):
            if not self.owner.has_data(uri):
                raise AWSValidationException(f"Could not find model data at {uri}.")
        made = super().create_model()
        _extend(backend._models[name], self.params, MODEL_EXTRAS)
        self.owner.made(backend._models, name)
        return made

    def describe_model(self) -> ActionResult:
        self._must_be("model", self.sagemaker_backend._models, "ModelName")
        return super().describe_model()

    def delete_model(self) -> ActionResult:
        self._must_be("model", self.sagemaker_backend._models, "ModelName")
        return super().delete_model()

    def _models(self) -> dict[str, dict[str, Any]]:
        return {name: self._described(model) for name, model in self.sagemaker_backend._models.items()}

    def _described(self, model: Any) -> dict[str, Any]:
        """A model as it is described, with the image and data of its packages."""
        said: dict[str, Any] = model.response_object
        return {
            **said,
            "PrimaryContainer": self._unpacked(said.get("PrimaryContainer") or {}),
            "Containers": [self._unpacked(each) for each in said.get("Containers") or ()],
        }

    def _unpacked(self, container: dict[str, Any]) -> dict[str, Any]:
        package = container.get("ModelPackageName")
        if not package:
            return container
        found = self.sagemaker_backend.describe_model_package(package)
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
        _refuse(validation.check_config, self.params, self._models())
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
        self.owner.made(backend.endpoint_configs, name)
        return ActionResult({"EndpointConfigArn": config.endpoint_config_arn})

    def describe_endpoint_config(self) -> ActionResult:
        self._must_be("endpoint-config", self.sagemaker_backend.endpoint_configs, "EndpointConfigName")
        return super().describe_endpoint_config()

    def delete_endpoint_config(self) -> ActionResult:
        self._must_be("endpoint-config", self.sagemaker_backend.endpoint_configs, "EndpointConfigName")
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

    def _must_be(self, kind: str, records: Mapping[str, Any], member: str) -> None:
        if self.params[member] not in records:
            raise self._missing(kind, self.params[member])

    def _missing(self, kind: str, name: str) -> AWSValidationException:
        return AWSValidationException(f'Could not find {WORDS[kind]} "{self._arn(kind, name)}".')

    def _exists(self, kind: str, name: str) -> AWSValidationException:
        return AWSValidationException(f'Cannot create already existing {WORDS[kind]} "{self._arn(kind, name)}".')

    def _key(self, name: str) -> Key:
        return self.current_account, self.region, name

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.current_account}:{kind}/{name}"


class EndpointConfig(FakeEndpointConfig):
    """moto's list of instance types is old; refusals.py has checked them."""

    def validate_instance_type(self, instance_type: str) -> None:
        pass


def _refuse(check: Callable[..., None], *given: Any) -> None:
    """A check of ours, its refusal in the control plane's words: there the code is ValidationException."""
    try:
        check(*given)
    except ValidationError as error:
        raise AWSValidationException(error.message) from None


def _extend(record: Any, params: Mapping[str, Any], extras: Extras) -> None:
    """What moto drops of a request, as attributes that it shows."""
    for member, attribute in extras.items():
        if params.get(member) is not None:
            setattr(record, attribute, params[member])


# Members of DescribeEndpoint that an endpoint itself knows.
DESCRIBED = (
    *("EndpointStatus", "FailureReason", "EndpointConfigName", "LastModifiedTime", "ProductionVariants"),
    *("ShadowProductionVariants", "PendingDeploymentSummary", "LastDeploymentConfig", "AsyncInferenceConfig"),
)


class SageMaker(Definitions):
    """One request of the control plane."""

    def create_endpoint(self) -> ActionResult:
        backend, name = self.sagemaker_backend, self.params["EndpointName"]
        self._refresh()
        if name in backend.endpoints:
            raise self._exists("endpoint", name)
        config = self._config(self.params["EndpointConfigName"])
        made = super().create_endpoint()
        self.owner.begin(self._key(name), config, self.params.get("DeploymentConfig"))
        self.owner.made(backend.endpoints, name)
        return made

    def update_endpoint(self) -> ActionResult:
        endpoint, params = self._settled(), self.params
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
        endpoint = self._settled()
        wanted: dict[str, Size] = {}
        for each in self.params["DesiredWeightsAndCapacities"]:
            name = each["VariantName"]
            if name in wanted:
                raise AWSValidationException(f'The variant name "{name}" was non-unique within the request.')
            if name not in endpoint.sizes:
                config = endpoint.config.name
                raise AWSValidationException(
                    f'The variant name(s) "{name}" is/are not present within endpoint configuration "{config}".'
                )
            wanted[name] = Size(each.get("DesiredWeight"), each.get("DesiredInstanceCount"))
        endpoint.resize(wanted)
        return ActionResult({"EndpointArn": self._arn("endpoint", endpoint.name)})

    def delete_endpoint(self) -> ActionResult:
        self._settled().delete()
        return EmptyResult()

    def describe_endpoint(self) -> ActionResult:
        self._refresh()
        self._must_be("endpoint", self.sagemaker_backend.endpoints, "EndpointName")
        return super().describe_endpoint()

    def list_endpoints(self) -> ActionResult:
        self._refresh()
        return super().list_endpoints()

    def _settled(self) -> Endpoint:
        """The endpoint that is named, when it may be changed."""
        self._refresh()
        name = self.params["EndpointName"]
        endpoint = self.owner.endpoint(self._key(name))
        if endpoint is None:
            raise self._missing("endpoint", name)
        if endpoint.busy:
            raise AWSValidationException(f'Cannot update in-progress endpoint "{self._arn("endpoint", name)}".')
        return endpoint

    def _refresh(self) -> None:
        """Has moto's objects say what the endpoints are at."""
        records = self.sagemaker_backend.endpoints
        for name in list(records):
            endpoint = self.owner.endpoint(self._key(name))
            if endpoint is None or endpoint.gone:
                del records[name]
                self.owner.forget(self._key(name))
                continue
            said = endpoint.description()
            for member in DESCRIBED:
                setattr(records[name], camelcase_to_underscores(member), said.get(member))

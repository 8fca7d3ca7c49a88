"""The control plane's endpoints: they live, and moto's records say what they are at."""

from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import camelcase_to_underscores
from moto.sagemaker.exceptions import AWSValidationException

from local_test.platform.definitions import Definitions
from local_test.platform.endpoints import Endpoint
from local_test.platform.sizes import Size, retained

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

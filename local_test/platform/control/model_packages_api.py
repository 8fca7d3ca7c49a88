"""The control plane's API of model packages: moto's records, with AWS's errors, defaults and events."""

from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, Protocol

from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.exceptions import AWSValidationException
from moto.sagemaker.responses import SageMakerResponse

from local_test.platform.control import event_bridge
from local_test.platform.control.event_bridge import Event

CHANGED = "SageMaker Model Package State Change"


class EventsEmulator(Protocol):
    """The part of the emulator that the API of model packages uses."""

    def register(self, collection: MutableMapping[str, Any], name: str) -> None: ...
    def deliver(self, account: str, region: str, event: Event) -> None:
        """Sends an event to the rules of EventBridge that match it, without a wait."""
        ...


class ModelPackagesApi(SageMakerResponse):
    """The operations of model packages and their groups, of one request."""

    emulator: ClassVar[Any]

    def create_model_package_group(self) -> ActionResult:
        groups, name = self.sagemaker_backend.model_package_groups, self.params["ModelPackageGroupName"]
        if name in groups:
            raise AWSValidationException(f"Model Package Group already exists: {self._package_arn(name, 'group')}")
        result = super().create_model_package_group()
        self._packages_emulator.register(groups, name)
        return result

    def delete_model_package_group(self) -> ActionResult:
        groups, name = self.sagemaker_backend.model_package_groups, self.params["ModelPackageGroupName"]
        name = name.rpartition("/")[2]
        if name not in groups:
            raise AWSValidationException(f"ModelPackageGroup {self._package_arn(name, 'group')} does not exist.")
        if any(each.model_package_group_name == name for each in self.sagemaker_backend.model_packages.values()):
            raise AWSValidationException(f"Model Package Group cannot be deleted: {name} has model packages.")
        del groups[name]
        return EmptyResult()

    def create_model_package(self) -> ActionResult:
        backend, group = self.sagemaker_backend, self.params.get("ModelPackageGroupName")
        if group:
            self.params["ModelPackageGroupName"] = group.rpartition("/")[2]
            self.params.setdefault("ModelApprovalStatus", "PendingManualApproval")
        result = super().create_model_package()
        arn = list(backend.model_packages)[-1]
        self._packages_emulator.register(backend.model_packages, arn)
        self._packages_emulator.register(backend.model_package_name_mapping, arn)
        self._announce(backend.model_packages[arn], [])
        return result

    def describe_model_package(self) -> ActionResult:
        return ActionResult(self._package(self.params["ModelPackageName"]).gen_response_object())

    def update_model_package(self) -> ActionResult:
        """Changes the members that the request has; moto would remove the others."""
        found = self._package(self.params["ModelPackageArn"])
        before = found.model_approval_status
        kept = {
            "ModelApprovalStatus": before,
            "ApprovalDescription": found.approval_description,
            "CustomerMetadataProperties": found.customer_metadata_properties,
        }
        given = {key: self.params[key] for key in kept if self.params.get(key) is not None}
        metadata = {**(kept["CustomerMetadataProperties"] or {}), **given.get("CustomerMetadataProperties", {})}
        self.params.update({**kept, **given, "CustomerMetadataProperties": metadata or None})
        result = super().update_model_package()
        if given:
            self._announce(found, list(given))
        return result

    def delete_model_package(self) -> ActionResult:
        backend = self.sagemaker_backend
        found = self._package(self.params["ModelPackageName"])
        del backend.model_packages[found.arn]
        for name in [each for each, arn in backend.model_package_name_mapping.items() if arn == found.arn]:
            del backend.model_package_name_mapping[name]
        return EmptyResult()

    def _package(self, name: str) -> Any:
        backend = self.sagemaker_backend
        found = backend.model_packages.get(backend.model_package_name_mapping.get(name, name))
        if found is None:
            arn = name if name.startswith("arn:") else self._package_arn(name)
            raise AWSValidationException(f"ModelPackage {arn} does not exist.")
        return found

    def _announce(self, package: Any, fields: list[str]) -> None:
        """AWS's event: docs.aws.amazon.com/sagemaker/latest/dg/automating-sagemaker-with-eventbridge.html"""
        detail: Mapping[str, Any] = {**package.gen_response_object(), "UpdatedModelPackageFields": fields}
        account, region = self.current_account, self.region
        sent = event_bridge.event(account, region, CHANGED, [package.arn], detail)
        self._packages_emulator.deliver(account, region, sent)

    @property
    def _packages_emulator(self) -> EventsEmulator:
        emulator: EventsEmulator = self.emulator
        return emulator

    def _package_arn(self, name: str, kind: str = "") -> str:
        noun = "model-package-group" if kind else "model-package"
        return f"arn:aws:sagemaker:{self.region}:{self.current_account}:{noun}/{name}"

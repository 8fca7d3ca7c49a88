"""Application Auto Scaling's API on top of moto, for variants of endpoints; the monitor scales them.

docs.aws.amazon.com/autoscaling/application/APIReference
"""

import json
from typing import Any, ClassVar

from moto.applicationautoscaling.exceptions import AWSValidationException
from moto.applicationautoscaling.models import ApplicationAutoscalingBackend, FakeApplicationAutoscalingPolicy
from moto.applicationautoscaling.responses import ApplicationAutoScalingResponse, _build_alarms, _build_policy
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.exceptions import JsonRESTError
from moto.core.utils import camelcase_to_underscores, method_names_from_class

from local_test.platform.calls import ValidationError
from local_test.platform.control.sagemaker_api import ControlledEmulator
from local_test.platform.monitoring import scaling
from local_test.platform.monitoring.scaling import COUNT

SAGEMAKER = "sagemaker"
TARGET = ("ServiceNamespace", "ResourceId", "ScalableDimension")
OF_MOTO = ApplicationAutoScalingResponse
INTERNALS: dict[Any, tuple[str, ...]] = {  # as those of moto_app
    ApplicationAutoScalingResponse: (
        *("register_scalable_target", "put_scaling_policy", "_get_param", "_validate_params"),
        *("describe_scaling_policies", "delete_scaling_policy", "applicationautoscaling_backend"),
    ),
    ApplicationAutoscalingBackend: ("targets", "policies", "scheduled_actions"),
}


class ApplicationAutoScaling(ApplicationAutoScalingResponse):
    """One request to Application Auto Scaling."""

    emulator: ClassVar[ControlledEmulator]

    def call_action(self) -> Any:
        action = self._get_action()
        if action and camelcase_to_underscores(action) not in method_names_from_class(type(self)):
            raise AWSValidationException(f"{action} is not supported by this emulator.")
        return super().call_action()

    # Targets

    def register_scalable_target(self) -> str:
        namespace, resource, dimension = self._target()
        if namespace != SAGEMAKER:
            return super().register_scalable_target()
        try:
            self._check(resource, dimension)
        except ValidationError as error:
            raise AWSValidationException(error.message) from None
        answer = super().register_scalable_target()
        self.emulator.monitor.scaler.registered(self.current_account, self.region)
        self.emulator.register(self.applicationautoscaling_backend.targets[COUNT], resource)
        return answer

    def _check(self, resource: str, dimension: str) -> None:
        """Raises ValidationError unless the resource is a variant in service that can be scaled."""
        name, variant = scaling.variant_of(resource)
        if dimension != COUNT:
            raise ValidationError(f"ScalableDimension {dimension} is not supported by this emulator: use {COUNT}.")
        endpoint = self.emulator.endpoint((self.current_account, self.region, name))
        arn = f"arn:aws:sagemaker:{self.region}:{self.current_account}:endpoint/{name.lower()}"
        if endpoint is None or endpoint.deleted:
            raise ValidationError(f'Could not find endpoint "{arn}".')
        plan = next((each for each in endpoint.config.variants if each.name == variant), None)
        if plan is None:
            raise ValidationError(f'Could not find variant "{variant}" of endpoint "{arn}".')
        if plan.serverless:
            raise ValidationError(f"Variant {variant} is serverless: it has no instances to scale.")
        known = self.applicationautoscaling_backend.targets.get(COUNT, {}).get(resource)
        least, most = (self._get_int_param(each) for each in ("MinCapacity", "MaxCapacity"))
        if known is None and (least is None or most is None):
            raise ValidationError("A new scalable target needs both MinCapacity and MaxCapacity.")
        least = least if least is not None else known and known.min_capacity
        most = most if most is not None else known and known.max_capacity
        assert least is not None
        assert most is not None
        if least > most:
            raise ValidationError("Maximum capacity cannot be less than minimum capacity.")
        if least < 1 and not plan.asynchronous:
            raise ValidationError(
                f"MinCapacity must be at least 1 for variant {variant}: only an asynchronous endpoint scales to zero."
            )

    def deregister_scalable_target(self) -> str:
        namespace, resource, dimension = self._target()
        self._require_target()
        if namespace != SAGEMAKER or dimension != COUNT:
            return super().deregister_scalable_target()
        self.emulator.monitor.scaler.deregister(self.current_account, self.region, resource)
        return "{}"

    # Policies

    def put_scaling_policy(self) -> str:
        namespace, resource, _ = self._target()
        if namespace != SAGEMAKER:
            return super().put_scaling_policy()
        self._require_target()
        backend = self.applicationautoscaling_backend
        name = self._get_param("PolicyName")
        key = FakeApplicationAutoscalingPolicy.formulate_key(*self._target(), name)
        before = backend.policies.get(key)
        kind = self._get_param("PolicyType") or (before.policy_type if before else "StepScaling")
        config = self._get_param(f"{kind}PolicyConfiguration")
        if kind == "PredictiveScaling" or (config is None and before is None):
            raise AWSValidationException(f"{kind} needs a {kind}PolicyConfiguration that this emulator supports.")
        policy = FakeApplicationAutoscalingPolicy(
            account_id=self.current_account,
            region_name=self.region,
            policy_name=name,
            service_namespace=namespace,
            resource_id=resource,
            scalable_dimension=COUNT,
            policy_type=kind,
            policy_body=config if config is not None else before._policy_body,  # type: ignore[union-attr]
        )
        if before is not None:
            policy.policy_arn, policy.creation_time = before.policy_arn, before.creation_time
        try:
            self._create_alarms(policy)
        except ValidationError as error:
            raise AWSValidationException(error.message) from None
        if before is not None:
            before.delete_alarms(self.current_account, self.region)
        backend.policies[key] = policy
        self.emulator.register(backend.policies, key)
        return json.dumps({"PolicyARN": policy.policy_arn, "Alarms": _build_alarms(policy)})

    def _create_alarms(self, policy: FakeApplicationAutoscalingPolicy) -> None:
        config = policy.target_tracking_scaling_policy_configuration
        if config is None:
            return
        cloudwatch = cloudwatch_backends[self.current_account][self.region]
        for request in scaling.tracking_alarms(policy, config):
            policy.alarms.append(cloudwatch.put_metric_alarm(**request))
            self.emulator.register(cloudwatch.alarms, request["name"])
            self.emulator.monitor.alarms.created(self.current_account, self.region, cloudwatch.alarms, request["name"])

    def describe_scaling_policies(self) -> str:
        namespace, resource, dimension = (self._get_param(each) for each in TARGET)
        names = self._get_param("PolicyNames")
        found = [
            each
            for each in self.applicationautoscaling_backend.policies.values()
            if each.service_namespace == namespace
            and resource in (None, each.resource_id)
            and dimension in (None, each.scalable_dimension)
            and (not names or each.policy_name in names)
        ]
        return self._page("ScalingPolicies", [_build_policy(each) for each in found])

    def delete_scaling_policy(self) -> str:
        key = FakeApplicationAutoscalingPolicy.formulate_key(*self._target(), self._get_param("PolicyName"))
        if key not in self.applicationautoscaling_backend.policies:
            raise JsonRESTError("ObjectNotFoundException", f"No scaling policy found for {self._named_target()}")
        return super().delete_scaling_policy()

    def put_scheduled_action(self) -> str:
        namespace, _, _ = self._target()
        if namespace == SAGEMAKER:
            raise AWSValidationException(
                "PutScheduledAction is not supported by this emulator for endpoints: change MinCapacity and "
                "MaxCapacity with RegisterScalableTarget."
            )
        return super().put_scheduled_action()

    # Activities

    def describe_scaling_activities(self) -> str:
        namespace, resource, dimension = (self._get_param(each) for each in TARGET)
        found = [
            each
            for each in self.emulator.monitor.scaler.activities(self.current_account, self.region)
            if each["ServiceNamespace"] == namespace
            and resource in (None, each["ResourceId"])
            and dimension in (None, each["ScalableDimension"])
        ]
        return self._page("ScalingActivities", found)

    def _page(self, member: str, found: list[dict[str, Any]]) -> str:
        start, size = int(self._get_param("NextToken") or 0), self._get_int_param("MaxResults") or 50
        answer: dict[str, Any] = {member: found[start : start + size]}
        if len(found) > start + size:
            answer["NextToken"] = str(start + size)
        return json.dumps(answer)

    def _target(self) -> tuple[str, str, str]:
        self._validate_params()
        namespace, resource, dimension = (self._get_param(each) for each in TARGET)
        return namespace, resource, dimension

    def _named_target(self) -> str:
        namespace, resource, dimension = self._target()
        return f"service namespace: {namespace}, resource ID: {resource}, scalable dimension: {dimension}"

    def _require_target(self) -> None:
        _, resource, dimension = self._target()
        if resource not in self.applicationautoscaling_backend.targets.get(dimension, {}):
            raise JsonRESTError("ObjectNotFoundException", f"No scalable target registered for {self._named_target()}")

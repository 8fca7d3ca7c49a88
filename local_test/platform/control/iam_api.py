"""IAM and STS as the SageMaker SDKs ask them: the identity of the caller, and whether a role permits an action.

The caller is the session of an execution role, as in SageMaker Studio. moto stores roles and policies, and does
not simulate them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from moto.core.config import default_user_config
from moto.core.responses import ActionResult
from moto.iam.models import IAMBackend, iam_backends
from moto.iam.responses import IamResponse
from moto.sts.models import sts_backends
from moto.sts.responses import TokenResponse
from moto.utilities.utils import get_partition

ROLE = "AmazonSageMaker-ExecutionRole"
SESSION = "SageMaker"
SERVICES = ("sagemaker.amazonaws.com", "lambda.amazonaws.com", "events.amazonaws.com", "bedrock.amazonaws.com")
POLICIES = ("AmazonSageMakerFullAccess", "AmazonS3FullAccess", "AWSLambda_FullAccess", "CloudWatchFullAccessV2")
UNKNOWN_KEY = "AKIAIOSFODNN7EXAMPLE"  # moto's user id for the caller with an access key that it did not issue

Document = Mapping[str, Any]

default_user_config["iam"] = {"load_aws_managed_policies": True}  # type: ignore[typeddict-unknown-key, unused-ignore]


def execution_role(account: str, partition: str = "aws") -> str:
    """ARN of the role that every account of the emulator has."""
    return f"arn:{partition}:iam::{account}:role/service-role/{ROLE}"


def create_execution_role(backend: IAMBackend) -> None:
    """Creates the role and attaches AWS's policies, unless the account has it."""
    if any(role.name == ROLE for role in backend.get_roles()):
        return
    trust = {"Effect": "Allow", "Principal": {"Service": list(SERVICES)}, "Action": "sts:AssumeRole"}
    backend.create_role(
        role_name=ROLE,
        assume_role_policy_document=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
        path="/service-role/",
        permissions_boundary=None,
        description="Execution role of the emulator",
        tags=[],
        max_session_duration="3600",
    )
    for name in POLICIES:
        backend.attach_role_policy(f"arn:{backend.partition}:iam::aws:policy/{name}", ROLE)


def assumed(account: str, region: str, role: str) -> dict[str, str]:
    """The environment variables with the credentials of a role, as SageMaker assumes it.

    Plain variables, and not the address in AWS_CONTAINER_CREDENTIALS_RELATIVE_URI that AWS sets: clients fetch that
    from 169.254.170.2, at which only root could listen.
    """
    backend = sts_backends[account][get_partition(region)]
    session = backend.assume_role(region, SESSION, role, "", 43200, "")
    return {
        "AWS_ACCESS_KEY_ID": session.access_key_id,
        "AWS_SECRET_ACCESS_KEY": session.secret_access_key,
        "AWS_SESSION_TOKEN": session.session_token,
    }


class Sts(TokenResponse):
    """One request of STS."""

    def get_caller_identity(self) -> ActionResult:
        """A user or session that moto knows, else a session of the execution role."""
        user, arn, account = self.backend.get_caller_identity(self.get_access_key(), self.region)
        if user == UNKNOWN_KEY:
            partition = get_partition(self.region)
            backend = iam_backends[account][partition]
            create_execution_role(backend)
            user = f"{backend.get_role(ROLE).id}:{SESSION}"
            arn = f"arn:{partition}:sts::{account}:assumed-role/{ROLE}/{SESSION}"
        return ActionResult({"UserId": user, "Account": account, "Arn": arn})


class Iam(IamResponse):
    """One request of IAM."""

    def call_action(self) -> Any:
        create_execution_role(self.backend)
        return super().call_action()

    def simulate_principal_policy(self) -> ActionResult:
        documents = _documents(self.backend, self.params["PolicySourceArn"])
        return self._simulated([*documents, *map(json.loads, self.params.get("PolicyInputList") or ())])

    def simulate_custom_policy(self) -> ActionResult:
        return self._simulated([json.loads(each) for each in self.params.get("PolicyInputList") or ()])

    def _simulated(self, documents: Sequence[Document]) -> ActionResult:
        resources = self.params.get("ResourceArns") or ["*"]
        context = {
            each["ContextKeyName"].lower(): list(each.get("ContextKeyValues") or ())
            for each in self.params.get("ContextEntries") or ()
        }
        results = [
            {
                "EvalActionName": action,
                "EvalResourceName": resource,
                "EvalDecision": decision(documents, action, resource, context),
                "MatchedStatements": [],
                "MissingContextValues": [],
            }
            for action in self.params["ActionNames"]
            for resource in resources
        ]
        return ActionResult({"EvaluationResults": results, "IsTruncated": False})


def decision(documents: Iterable[Document], action: str, resource: str, context: Mapping[str, Sequence[str]]) -> str:
    """`allowed`, `explicitDeny` or `implicitDeny`, by IAM's rule that a Deny wins over every Allow.

    docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
    """
    effects = {
        statement["Effect"]
        for document in documents
        for statement in _list(document["Statement"])
        if _applies(statement, action, resource, context)
    }
    return "explicitDeny" if "Deny" in effects else "allowed" if "Allow" in effects else "implicitDeny"


def _applies(statement: Document, action: str, resource: str, context: Mapping[str, Sequence[str]]) -> bool:
    for name, value in (("Action", action.lower()), ("Resource", resource)):
        patterns = _list(statement.get(name, statement.get(f"Not{name}", "*")))
        matches = any(fnmatchcase(value, each.lower() if name == "Action" else each) for each in patterns)
        if matches == (f"Not{name}" in statement):
            return False
    return all(
        _holds(operator, _list(wanted), context.get(key.lower()))
        for operator, tests in statement.get("Condition", {}).items()
        for key, wanted in tests.items()
    )


def _holds(operator: str, wanted: Sequence[Any], given: Sequence[str] | None) -> bool:
    """Whether a condition of a string, ARN or Bool operator holds. Without a value only ...IfExists and Null hold."""
    name = operator.rpartition(":")[2].removesuffix("IfExists")
    if name == "Null":
        return (given is None) == (str(wanted[0]).lower() == "true")
    if given is None:
        return operator.endswith("IfExists") or "Not" in name
    like = any(fnmatchcase(value.lower(), str(each).lower()) for value in given for each in wanted)
    return like != ("Not" in name)


def _documents(backend: IAMBackend, arn: str) -> list[Document]:
    """The policies of a role, user or group, inline and attached."""
    kind, _, path = arn.rpartition(":")[2].partition("/")
    name = path.rpartition("/")[2]
    find = {"role": backend.get_role, "user": backend.get_user, "group": backend.get_group}.get(kind)
    if find is None:
        raise ValueError(f"PolicySourceArn {arn} must be the ARN of a role, user or group")
    principal: Any = find(name)
    inline = principal.policies.values() if isinstance(principal.policies, dict) else principal.policies
    texts = [each if isinstance(each, str) else each["policy_document"] for each in inline]
    attached = [version for policy in principal.managed_policies.values() for version in policy.versions]
    texts += [version.document for version in attached if version.is_default]
    return [json.loads(each) for each in texts]


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]

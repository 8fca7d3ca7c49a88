"""IAM roles with the rights that an endpoint needs and no others: rendered from roles/*.json, created, removed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy import packages
from deploy.aws import Aws, Request, already_exists, denied, is_missing, retried
from deploy.errors import Failed
from deploy.progress import Progress
from deploy.spec import ECR, S3, Spec, image_parts

DIRECTORY = Path(__file__).with_name("roles")
Values = Mapping[str, str | Sequence[str]]  # replaces ${name} in the JSON: a string, or a list in place of the string
TAG = {"Key": "deploy:made", "Value": "role"}  # on roles that were created here


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    name: str
    trust: Mapping[str, Any]
    policy: Mapping[str, Any]

    @property
    def document(self) -> dict[str, Any]:
        """The role in the fields of IAM's API, for an administrator."""
        trust = {"AssumeRolePolicyDocument": self.trust} if self.trust else {}
        return {"RoleName": self.name, **trust, "PolicyDocument": self.policy}


# Rendering


def rendered(kind: str, name: str, values: Values) -> Role:
    """The role of roles/KIND.json. Statements with an empty list of resources are left out."""
    text = json.loads((DIRECTORY / f"{kind}.json").read_text(encoding="utf-8"))
    role: dict[str, Any] = _filled(text, values)
    policy = {**role["policy"], "Statement": [each for each in role["policy"]["Statement"] if each["Resource"] != []]}
    return Role(name=name, trust=role.get("trust", {}), policy=policy)


def of_endpoint(spec: Spec, account: str, region: str) -> Role:
    """The role that the endpoint runs under: it reads models and image and writes logs."""
    return rendered("endpoint", role_name(spec), _values(spec, account, region))


def of_approval(spec: Spec, name: str, account: str, region: str) -> Role:
    """The role of the function that deploys approved model packages: the rights of `up` for this endpoint."""
    endpoint_role = spec.role if spec.role and is_arn(spec.role) else arn_of(role_name(spec), account, region)
    made = [] if is_arn(spec.role) else [endpoint_role]
    return rendered(
        "approval", name, {**_values(spec, account, region), "endpoint_role": endpoint_role, "made_role": made}
    )


def of_all(spec: Spec, account: str, region: str) -> list[Role]:
    """All roles of a spec: the endpoint's, the one that deletes it with --for, and the rights of the caller."""
    values = _values(spec, account, region)
    return [
        *([] if is_arn(spec.role) else [of_endpoint(spec, account, region)]),
        rendered("scheduler", f"{spec.name}-scheduler", values),
        rendered("user", "(the user of python -m deploy)", values),
    ]


def _values(spec: Spec, account: str, region: str) -> Values:
    """The values of all names in the JSON of a spec's roles."""
    partition = partition_of(region)
    models = sorted({uri for variant in spec.variants if (uri := spec.models_of(variant)[0])})
    images = sorted({image for variant in spec.variants if (image := spec.image_of(variant))})
    calls = sorted({uri for key, uri in (*spec.written, *spec.read) if key.startswith("async.")})
    key = str(spec.aws.get("KmsKeyId", ""))
    own = [arn_of(f"{spec.name}-scheduler", account, region)]
    if not is_arn(spec.role):
        own.append(arn_of(role_name(spec), account, region))
    return {
        "partition": partition,
        "account": account,
        "region": region,
        "name": spec.name,
        "objects": [_objects(partition, uri) for uri in models],
        "buckets": sorted({_objects(partition, uri).partition("/")[0] for uri in models}),
        "written": [_objects(partition, uri) for _, uri in spec.written],
        "inputs": [_objects(partition, uri) for _, uri in spec.read],
        "calls": [_objects(partition, uri) for uri in calls],
        "calls_buckets": sorted({_objects(partition, uri).partition("/")[0] for uri in calls}),
        "repositories": [arn for image in images if (arn := _repository(partition, account, region, image))],
        "network": ["*"] if "VpcConfig" in spec.aws else [],
        "keys": [key] if key.startswith("arn:") else [],
        "made": own,
        "groups": _groups(spec, account, region),
        "roles": [*own, str(spec.role)] if is_arn(spec.role) else own,
    }


def _groups(spec: Spec, account: str, region: str) -> list[str]:
    """The ARNs of the model package groups and of all their packages."""
    names = sorted({packages.group_of(each) for each in spec.packages})
    kinds = ("model-package-group/{}", "model-package/{}/*", "model-package/{}")
    partition = partition_of(region)
    return [f"arn:{partition}:sagemaker:{region}:{account}:{kind.format(each)}" for each in names for kind in kinds]


def role_name(spec: Spec) -> str:
    return spec.role or f"{spec.name}-endpoint"


def is_arn(role: str | None) -> bool:
    return bool(role and role.startswith("arn:"))


def arn_of(name: str, account: str, region: str) -> str:
    return f"arn:{partition_of(region)}:iam::{account}:role/{name}"


def partition_of(region: str) -> str:
    return "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"


def widest(policy: Mapping[str, Any], before: Mapping[str, Any]) -> Mapping[str, Any]:
    """The policy with the additional statements of the one before; each has a Sid of its own."""
    known = [_bare(each) for each in policy["Statement"]]
    kept: list[dict[str, Any]] = []
    for statement in map(_bare, before["Statement"]):
        if statement not in known:
            kept.append({"Sid": f"Before{len(kept) + 1}", **statement})
    return {**policy, "Statement": [*policy["Statement"], *kept]}


def _bare(statement: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in statement.items() if key != "Sid"}


def _objects(partition: str, uri: str) -> str:
    """arn:aws:s3:::bucket/key, or bucket/prefix*."""
    found = S3.fullmatch(uri)
    assert found, uri  # the spec was checked
    bucket, key = found.groups()
    return f"arn:{partition}:s3:::{bucket}/{key}" + ("*" if not key or key.endswith("/") else "")


def _repository(partition: str, account: str, region: str, image: str) -> str | None:
    host, name, _, _ = image_parts(image)
    if host:
        found = ECR.fullmatch(host)
        if not found:
            return None
        account, region = found.groups()
    return f"arn:{partition}:ecr:{region}:{account}:repository/{name}"


def _filled(value: Any, values: Values) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values) for each in value]
    if isinstance(value, str):
        whole = re.fullmatch(r"\$\{(\w+)\}", value)
        if whole:
            return values[whole[1]]
        return re.sub(r"\$\{(\w+)\}", lambda found: str(values[found[1]]), value)
    return value


def requests(role: Role, endpoint: str) -> list[tuple[str, Request]]:
    """CreateRole's and PutRolePolicy's. The policy is named after the endpoint: endpoints may share a role."""
    trust, rights = json.dumps(role.trust), json.dumps(role.policy)
    return [
        ("CreateRole", {"RoleName": role.name, "AssumeRolePolicyDocument": trust, "Tags": [TAG]}),
        ("PutRolePolicy", {"RoleName": role.name, "PolicyName": policy_name(endpoint), "PolicyDocument": rights}),
    ]


# In IAM


def existing(aws: Aws, name: str) -> Mapping[str, Any] | None:
    """The role as IAM describes it, or None. Raises Failed if IAM denies the question."""
    try:
        return _get(aws.client("iam"), name)
    except ClientError as error:
        if denied(error):
            raise _unreadable(name, error) from error
        raise


def _unreadable(name: str, error: ClientError) -> Failed:
    return Failed(
        f"role {name} could not be read or created ({error.operation_name} is not allowed). Have an administrator "
        'create it from `python -m deploy roles SPEC`, and set role = "arn:..." in the spec'
    )


def ensured(aws: Aws, role: Role, endpoint: str, progress: Progress, *, widened: bool = False) -> str:
    """The ARN of the role, created or updated. The policy is named after the endpoint: endpoints may share a role.

    `widened`: the policy keeps its former rights, because a fleet in service still needs them during an update.
    A role that another run deletes meanwhile is created again. Raises Failed if IAM denies a call.
    """
    try:
        return str(retried(lambda: _ensured(aws, role, endpoint, progress, widened), is_missing))
    except ClientError as error:
        if denied(error):
            raise _unreadable(role.name, error) from error
        raise


def _ensured(aws: Aws, role: Role, endpoint: str, progress: Progress, widened: bool) -> str:
    iam, policy = aws.client("iam"), policy_name(endpoint)
    found = _get(iam, role.name)
    if found is None:
        found = _create(iam, role)
        progress.changed(f"role {role.name} created")
    now = _policy(iam, role.name, policy)
    wanted = widest(role.policy, now) if widened and now else role.policy
    if now != wanted:
        iam.put_role_policy(RoleName=role.name, PolicyName=policy, PolicyDocument=json.dumps(wanted))
        progress.changed(f"role {role.name} has the rights that {endpoint} needs")
    return str(found["Arn"])


def remove(aws: Aws, name: str, endpoint: str) -> str | None:
    """Delete the endpoint's policy, and the role too if it was created here and has no other policy.

    Returns the name of the deleted object, or None.
    """
    iam = aws.client("iam")
    found = _get(iam, name)
    if found is None:
        return None
    left = [
        each for page in iam.get_paginator("list_role_policies").paginate(RoleName=name) for each in page["PolicyNames"]
    ]
    mine = policy_name(endpoint)
    if mine in left:
        iam.delete_role_policy(RoleName=name, PolicyName=mine)
        left.remove(mine)
    elif not (made_by_us(found) and not left):
        return None
    attached = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
    if made_by_us(found) and not left and not attached:
        iam.delete_role(RoleName=name)
        return f"role {name}"
    return f"{endpoint}'s policy of role {name}"


def rights(aws: Aws, name: str, endpoint: str) -> Mapping[str, Any] | None:
    """The endpoint's policy of the role; None if the role or the policy does not exist."""
    return _policy(aws.client("iam"), name, policy_name(endpoint))


def added(aws: Aws, name: str, endpoint: str) -> list[str]:
    """The policies of a role besides that of the endpoint, inline and attached."""
    iam = aws.client("iam")
    pages = iam.get_paginator("list_role_policies").paginate(RoleName=name)
    inline = [each for page in pages for each in page["PolicyNames"]]
    pages = iam.get_paginator("list_attached_role_policies").paginate(RoleName=name)
    attached = [each["PolicyName"] for page in pages for each in page["AttachedPolicies"]]
    return sorted({*inline, *attached} - {policy_name(endpoint)})


def is_for(aws: Aws, name: str, endpoint: str) -> bool:
    """Whether the role exists with the endpoint's policy; False if IAM denies the question."""
    try:
        return rights(aws, name, endpoint) is not None
    except ClientError as error:
        if denied(error):
            return False
        raise


def made_by_us(role: Mapping[str, Any]) -> bool:
    return TAG in role.get("Tags", [])


def policy_name(endpoint: str) -> str:
    return f"deploy-{endpoint}"


def _get(iam: Any, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = iam.get_role(RoleName=name)["Role"]
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return found


def _create(iam: Any, role: Role) -> dict[str, Any]:
    (_, request), _ = requests(role, "")
    try:
        made: dict[str, Any] = iam.create_role(**request)["Role"]
    except ClientError as error:
        if not already_exists(error):  # a concurrent run created it
            raise
        made = iam.get_role(RoleName=role.name)["Role"]
    return made


def _policy(iam: Any, role: str, policy: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return found

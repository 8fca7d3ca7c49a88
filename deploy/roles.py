"""Roles with no more rights than an endpoint needs: JSON beside this module, made, or printed for who may make them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import Aws, Failed, denied, is_missing, is_there_already
from deploy.images import ECR, parts
from deploy.progress import Progress
from deploy.spec import S3, Spec

DIRECTORY = Path(__file__).with_name("roles")
Values = Mapping[str, str | Sequence[str]]  # what stands for ${name} in the JSON: a string, or a list in its place


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    name: str
    trust: Mapping[str, Any]
    policy: Mapping[str, Any]

    @property
    def said(self) -> dict[str, Any]:
        """For an administrator, in IAM's words."""
        trust = {"AssumeRolePolicyDocument": self.trust} if self.trust else {}
        return {"RoleName": self.name, **trust, "PolicyDocument": self.policy}


def rendered(kind: str, name: str, values: Values) -> Role:
    """`kind` is the file's name. Statements about nothing (an empty list of resources) are left out."""
    text = json.loads((DIRECTORY / f"{kind}.json").read_text(encoding="utf-8"))
    role: dict[str, Any] = _filled(text, values)
    policy = {**role["policy"], "Statement": [each for each in role["policy"]["Statement"] if each["Resource"] != []]}
    return Role(name=name, trust=role.get("trust", {}), policy=policy)


def of_endpoint(spec: Spec, account: str, region: str) -> Role:
    """The role that the endpoint of a spec runs under: reads its models and image, writes its logs."""
    return rendered("endpoint", role_name(spec), _values(spec, account, region))


def _values(spec: Spec, account: str, region: str) -> Values:
    """What stands for the names in the JSON of any role of a spec."""
    partition = partition_of(region)
    models = sorted({uri for variant in spec.variants if (uri := spec.models_of(variant)[0])})
    images = sorted({spec.image_of(variant) for variant in spec.variants})
    written = [spec.asynchronous.output, spec.asynchronous.failures] if spec.asynchronous else []
    written.append(spec.aws.get("DataCaptureConfig", {}).get("DestinationS3Uri"))
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
        "written": [_objects(partition, uri.rstrip("/") + "/") for uri in written if uri],
        "repositories": [arn for image in images if (arn := _repository(partition, account, region, image))],
        "network": ["*"] if "VpcConfig" in spec.aws else [],
        "keys": [key] if key.startswith("arn:") else [],
        "made": own,
        "roles": [*own, str(spec.role)] if is_arn(spec.role) else own,
    }


def of_all(spec: Spec, account: str, region: str) -> list[Role]:
    """All that a spec may need: the endpoint's, the one that deletes it with --for, what its user must be allowed."""
    values = _values(spec, account, region)
    return [
        *([] if is_arn(spec.role) else [of_endpoint(spec, account, region)]),
        rendered("scheduler", f"{spec.name}-scheduler", values),
        rendered("user", "(whoever runs python -m deploy)", values),
    ]


def role_name(spec: Spec) -> str:
    return spec.role or f"{spec.name}-endpoint"


def is_arn(role: str | None) -> bool:
    return bool(role and role.startswith("arn:"))


def arn_of(name: str, account: str, region: str) -> str:
    return f"arn:{partition_of(region)}:iam::{account}:role/{name}"


def partition_of(region: str) -> str:
    return "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"


def ensured(aws: Aws, role: Role, endpoint: str, progress: Progress, *, widened: bool = False) -> str:
    """The ARN of a role that has this policy, under the endpoint's name: several endpoints may share a role.

    `widened`: what it was allowed before it may still do, for a fleet that is in service while another comes.
    Raises Failed where that is not permitted.
    """
    iam, policy = aws.client("iam"), policy_name(endpoint)
    try:
        found = _get(iam, role.name)
        if found is None:
            found = _create(iam, role)
            progress.changed(f"role {role.name} created")
        now = _policy(iam, role.name, policy)
        wanted = widest(role.policy, now) if widened and now else role.policy
        if now != wanted:
            iam.put_role_policy(RoleName=role.name, PolicyName=policy, PolicyDocument=json.dumps(wanted))
            progress.changed(f"role {role.name} may now do what {endpoint} needs")
        return str(found["Arn"])
    except ClientError as error:
        if denied(error):
            raise Failed(
                f"role {role.name} could not be looked at or made ({error.operation_name} is not allowed). Have an "
                'administrator make it from `python -m deploy roles SPEC`, and say role = "arn:..." in the spec'
            ) from error
        raise


def widest(policy: Mapping[str, Any], before: Mapping[str, Any]) -> Mapping[str, Any]:
    """The policy, with the statements of the one before that it has not, under Sids of their own."""
    known = [_bare(each) for each in policy["Statement"]]
    kept: list[dict[str, Any]] = []
    for statement in map(_bare, before["Statement"]):
        if statement not in known:
            kept.append({"Sid": f"Before{len(kept) + 1}", **statement})
    return {**policy, "Statement": [*policy["Statement"], *kept]}


def _bare(statement: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in statement.items() if key != "Sid"}


def remove(aws: Aws, name: str, endpoint: str) -> str | None:
    """Takes the endpoint's policy from the role, and the role itself where we made it and nobody needs it now.

    What was done, None where there was nothing.
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


def is_for(aws: Aws, name: str, endpoint: str) -> bool:
    """Whether the role is there and has the endpoint's policy, as far as one may look."""
    try:
        return _policy(aws.client("iam"), name, policy_name(endpoint)) is not None
    except ClientError as error:
        if denied(error):
            return False
        raise


def made_by_us(role: Mapping[str, Any]) -> bool:
    return TAG in role.get("Tags", [])


def policy_name(endpoint: str) -> str:
    return f"deploy-{endpoint}"


TAG = {"Key": "deploy:made", "Value": "role"}


def _get(iam: Any, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = iam.get_role(RoleName=name)["Role"]
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return found


def _create(iam: Any, role: Role) -> dict[str, Any]:
    try:
        made: dict[str, Any] = iam.create_role(
            RoleName=role.name, AssumeRolePolicyDocument=json.dumps(role.trust), Tags=[TAG]
        )["Role"]
    except ClientError as error:
        if not is_there_already(error):  # somebody else was a moment faster
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


def _objects(partition: str, uri: str) -> str:
    """arn:aws:s3:::bucket/key, with a star behind a prefix."""
    found = S3.fullmatch(uri)
    assert found, uri  # the spec was checked
    bucket, key = found.groups()
    return f"arn:{partition}:s3:::{bucket}/{key}" + ("*" if not key or key.endswith("/") else "")


def _repository(partition: str, account: str, region: str, image: str) -> str | None:
    host, name, _, _ = parts(image)
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

"""Roles made in IAM, or brought up to date, and taken away again where nobody needs them."""

import json
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import Aws, Failed, denied, is_missing, is_there_already
from deploy.policies import Role, widest
from deploy.progress import Progress

TAG = {"Key": "deploy:made", "Value": "role"}


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

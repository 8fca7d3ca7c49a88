"""Roles as IAM is to have them, with no more rights than an endpoint needs: the JSON beside this module, filled in."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.images import ECR, parts
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

"""Deployment on approval: a rule of EventBridge calls a Lambda function when a package of the spec's group is approved.

docs.aws.amazon.com/sagemaker/latest/dg/automating-sagemaker-with-eventbridge.html
"""

import json
from dataclasses import asdict
from typing import Any

from botocore.exceptions import ClientError

from deploy import packages, roles
from deploy.aws import Aws, Request, is_missing
from deploy.errors import Failed, SpecError
from deploy.invoke import Check
from deploy.pipelines import approval_function, installation
from deploy.plan import OWNER
from deploy.progress import Progress
from deploy.spec import Spec

HANDLER = "deploy.pipelines.approval_function.handler"
SECONDS = 900  # Lambda's longest
TARGET = "deploy"


def name_of(endpoint: str) -> str:
    """The name of the rule, the function and the function's role."""
    return f"{endpoint}-approval"


def requests(spec: Spec, checks: list[Check], aws: Aws) -> list[tuple[str, Request]]:
    """Every request that creates an object, in the order of `ensure`; the code is left out. Raises SpecError."""
    name, function = name_of(spec.name), _function_arn(aws, spec.name)
    role = _role(spec, aws)
    settings = installation.function_settings(roles.arn_of(name, aws.account, aws.region), HANDLER, SECONDS)
    digest = installation.digest(_code(spec, checks))
    return [
        *roles.requests(role, spec.name),
        ("CreateFunction", {"FunctionName": name, **settings, "Tags": {OWNER: spec.name}, "CodeSha256": digest}),
        ("PutRule", _rule(spec)),
        ("AddPermission", _permission(aws, spec.name)),
        ("PutTargets", {"Rule": name, "Targets": [{"Id": TARGET, "Arn": function}]}),
    ]


def ensure(spec: Spec, checks: list[Check], aws: Aws, progress: Progress) -> None:
    """Bring role, function and rule up to date. Raises SpecError, and Failed for objects of another owner."""
    name, function = name_of(spec.name), _function_arn(aws, spec.name)
    role = _role(spec, aws)
    _refuse_foreign(aws, spec.name)
    arn = roles.ensured(aws, role, spec.name, progress)
    installation.ensure_function(
        aws,
        name,
        arn,
        progress,
        code=_code(spec, checks),
        handler=HANDLER,
        seconds=SECONDS,
        tags={OWNER: spec.name},
    )
    events, rule = aws.client("events"), _rule(spec)
    now = _found(lambda: events.describe_rule(Name=name))
    if now is None or json.loads(now["EventPattern"]) != json.loads(rule["EventPattern"]) or now["State"] != "ENABLED":
        events.put_rule(**rule if now is None else {key: value for key, value in rule.items() if key != "Tags"})
        progress.changed(f"rule {name} {'created' if now is None else 'updated'}")
    if not _permitted(aws, spec.name):
        aws.client("lambda").add_permission(**_permission(aws, spec.name))
        progress.changed(f"rule {name} may call function {name}")
    targets = {each["Id"]: each["Arn"] for each in events.list_targets_by_rule(Rule=name)["Targets"]}
    if targets.get(TARGET) != function:
        events.put_targets(Rule=name, Targets=[{"Id": TARGET, "Arn": function}])
        progress.changed(f"rule {name} calls function {name}")


def remove(endpoint: str, aws: Aws, progress: Progress) -> None:
    """Delete rule, function and role; what does not exist is left out. Raises Failed for objects of another owner."""
    name, events = name_of(endpoint), aws.client("events")
    _refuse_foreign(aws, endpoint)
    if _found(lambda: events.describe_rule(Name=name)) is not None:
        targets = [each["Id"] for each in events.list_targets_by_rule(Rule=name)["Targets"]]
        if targets:
            events.remove_targets(Rule=name, Ids=targets)
        events.delete_rule(Name=name)
        progress.changed(f"rule {name} deleted")
    if _found(lambda: aws.client("lambda").get_function(FunctionName=name)) is not None:
        aws.client("lambda").delete_function(FunctionName=name)
        progress.changed(f"function {name} deleted")
    if removed := roles.remove(aws, name, endpoint):
        progress.changed(f"{removed} deleted")


def _group(spec: Spec) -> str:
    """The group whose packages are deployed. Raises SpecError unless the spec names one."""
    groups = [each for each in spec.packages if packages.group_of(each) == each]
    if len(groups) != 1:
        raise SpecError("on-approval: the spec must name one group: model_package = GROUP, not a package's ARN")
    return groups[0]


def _role(spec: Spec, aws: Aws) -> roles.Role:
    _group(spec)
    return roles.of_approval(spec, name_of(spec.name), aws.account, aws.region)


def _rule(spec: Spec) -> Request:
    pattern = {
        "source": ["aws.sagemaker"],
        "detail-type": ["SageMaker Model Package State Change"],
        "detail": {"ModelPackageGroupName": [_group(spec)], "ModelApprovalStatus": [packages.APPROVED]},
    }
    return {
        "Name": name_of(spec.name),
        "EventPattern": json.dumps(pattern),
        "State": "ENABLED",
        "Description": f"Deploys approved model packages to the endpoint {spec.name}",
        "Tags": [{"Key": OWNER, "Value": spec.name}],
    }


def _permission(aws: Aws, endpoint: str) -> Request:
    name = name_of(endpoint)
    rule = f"arn:{roles.partition_of(aws.region)}:events:{aws.region}:{aws.account}:rule/{name}"
    return {
        "FunctionName": name,
        "StatementId": name,
        "Action": "lambda:InvokeFunction",
        "Principal": "events.amazonaws.com",
        "SourceArn": rule,
    }


def _permitted(aws: Aws, endpoint: str) -> bool:
    name = name_of(endpoint)
    found = _found(lambda: aws.client("lambda").get_policy(FunctionName=name))
    return found is not None and any(each.get("Sid") == name for each in json.loads(found["Policy"])["Statement"])


def _function_arn(aws: Aws, endpoint: str) -> str:
    partition = roles.partition_of(aws.region)
    return f"arn:{partition}:lambda:{aws.region}:{aws.account}:function:{name_of(endpoint)}"


def _code(spec: Spec, checks: list[Check]) -> bytes:
    return installation.zipped({approval_function.CONTENT: approval_function.content(asdict(spec), checks)})


def _refuse_foreign(aws: Aws, endpoint: str) -> None:
    name = name_of(endpoint)
    function = _found(lambda: aws.client("lambda").get_function(FunctionName=name))
    role = roles.existing(aws, name)
    foreign = [
        *([f"function {name}"] if function is not None and function.get("Tags", {}).get(OWNER) != endpoint else []),
        *([f"role {name}"] if role is not None and not roles.made_by_us(role) else []),
    ]
    if foreign:
        raise Failed(f"{', '.join(foreign)} was not created by `python -m deploy`: rename it, or the endpoint")


def _found(describe: Any) -> Any:
    try:
        return describe()
    except ClientError as error:
        if is_missing(error):
            return None
        raise

"""A pipeline in AWS with everything it needs: roles, Lambda function, script and model group, created or updated."""

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy import roles
from deploy.aws import Aws, Later, already_exists, is_missing, retried, role_unseen
from deploy.pipelines import validation
from deploy.pipelines.definitions import Definition, Given
from deploy.pipelines.sources import Source
from deploy.pipelines.validation import values_of
from deploy.progress import Progress
from deploy.roles import Role

DEPLOY = Path(__file__).parents[1]
HANDLER = "deploy.pipelines.lambda_function.handler"
RUNTIME = "python3.13"  # it contains boto3, the only package that this code needs
SECONDS, MEMORY_MB = 600, 512  # SageMaker stops a Lambda step after 600 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The bucket of a pipeline, and existing roles to use instead of new ones."""

    bucket: str
    role: str | None = None  # ARN, of the jobs and the endpoint; None: NAME-pipeline is created
    function_role: str | None = None  # ARN, of the function; None: NAME-function is created


def upsert(aws: Aws, source: Source, home: Home, progress: Progress) -> Definition:
    """Bring the pipeline, its roles, function, script and model groups up to date with this code."""
    name, function_name = source.name, f"{source.name}-function"
    role, function_role = _ensured_roles(aws, source, home, progress)
    arn = f"arn:{roles.partition_of(aws.region)}:lambda:{aws.region}:{aws.account}:function:{function_name}"
    given = Given(
        role=role,
        function=arn,
        home=f"s3://{home.bucket}/{name}",
        scripts=_uploaded(aws, source.code, home.bucket, f"{name}/scripts"),
        data=_uploaded(aws, source.data, home.bucket, f"{name}/data"),
        region=aws.region,
    )
    made = source.build(given)
    validation.check(made)
    if source.function and any(placed.step["Type"] == "Lambda" for placed in validation.steps_of(made).values()):
        ensure_function(aws, function_name, function_role, progress, handler=HANDLER, seconds=SECONDS)
    ensure_groups(aws, made, values_of(made, {}, offline=True), progress)
    _ensure_pipeline(aws, name, made, role, progress)
    return made


def ensure_groups(aws: Aws, made: Definition, values: Mapping[str, Any], progress: Progress) -> None:
    """Create the model package groups: RegisterModel adds a version to a group and does not create the group."""
    known = {f"Parameters.{name}": value for name, value in values.items()}
    groups = set()
    for placed in validation.steps_of(made).values():
        group = (placed.step.get("Arguments") or {}).get("ModelPackageGroupName")
        group = known.get(group.get("Get", "")) if isinstance(group, Mapping) else group
        # A group without a value yet, or with the ARN of one that exists, is left as it is.
        if placed.step["Type"] == "RegisterModel" and isinstance(group, str) and not isinstance(group, Later):
            groups |= {group} if not group.startswith("arn:") else set()
    for group in sorted(groups):
        try:
            aws.client("sagemaker").create_model_package_group(ModelPackageGroupName=group)
        except ClientError as error:
            if not already_exists(error):
                raise
        else:
            progress.changed(f"model package group {group} created")


def _uploaded(aws: Aws, source: Path | None, bucket: str, prefix: str) -> str:
    """The S3 URI with the files of a path, which contains their hash; without a path that of nothing."""
    if source is None:
        return f"s3://{bucket}/{prefix}"
    files = [source] if source.is_file() else sorted(each for each in source.rglob("*") if _is_kept(each))
    place = source.parent if source.is_file() else source
    content = hashlib.sha256()
    for each in files:
        content.update(f"{each.relative_to(place)}\0{len(each.read_bytes())}\0".encode() + each.read_bytes())
    key = f"{prefix}/{content.hexdigest()[:8]}"
    for each in files:
        aws.client("s3").upload_file(str(each), bucket, f"{key}/{each.relative_to(place).as_posix()}")
    return f"s3://{bucket}/{key}"


def _is_kept(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")


def roles_of(aws: Aws, name: str, home: Home) -> tuple[Role, Role, Role]:
    """The role of the jobs and the endpoint, the role of the function, and the rights that the caller needs."""
    partition = roles.partition_of(aws.region)
    values: dict[str, str | list[str]] = {
        "partition": partition,
        "region": aws.region,
        "account": aws.account,
        "buckets": [f"arn:{partition}:s3:::{home.bucket}"],
        "objects": [f"arn:{partition}:s3:::{home.bucket}/*"],
        "function": f"arn:{partition}:lambda:{aws.region}:{aws.account}:function:{name}-function",
        "role": home.role.partition(":role/")[2] if home.role else f"{name}-pipeline",
        "function_role": home.function_role.partition(":role/")[2] if home.function_role else f"{name}-function",
    }
    return (
        roles.rendered("pipeline", f"{name}-pipeline", values),
        roles.rendered("function", f"{name}-function", values),
        roles.rendered("pipeline_user", "(the user of python -m deploy pipeline)", values),
    )


def _ensured_roles(aws: Aws, source: Source, home: Home, progress: Progress) -> tuple[str, str]:
    """Their ARNs; "" for that of a function which is not created. Raises Failed if a role may not be created."""
    jobs, functions, _ = roles_of(aws, source.name, home)
    role = home.role or roles.ensured(aws, jobs, source.name, progress)
    if not source.function:
        return role, ""
    return role, home.function_role or roles.ensured(aws, functions, source.name, progress)


def token(made: Definition, given: Mapping[str, str], salt: str = "") -> str:
    """The idempotency token of a start: AWS starts an execution once per token, even if the call is repeated."""
    return hashlib.sha256(json.dumps([made, dict(given), salt], sort_keys=True).encode()).hexdigest()


def is_no_pipeline(error: ClientError) -> bool:
    return is_missing(error) or "not found" in str(error).lower()


def _ensure_pipeline(aws: Aws, name: str, made: Definition, role: str, progress: Progress) -> None:
    sagemaker, text = aws.client("sagemaker"), json.dumps(made, indent=1)
    try:
        now = sagemaker.describe_pipeline(PipelineName=name)
    except ClientError as error:
        if not is_no_pipeline(error):
            raise
        sagemaker.create_pipeline(
            PipelineName=name, PipelineDefinition=text, RoleArn=role, ClientRequestToken=token(made, {"Role": role})
        )
        progress.changed(f"pipeline {name} created")
        return
    if json.loads(now["PipelineDefinition"]) != made or now["RoleArn"] != role:
        sagemaker.update_pipeline(PipelineName=name, PipelineDefinition=text, RoleArn=role)
        progress.changed(f"pipeline {name} updated")


def zipped(more: Mapping[str, bytes] | None = None) -> bytes:
    """The package deploy, and more files, as a zip; its bytes depend on the files alone."""
    files = {str(path.relative_to(DEPLOY.parent)): path for path in (*DEPLOY.rglob("*.py"), *DEPLOY.rglob("*.json"))}
    contents = {**{name: path.read_bytes() for name, path in sorted(files.items())}, **(more or {})}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # stored: deflate's output depends on the version of zlib
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return packed.getvalue()


def digest(code: bytes) -> str:
    """CodeSha256, as Lambda shows it."""
    return base64.b64encode(hashlib.sha256(code).digest()).decode()


def function_settings(role: str, handler: str, seconds: int) -> dict[str, Any]:
    """Fields of CreateFunction and UpdateFunctionConfiguration."""
    return {"Role": role, "Handler": handler, "Runtime": RUNTIME, "Timeout": seconds, "MemorySize": MEMORY_MB}


def ensure_function(
    aws: Aws,
    name: str,
    role: str,
    progress: Progress,
    *,
    code: bytes | None = None,
    handler: str = HANDLER,
    seconds: int = SECONDS,
    tags: Mapping[str, str] | None = None,
) -> None:
    """The Lambda function has this code, by default that of a pipeline's steps, these settings and this role."""
    client, code = aws.client("lambda"), code or zipped()
    settings = function_settings(role, handler, seconds)
    try:
        now = client.get_function_configuration(FunctionName=name)
    except ClientError as error:
        if not is_missing(error):
            raise
        made = {"FunctionName": name, "Code": {"ZipFile": code}, **settings, **({"Tags": dict(tags)} if tags else {})}
        retried(lambda: client.create_function(**made), role_unseen)
        client.get_waiter("function_active_v2").wait(FunctionName=name)
        progress.changed(f"function {name} created")
        return
    if now["CodeSha256"] != digest(code):
        client.update_function_code(FunctionName=name, ZipFile=code)
        client.get_waiter("function_updated_v2").wait(FunctionName=name)
        progress.changed(f"function {name} has new code")
    if any(now.get(key) != value for key, value in settings.items()):
        client.update_function_configuration(FunctionName=name, **settings)
        client.get_waiter("function_updated_v2").wait(FunctionName=name)
        progress.changed(f"function {name} has new settings")

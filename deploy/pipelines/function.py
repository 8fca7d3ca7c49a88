"""The Lambda function of a pipeline, with the code that this directory has: made, and brought up to date."""

import base64
import hashlib
import io
import zipfile
from pathlib import Path

from botocore.exceptions import ClientError

from deploy.aws import Aws, is_missing, role_unseen
from deploy.configurations import patiently
from deploy.progress import Progress

DEPLOY = Path(__file__).parents[1]
HANDLER = "deploy.pipelines.lambda_function.handler"
RUNTIME = "python3.13"  # it brings boto3, all that this code needs
SECONDS, MEMORY_MB = 600, 512  # SageMaker cuts a Lambda step there


def zipped() -> bytes:
    """This package as a zip whose bytes depend on its files alone."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # stored: what deflate makes of it depends on zlib's version
        for path in sorted([*DEPLOY.rglob("*.py"), *DEPLOY.rglob("*.json")]):
            entry = zipfile.ZipInfo(str(path.relative_to(DEPLOY.parent)))  # dated 1980
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return packed.getvalue()


def ensured(aws: Aws, name: str, role: str, progress: Progress) -> str:
    """The ARN of the function, with this code, under this role."""
    client, code = aws.client("lambda"), zipped()
    settings = {"Role": role, "Handler": HANDLER, "Runtime": RUNTIME, "Timeout": SECONDS, "MemorySize": MEMORY_MB}
    try:
        now = client.get_function_configuration(FunctionName=name)
    except ClientError as error:
        if not is_missing(error):
            raise
        arn = patiently(
            lambda: client.create_function(FunctionName=name, Code={"ZipFile": code}, **settings), role_unseen
        )["FunctionArn"]
        client.get_waiter("function_active_v2").wait(FunctionName=name)
        progress.changed(f"function {name} created")
        return str(arn)
    if now["CodeSha256"] != base64.b64encode(hashlib.sha256(code).digest()).decode():
        client.update_function_code(FunctionName=name, ZipFile=code)
        client.get_waiter("function_updated_v2").wait(FunctionName=name)
        progress.changed(f"function {name} has new code")
    if any(now.get(key) != value for key, value in settings.items()):
        client.update_function_configuration(FunctionName=name, **settings)
        client.get_waiter("function_updated_v2").wait(FunctionName=name)
        progress.changed(f"function {name} has new settings")
    return str(now["FunctionArn"])

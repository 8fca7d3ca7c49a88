"""The configuration file that makes the SageMaker Python SDK use the emulator, for its versions 2 and 3.

`Session.default_bucket()` asks STS for the account at https://sts.REGION.amazonaws.com, whatever AWS_ENDPOINT_URL says,
unless the file names the bucket. Telemetry is a request to a bucket of AWS, for which the SDK waits.
sagemaker.readthedocs.io/en/stable/overview.html#configuring-and-using-defaults-with-the-sagemaker-python-sdk
"""

from pathlib import Path

VARIABLE = "SAGEMAKER_USER_CONFIG_OVERRIDE"
NAME = "sagemaker-sdk.yaml"


def write(directory: Path, account: str, region: str) -> Path:
    """Writes the file into a directory, which is created. Returns its absolute path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.absolute() / NAME
    path.write_text(
        "SchemaVersion: '1.0'\n"
        "SageMaker:\n"
        "  PythonSDK:\n"
        "    Modules:\n"
        "      TelemetryOptOut: true\n"
        "      Session:\n"
        f"        DefaultS3Bucket: {default_bucket(account, region)}\n"
    )
    return path


def default_bucket(account: str, region: str) -> str:
    """The SDK's name for the bucket of an account, which the SDK creates."""
    return f"sagemaker-{region}-{account}"

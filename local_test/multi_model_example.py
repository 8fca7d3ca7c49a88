"""A multi-model endpoint with boto3: upload, create, invoke, delete.

On AWS, set IMAGE, ROLE and BUCKET. Locally, export the variables that `python -m local_test.platform` prints.
"""

import io
import os
import sys
import tarfile
from pathlib import Path

import boto3
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, NoRegionError, WaiterError

MODELS = Path(__file__).parent / "models"
ROWS = (Path(__file__).parent / "payloads" / "abalone.csv").read_text()
IMAGE = os.environ.get("IMAGE", "sagemaker-serve")
ROLE = os.environ.get("ROLE", "arn:aws:iam::123456789012:role/endpoint")
BUCKET = os.environ.get("BUCKET", "my-models")
NAME = "abalone"


def main() -> None:
    s3, sagemaker, runtime = (boto3.client(each) for each in ("s3", "sagemaker", "sagemaker-runtime"))

    # Models are objects below one prefix. To add a model, upload an object.
    s3.create_bucket(Bucket=BUCKET)
    for name in ("abalone-1.tar.gz", "abalone-2.tar.gz"):
        s3.put_object(Bucket=BUCKET, Key=f"abalone/{name}", Body=packed(MODELS / name))

    container = {"Image": IMAGE, "Mode": "MultiModel", "ModelDataUrl": f"s3://{BUCKET}/abalone/"}
    sagemaker.create_model(ModelName=NAME, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": NAME,
        "InstanceType": "ml.m7i.large",
        "InitialInstanceCount": 1,
    }
    sagemaker.create_endpoint_config(EndpointConfigName=NAME, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=NAME, EndpointConfigName=NAME)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 900})

    for target in ("abalone-1.tar.gz", "abalone-2.tar.gz", "abalone-1.tar.gz"):
        answer = runtime.invoke_endpoint(EndpointName=NAME, TargetModel=target, ContentType="text/csv", Body=ROWS)
        print(target, answer["Body"].read().decode().strip())

    sagemaker.delete_endpoint(EndpointName=NAME)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=NAME, WaiterConfig={"Delay": 1})
    sagemaker.delete_endpoint_config(EndpointConfigName=NAME)
    sagemaker.delete_model(ModelName=NAME)


def packed(archive: Path) -> bytes:
    """A sample model as .tar.gz, from an archive or from the directory with the name of the archive."""
    if archive.exists():
        return archive.read_bytes()
    directory = archive.with_name(archive.name.removesuffix(".tar.gz"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(directory, arcname=".")
    return buffer.getvalue()


if __name__ == "__main__":
    try:
        main()
    except (EndpointConnectionError, NoCredentialsError, NoRegionError) as error:
        sys.exit(
            f"{error}\nStart `python -m local_test.platform` in another shell, and export the variables that it prints."
        )
    except WaiterError as error:
        sys.exit(f"{error}\n{error.last_response.get('FailureReason', '')}")
    except FileNotFoundError as error:
        sys.exit(f"{error}\nRun `make models` to make the sample models.")

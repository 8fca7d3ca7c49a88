"""What endpoints and jobs may do on the platform: they have its address and the credentials of their role."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.account import BUCKET, ROLE, Account, account
from tests.live.stack import toy, wait_until
from tests.live.test_jobs import IMAGE, cluster

IDENTITY = """
import boto3
print(boto3.client("sts").get_caller_identity()["Arn"], boto3.session.Session().region_name)
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with account(tmp_path_factory.mktemp("w")) as made:
        yield made


def test_own_code_reads_the_input_that_a_request_links_to(aws: Account, tmp_path: Path) -> None:
    """A model's code makes a client of S3 without any setting, as on SageMaker."""
    aws.endpoint("linked", {"ModelDataUrl": aws.put("linked.tar.gz", toy(tmp_path, "linked"))})
    aws.s3.put_object(Bucket=BUCKET, Key="inputs/one.txt", Body=b"the input")

    answer = aws.invoke("linked", {"input": f"s3://{BUCKET}/inputs/one.txt"})
    aws.delete("linked")

    assert answer == b"tupni eht"


def test_a_job_acts_as_its_role(aws: Account) -> None:
    aws.s3.put_object(Bucket=BUCKET, Key="code/run.py", Body=IDENTITY.encode())
    source = {"S3Uri": f"s3://{BUCKET}/code/", "S3DataType": "S3Prefix", "S3InputMode": "File"}
    aws.sagemaker.create_processing_job(
        ProcessingJobName="who",
        RoleArn=ROLE,
        AppSpecification={
            "ImageUri": IMAGE,
            "ContainerEntrypoint": ["python3", "/opt/ml/processing/input/run.py"],
        },
        ProcessingInputs=[{"InputName": "code", "S3Input": {**source, "LocalPath": "/opt/ml/processing/input"}}],
        ProcessingResources=cluster(1),
    )
    wait_until(
        lambda: aws.sagemaker.describe_processing_job(ProcessingJobName="who")["ProcessingJobStatus"] != "InProgress"
    )
    logs, group = aws.platform.client("logs"), "/aws/sagemaker/ProcessingJobs"
    (stream,) = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="who/")["logStreams"]
    events = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"])["events"]

    assert [each["message"] for each in events] == [
        "arn:aws:sts::123456789012:assumed-role/endpoint/SageMaker us-east-1"
    ]

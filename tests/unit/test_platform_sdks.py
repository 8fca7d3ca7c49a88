"""What the SageMaker Python SDKs need beside the endpoints: an execution role, and Describe answers as AWS's."""

import io
import json
import socket
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import SSLError

from local_test.platform import sdk_config
from local_test.platform.control import answers
from local_test.platform.control.iam_api import ROLE, decision, execution_role
from local_test.platform.emulator import Emulator
from local_test.platform.events import Events
from local_test.platform.options import Options

ACCOUNT = "123456789012"


def statement(effect: str, action: Any, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": action, "Resource": resource, **more}


def conditional(operator: str, services: Any) -> dict[str, Any]:
    return statement("Allow", "iam:PassRole", Condition={operator: {"iam:PassedToService": services}})


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([], "implicitDeny"),
        ([statement("Allow", "*")], "allowed"),
        ([statement("Allow", ["s3:*", "IAM:pass*"])], "allowed"),
        ([statement("Allow", "iam:GetRole")], "implicitDeny"),
        ([statement("Allow", "iam:*"), statement("Deny", "iam:Pass*")], "explicitDeny"),
        ([statement("Allow", "iam:*", "arn:aws:iam::1:role/a")], "implicitDeny"),
        ([statement("Allow", "iam:*", "arn:aws:iam::1:role/service-role/*")], "allowed"),
        ([{"Effect": "Allow", "NotAction": "s3:*", "NotResource": ["arn:aws:s3:::*"]}], "allowed"),
        ([{"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}], "implicitDeny"),
        ([conditional("StringEquals", "sagemaker.amazonaws.com")], "allowed"),
        ([conditional("StringLike", ["glue.*", "sagemaker.*"])], "allowed"),
        ([conditional("StringNotEquals", "sagemaker.amazonaws.com")], "implicitDeny"),
        ([statement("Allow", "iam:*", Condition={"StringEquals": {"aws:other": "x"}})], "implicitDeny"),
        ([statement("Allow", "iam:*", Condition={"StringEqualsIfExists": {"aws:other": "x"}})], "allowed"),
    ],
)
def test_a_policy_decides_as_iam_does(statements: list[dict[str, Any]], expected: str) -> None:
    role, context = "arn:aws:iam::1:role/service-role/r", {"iam:passedtoservice": ["sagemaker.amazonaws.com"]}

    assert decision([{"Statement": statements}], "iam:PassRole", role, context) == expected


def test_the_caller_is_a_session_of_an_execution_role(tmp_path: Path) -> None:
    """The SDK resolves the role by its name, and checks by simulation that it permits what SageMaker needs."""
    with Emulator(Options(work=tmp_path, runtime="process"), Events(io.StringIO())) as emulator:
        iam = emulator.client("iam")
        caller = emulator.client("sts").get_caller_identity()
        role = iam.get_role(RoleName=caller["Arn"].split("/")[1])["Role"]
        results = iam.simulate_principal_policy(
            PolicySourceArn=role["Arn"],
            ActionNames=["sagemaker:CreateTrainingJob", "s3:PutObject", "iam:CreateUser"],
        )["EvaluationResults"]
        with pytest.raises(iam.exceptions.NoSuchEntityException):
            iam.simulate_principal_policy(
                PolicySourceArn=f"arn:aws:iam::{ACCOUNT}:role/none", ActionNames=["s3:GetObject"]
            )

    assert caller["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/{ROLE}/SageMaker"
    assert role["Arn"] == execution_role(ACCOUNT)
    assert [each["EvalDecision"] for each in results] == ["allowed", "allowed", "implicitDeny"]


def test_the_sdk_gets_its_bucket_from_a_file(tmp_path: Path) -> None:
    """The variable names the file; without it `default_bucket()` would ask STS of AWS."""
    with Emulator(Options(work=tmp_path, runtime="process"), Events(io.StringIO())) as emulator:
        text = Path(emulator.environment[sdk_config.VARIABLE]).read_text()

    assert f"DefaultS3Bucket: sagemaker-us-east-1-{ACCOUNT}\n" in text
    assert "TelemetryOptOut: true\n" in text


def test_a_literal_address_of_aws_is_answered_through_the_proxy(tmp_path: Path) -> None:
    """The SDK asks https://sts.REGION.amazonaws.com; a bucket's own host is another such address."""
    with Emulator(Options(work=tmp_path, runtime="process"), Events(io.StringIO())) as emulator:
        proxy = emulator.proxy
        through = {"config": Config(proxies={"https": proxy["HTTPS_PROXY"]}), "verify": proxy["AWS_CA_BUNDLE"]}
        once = Config(proxies={"https": proxy["HTTPS_PROXY"]}, retries={"total_max_attempts": 1})
        session = boto3.Session("local", "local", region_name="eu-west-1")
        sts = session.client("sts", endpoint_url="https://sts.eu-west-1.amazonaws.com", **through)
        s3 = session.client("s3", endpoint_url="https://s3.eu-west-1.amazonaws.com", **through)
        emulator.client("s3").create_bucket(Bucket="a-bucket")
        s3.put_object(Bucket="a-bucket", Key="k", Body=b"through the proxy")
        body = emulator.client("s3").get_object(Bucket="a-bucket", Key="k")["Body"].read()

        assert sts.get_caller_identity()["Account"] == ACCOUNT
        assert body == b"through the proxy"
        with pytest.raises(SSLError):
            session.client("sts", endpoint_url="https://sts.eu-west-1.amazonaws.com", config=once).get_caller_identity()


def test_a_connection_to_another_host_is_passed_on(tmp_path: Path) -> None:
    """Such as to a package registry: HTTPS_PROXY is read by every program of a shell."""
    with Emulator(Options(work=tmp_path, runtime="process"), Events(io.StringIO())) as emulator:
        host, port = emulator.url.removeprefix("http://").split(":")
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection((host, int(port))) as client:
            client.sendall(f"CONNECT 127.0.0.1:{server.getsockname()[1]} HTTP/1.1\r\n\r\n".encode())
            accepted, _ = server.accept()
            with accepted:
                assert client.recv(100).startswith(b"HTTP/1.1 200 ")
                client.sendall(b"question")
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer")
                assert client.recv(100) == b"answer"
            assert client.recv(100) == b""
        refused = socket.create_connection((host, int(port)))
        with refused:
            refused.sendall(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n")
            assert refused.recv(100).startswith(b"HTTP/1.1 502 ")


def test_empty_structures_are_left_out() -> None:
    """At every depth, and members without a value too. Maps and lists may be empty."""
    body = {
        "ModelName": "m",
        "VpcConfig": {},
        "PrimaryContainer": {"Image": "i", "ImageConfig": None, "MultiModelConfig": {}, "Environment": {}},
        "Containers": [{"Image": "i", "ModelDataSource": {"S3DataSource": {}}}],
        "EnableNetworkIsolation": False,
    }

    assert json.loads(answers.described("DescribeModel", json.dumps(body))) == {
        "ModelName": "m",
        "PrimaryContainer": {"Image": "i", "Environment": {}},
        "Containers": [{"Image": "i"}],
        "EnableNetworkIsolation": False,
    }
    assert answers.described("ListModels", '{"NextToken": null}') == '{"NextToken": null}'

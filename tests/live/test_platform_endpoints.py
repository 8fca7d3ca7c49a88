"""Endpoints with one model on the emulator, through boto3 only."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.live.account import BUCKET, ROLE, Account, account, multi_model, refusal, variant
from tests.live.stack import alive, at_once, toy

TEXT = {"ContentType": "text/plain"}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with account(tmp_path_factory.mktemp("w")) as made:
        yield made


@pytest.fixture(scope="module")
def echo(aws: Account, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a model that answers with its process id and the body."""
    return aws.put("echo.tar.gz", toy(tmp_path_factory.mktemp("m"), "echo"))


def test_an_endpoint_is_created_invoked_and_deleted(aws: Account, echo: str) -> None:
    """Creating, then InService as its config describes. After deletion the endpoint and its process are gone."""
    aws.model("whole", {"ModelDataUrl": echo})
    aws.config("whole", variant("whole"))
    aws.sagemaker.create_endpoint(EndpointName="whole", EndpointConfigName="whole", Tags=[{"Key": "k", "Value": "v"}])
    assert aws.describe("whole")["EndpointStatus"] == "Creating"
    in_progress = refusal(lambda: aws.sagemaker.delete_endpoint(EndpointName="whole"))
    too_early = refusal(lambda: aws.invoke("whole"))

    described = aws.settled("whole")
    answer = aws.runtime.invoke_endpoint(EndpointName="whole", Body=b"hello", CustomAttributes="trace=1", **TEXT)
    pid, _, body = answer["Body"].read().partition(b":")
    listed = aws.sagemaker.list_endpoints(StatusEquals="InService")["Endpoints"]
    aws.delete("whole")

    arn = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/whole"
    assert in_progress == ("ValidationException", f'Cannot update in-progress endpoint "{arn}".')
    assert too_early == ("ValidationError", "Endpoint whole of account 123456789012 not found.")
    (shown,) = described["ProductionVariants"]
    assert described["EndpointStatus"] == "InService"
    assert (shown["VariantName"], shown["CurrentWeight"], shown["CurrentInstanceCount"]) == ("AllTraffic", 1.0, 1)
    assert (body, answer["ContentType"], answer["InvokedProductionVariant"]) == (b"hello", "text/plain", "AllTraffic")
    assert answer["CustomAttributes"] == "trace=1"
    assert "whole" in [each["EndpointName"] for each in listed]
    assert not alive(int(pid))
    assert refusal(lambda: aws.invoke("whole"))[0] == "ValidationError"
    assert (
        refusal(lambda: aws.sagemaker.delete_endpoint(EndpointName="whole"))[1] == f'Could not find endpoint "{arn}".'
    )


def test_a_container_with_two_models_reads_the_models_name_from_the_body(aws: Account, tmp_path: Path) -> None:
    """Two models in one archive: the field model_type chooses one. Without the field the call is a ModelError."""
    toy(tmp_path, "echo", "plain")
    toy(tmp_path, "echo", "mirror", files={"model.toml": "[options]\nreverse = true\n"})
    aws.endpoint("bundle", {"ModelDataUrl": aws.put("bundle.tar.gz", tmp_path / "plain", tmp_path / "mirror")})

    plain = aws.invoke("bundle", '{"model_type": "plain"}').partition(b":")[2]
    mirror = aws.invoke("bundle", '{"model_type": "mirror"}').partition(b":")[2]
    with pytest.raises(ClientError) as caught:
        aws.invoke("bundle", '{"inputs": 1}')
    aws.delete("bundle")

    assert (plain, mirror) == (b'{"model_type": "plain"}', b'{"model_type": "mirror"}'[::-1])
    error = caught.value.response
    assert error["Error"]["Code"] == "ModelError"
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert 400 <= error["OriginalStatusCode"] < 500
    assert '"code":' in error["OriginalMessage"]
    assert error["LogStreamArn"].endswith("/aws/sagemaker/Endpoints/bundle")


def test_plain_files_below_a_prefix_become_the_model_directory(aws: Account, tmp_path: Path) -> None:
    """ModelDataSource with S3Prefix and no compression: the same tree as in S3."""
    directory = toy(tmp_path, "echo")
    for path in directory.rglob("*"):
        if path.is_file():
            aws.s3.upload_file(str(path), BUCKET, f"tree/echo/{path.relative_to(directory)}")
    source = {"S3Uri": f"s3://{BUCKET}/tree/", "S3DataType": "S3Prefix", "CompressionType": "None"}

    aws.endpoint("tree", {"ModelDataSource": {"S3DataSource": source}})

    assert aws.invoke("tree", b"leaf", **TEXT).endswith(b":leaf")
    aws.delete("tree")


def test_a_container_that_exits_fails_its_endpoint(aws: Account, echo: str) -> None:
    """The FailureReason has AWS's sentence and the cause. A failed endpoint can only be deleted."""
    aws.model("broken", {"ModelDataUrl": echo, "Environment": {"SERVE_NO_SUCH_SETTING": "1"}})
    aws.config("broken", variant("broken"))

    described = aws.create("broken", "broken")

    assert described["EndpointStatus"] == "Failed"
    assert "production variant AllTraffic did not pass the ping health check" in described["FailureReason"]
    assert "SERVE_NO_SUCH_SETTING" in described["FailureReason"]
    update = refusal(lambda: aws.sagemaker.update_endpoint(EndpointName="broken", EndpointConfigName="broken"))
    assert "it can only be deleted" in update[1]
    aws.delete("broken")


def test_variants_share_calls_by_weight(aws: Account, echo: str) -> None:
    """About 9 to 1. TargetVariant overrides it. Weights and counts change in place. Weight 0 gets no call."""
    aws.model("ab", {"ModelDataUrl": echo})
    aws.config("ab", *(variant("ab", name, InitialVariantWeight=weight) for name, weight in (("A", 9), ("B", 1))))
    assert aws.create("ab", "ab")["EndpointStatus"] == "InService"

    def called(**options: str) -> str:
        answer = aws.runtime.invoke_endpoint(EndpointName="ab", Body=b"x", **TEXT, **options)
        answer["Body"].read()
        return str(answer["InvokedProductionVariant"])

    shares = Counter(called() for _ in range(200))
    unknown = refusal(lambda: called(TargetVariant="D"))
    aws.sagemaker.update_endpoint_weights_and_capacities(
        EndpointName="ab",
        DesiredWeightsAndCapacities=[
            {"VariantName": "A", "DesiredWeight": 0},
            {"VariantName": "B", "DesiredWeight": 1, "DesiredInstanceCount": 2},
        ],
    )
    described = aws.settled("ab")

    assert set(shares) == {"A", "B"}
    assert 160 < shares["A"] < 198  # of 200 calls; the seed is fixed
    assert unknown == ("ValidationError", "Variant D not found in endpoint ab.")
    shown = {
        each["VariantName"]: (each["CurrentWeight"], each["CurrentInstanceCount"])
        for each in described["ProductionVariants"]
    }
    assert shown == {"A": (0, 1), "B": (1, 2)}
    assert {called() for _ in range(20)} == {"B"}
    assert called(TargetVariant="A") == "A"
    pids = [aws.pid("ab") for _ in range(4)]
    assert pids[:2] == pids[2:]  # B's two instances, round robin
    assert len(set(pids)) == 2
    assert set(at_once(8, lambda _: aws.pid("ab"))) == set(pids)
    aws.delete("ab")


def test_a_shadow_gets_a_copy_of_each_call(aws: Account, tmp_path: Path) -> None:
    """Each call reaches both variants once. The caller gets the production variant's answer only."""
    progress = tmp_path / "progress"
    allow = {"model.toml": f'[allow]\nwrite = ["{tmp_path}"]\n'}
    aws.model("front", {"ModelDataUrl": aws.put("front.tar.gz", toy(tmp_path, "echo"))})
    aws.model("back", {"ModelDataUrl": aws.put("back.tar.gz", toy(tmp_path, "stream", files=allow))})
    aws.config("shadowed", variant("front"), ShadowProductionVariants=[variant("back", "Shadow")])
    described = aws.create("shadowed", "shadowed")

    answer = aws.invoke("shadowed", {"chunks": 1, "progress": str(progress)})
    aws.delete("shadowed")  # waits for calls in flight

    assert described["ShadowProductionVariants"][0]["VariantName"] == "Shadow"
    assert answer.endswith(b"}")
    assert progress.read_text() == "0\nclosed\n"


def test_names_are_unique(aws: Account, echo: str) -> None:
    """The errors are in AWS's words."""
    aws.model("once", {"ModelDataUrl": echo})
    aws.config("once", variant("once"))
    aws.sagemaker.create_endpoint(EndpointName="once", EndpointConfigName="once")

    errors = [
        refusal(lambda: aws.model("once", {"ModelDataUrl": echo})),
        refusal(lambda: aws.config("once", variant("once"))),
        refusal(lambda: aws.create("once", "once")),
    ]
    aws.settled("once")
    aws.delete("once")

    arn = "arn:aws:sagemaker:us-east-1:123456789012:"
    assert errors == [
        ("ValidationException", f'Cannot create already existing model "{arn}model/once".'),
        ("ValidationException", f'Cannot create already existing endpoint configuration "{arn}endpoint-config/once".'),
        ("ValidationException", f'Cannot create already existing endpoint "{arn}endpoint/once".'),
    ]


def test_errors_name_the_missing_resource(aws: Account, echo: str) -> None:
    """A model, an endpoint config, an endpoint, model data."""
    aws.model("there", {"ModelDataUrl": echo})

    errors = [
        refusal(lambda: aws.config("c", variant("nowhere")))[1],
        refusal(lambda: aws.create("e", "nowhere"))[1],
        refusal(lambda: aws.sagemaker.update_endpoint(EndpointName="e", EndpointConfigName="nowhere"))[1],
        refusal(lambda: aws.sagemaker.describe_model(ModelName="nowhere"))[1],
        refusal(lambda: aws.sagemaker.delete_endpoint_config(EndpointConfigName="nowhere"))[1],
        refusal(lambda: aws.model("dataless", {"ModelDataUrl": f"s3://{BUCKET}/no.tar.gz"}))[1],
    ]

    arn = "arn:aws:sagemaker:us-east-1:123456789012:"
    assert errors == [
        f'Could not find model "{arn}model/nowhere".',
        f'Could not find endpoint configuration "{arn}endpoint-config/nowhere".',
        f'Could not find endpoint "{arn}endpoint/e".',
        f'Could not find model "{arn}model/nowhere".',
        f'Could not find endpoint configuration "{arn}endpoint-config/nowhere".',
        f"Could not find model data at s3://{BUCKET}/no.tar.gz.",
    ]


def test_requests_that_aws_refuses_are_refused(aws: Account, echo: str) -> None:
    """Invalid models and endpoint configs, each with the reason."""
    aws.model("sound", {"ModelDataUrl": echo})
    aws.model("mme", multi_model("mme"))
    source = {"S3DataSource": {"S3Uri": f"s3://{BUCKET}/tree/", "S3DataType": "S3Prefix", "CompressionType": "None"}}
    serverless = {"MemorySizeInMB": 2048, "MaxConcurrency": 1}
    no_instance = {"VariantName": "V", "ModelName": "mme", "ServerlessConfig": serverless}

    errors = [
        refusal(lambda: aws.model("x", {"Mode": "MultiModel", "ModelDataUrl": echo}))[1],
        refusal(lambda: aws.model("x", {"Mode": "MultiModel", "ModelDataSource": source}))[1],
        refusal(lambda: aws.model("x", {"ModelDataUrl": echo, "ModelDataSource": source}))[1],
        refusal(lambda: aws.sagemaker.create_model(ModelName="x", ExecutionRoleArn=ROLE))[1],
        refusal(lambda: aws.model("x", {}, {}, InferenceExecutionConfig={"Mode": "Direct"}))[1],
        refusal(lambda: aws.config("x", variant("sound", InstanceType="ml.m9.tiny")))[1],
        refusal(lambda: aws.config("x", variant("sound"), variant("sound")))[1],
        refusal(lambda: aws.config("x", no_instance))[1],
        refusal(lambda: aws.sagemaker.create_inference_component(InferenceComponentName="x", EndpointName="e"))[1],
    ]

    for message, text in zip(
        errors,
        [
            "must end with '/'",
            "ModelDataSource is not supported for a container with Mode MultiModel",
            "either ModelDataUrl or ModelDataSource",
            "either PrimaryContainer or Containers",
            "each with a ContainerHostname",
            "Value 'ml.m9.tiny' at 'productionVariants.1.member.instanceType' failed to satisfy constraint",
            "VariantName must be unique",
            "does not support multi-model",
            "CreateInferenceComponent is not supported",
        ],
        strict=True,
    ):
        assert text in message
    models = aws.sagemaker.list_models()["Models"]
    assert "x" not in [each["ModelName"] for each in models]

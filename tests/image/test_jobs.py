"""Jobs and roles on real containers, through boto3 only."""

import json
from pathlib import Path
from typing import Any

import pytest

from local_test.jobs.hosts import LABEL
from tests.image.containers import docker
from tests.live.account import BUCKET, account, refusal
from tests.live.stack import toy, wait_until
from tests.live.test_jobs import BLAZINGTEXT, Jobs, channel, cluster, output

pytestmark = pytest.mark.timeout(900)

# The hosts of a training find each other, read their share of the data, and act as their role.
PAIR = """
import boto3, json, pathlib, socket
resources = json.load(open("/opt/ml/input/config/resourceconfig.json"))
host = resources["current_host"]
for each in resources["hosts"]:
    socket.gethostbyname(each)
shard = sorted(each.name for each in pathlib.Path("/opt/ml/input/data/part").iterdir())
arn = boto3.client("sts").get_caller_identity()["Arn"]
found = boto3.client("s3").get_object(Bucket="models", Key="shares/a")["Body"].read().decode()
pathlib.Path("/opt/ml/model", host).write_text(json.dumps([socket.gethostname(), shard, found, arn]))
print("score", 0.5)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def left() -> list[str]:
    networks = docker("network", "ls", "--quiet", "--filter", f"label={LABEL}").split()
    return networks + docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}").split()


def entrypoint(image: str) -> dict[str, Any]:
    """The image's Python runs the script, since the image's own entrypoint is the server."""
    return {
        "TrainingImage": image,
        "ContainerEntrypoint": ["/opt/serve/bin/python", "/opt/ml/input/data/code/run.py"],
    }


def test_the_hosts_of_a_training_are_containers_with_a_share_and_a_role(image: str, tmp_path: Path) -> None:
    with account(tmp_path, runtime="docker") as made:
        aws = Jobs(made.platform, made._output)
        for name in "abc":
            aws.s3.put_object(Bucket=BUCKET, Key=f"shares/{name}", Body=name.encode())
        aws.train(
            "containers",
            PAIR,
            AlgorithmSpecification={
                **entrypoint(image),
                "MetricDefinitions": [{"Name": "score", "Regex": "score ([0-9.]+)"}],
            },
            InputDataConfig=[channel("part", f"s3://{BUCKET}/shares/", S3DataDistributionType="ShardedByS3Key")],
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1},
        )
        described = aws.trained("containers")
        assert described["TrainingJobStatus"] == "Completed", described
        found = aws.packed(described["ModelArtifacts"]["S3ModelArtifacts"])
        streams = aws.log("/aws/sagemaker/TrainingJobs", "containers")
        refused = refusal(lambda: aws.train("other", "", AlgorithmSpecification=entrypoint(BLAZINGTEXT)))

        arn = "arn:aws:sts::123456789012:assumed-role/endpoint/SageMaker"
        assert {host: json.loads(text) for host, text in found.items()} == {
            "algo-1": ["algo-1", ["a", "c"], "a", arn],
            "algo-2": ["algo-2", ["b"], "a", arn],
        }
        assert [each["Value"] for each in described["FinalMetricDataList"]] == [0.5]
        assert len(streams) == 2
        assert refused == (
            "ValidationException",
            f"Requested image {BLAZINGTEXT} not found. No image is pulled here: docker pull it, or build it.",
        )
        assert left() == []


def test_a_processing_container_writes_its_outputs(image: str, tmp_path: Path) -> None:
    with account(tmp_path, runtime="docker") as made:
        aws = Jobs(made.platform, made._output)
        aws.process(
            "write",
            "import sys\nopen('/opt/ml/processing/output/x/rows.txt', 'w').write(sys.argv[1])",
            "argument",
            AppSpecification={
                "ImageUri": image,
                "ContainerEntrypoint": ["/opt/serve/bin/python", "/opt/ml/processing/input/code/run.py"],
                "ContainerArguments": ["argument"],
            },
            ProcessingOutputConfig={"Outputs": [output("x", f"s3://{BUCKET}/written/")]},
            ProcessingResources=cluster(1),
        )
        assert aws.processed("write")["ProcessingJobStatus"] == "Completed", aws.processed("write")
        assert aws.text("written/rows.txt") == "argument"


def test_containers_that_ignore_a_stop_are_killed(image: str, tmp_path: Path) -> None:
    """By a stop after its time limit, and by the end of the emulator at once."""

    def logged(jobs: Jobs, name: str) -> list[str]:
        return [line for lines in jobs.log("/aws/sagemaker/TrainingJobs", name).values() for line in lines]

    with account(tmp_path, runtime="docker", job_stop_limit=2.0) as made:
        aws = Jobs(made.platform, made._output)
        for name in ("stubborn", "cut-off"):
            aws.train(name, STUBBORN, AlgorithmSpecification=entrypoint(image))
        wait_until(lambda: logged(aws, "stubborn") and logged(aws, "cut-off"))
        aws.sagemaker.stop_training_job(TrainingJobName="stubborn")
        assert aws.trained("stubborn")["TrainingJobStatus"] == "Stopped"
        assert logged(aws, "stubborn") == ["ready", "asked"]
        assert len(left()) == 1
    assert left() == []


def test_a_submitted_script_trains_in_the_image(image: str, tmp_path: Path) -> None:
    """The image's own `train` fetches it from the emulator's S3, by the address and credentials that it is given."""
    source = """
    import json, os
    import helper
    with open(os.path.join(os.environ["SM_MODEL_DIR"], "said.json"), "w") as file:
        json.dump([helper.VALUE, os.environ["SM_CURRENT_HOST"], json.loads(os.environ["SM_HPS"])], file)
    """
    with account(tmp_path, runtime="docker") as made:
        aws = Jobs(made.platform, made._output)
        aws.train(
            "submitted",
            "",
            HyperParameters={**aws.submitted("said", source, **{"helper.py": "VALUE = 5\n"}), "epochs": "3"},
            AlgorithmSpecification={"TrainingImage": image, "ContainerEntrypoint": None},
        )
        described = aws.trained("submitted")
        assert described["TrainingJobStatus"] == "Completed", aws.log("/aws/sagemaker/TrainingJobs", "submitted")
        (said,) = aws.packed(described["ModelArtifacts"]["S3ModelArtifacts"]).values()
        assert json.loads(said) == [5, "algo-1", {"epochs": 3}]


def test_own_code_in_a_container_reads_the_input_that_a_request_links_to(image: str, tmp_path: Path) -> None:
    with account(tmp_path / "w", runtime="docker") as aws:
        model = {"ModelDataUrl": aws.put("linked.tar.gz", toy(tmp_path, "linked")), "Image": image}
        aws.endpoint("linked", model)
        aws.s3.put_object(Bucket=BUCKET, Key="inputs/one.txt", Body=b"the input")

        assert aws.invoke("linked", {"input": f"s3://{BUCKET}/inputs/one.txt"}) == b"tupni eht"
        aws.delete("linked")

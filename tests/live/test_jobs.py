"""Jobs on the emulator, through boto3 only: scripts that run as processes, with their data from S3."""

import io
import json
import socket
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from local_test.jobs.hosts import has_namespaces
from tests.live.account import BUCKET, ROLE, Account, account, refusal
from tests.live.stack import alive, toy, wait_until

ARN = "arn:aws:sagemaker:us-east-1:123456789012"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/sagemaker-serve:latest"
BLAZINGTEXT = "811284229777.dkr.ecr.us-east-1.amazonaws.com/blazingtext:1"
HOUR = timedelta(hours=1)


class Jobs(Account):
    """Requests for jobs whose scripts are given as text."""

    def script(self, name: str, source: str) -> str:
        """Uploads a script; the URI of its prefix."""
        self.s3.put_object(Bucket=BUCKET, Key=f"code/{name}/run.py", Body=dedent(source).encode())
        return f"s3://{BUCKET}/code/{name}/"

    def submitted(self, name: str, source: str, **files: str) -> dict[str, str]:
        """The hyperparameters with which the SDK submits a script."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path, text in {"run.py": source, **files}.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(dedent(text).encode())
                archive.addfile(entry, io.BytesIO(dedent(text).encode()))
        self.s3.put_object(Bucket=BUCKET, Key=f"source/{name}.tar.gz", Body=packed.getvalue())
        uri = f"s3://{BUCKET}/source/{name}.tar.gz"
        return {"sagemaker_program": '"run.py"', "sagemaker_submit_directory": json.dumps(uri)}

    def put_rows(self, **rows: str) -> str:
        for name, text in rows.items():
            self.s3.put_object(Bucket=BUCKET, Key=f"rows/{name}.csv", Body=text.encode())
        return f"s3://{BUCKET}/rows/"

    def train(self, name: str, source: str, **members: Any) -> dict[str, Any]:
        request = training(name, self.script(name, source), **members)
        return self.sagemaker.create_training_job(**request)  # type: ignore[no-any-return]

    def training(self, name: str) -> dict[str, Any]:
        return self.sagemaker.describe_training_job(TrainingJobName=name)  # type: ignore[no-any-return]

    def trained(self, name: str) -> dict[str, Any]:
        """The description of a training that has ended."""
        return wait_until(lambda: ended(self.training(name), "TrainingJobStatus"))  # type: ignore[no-any-return]

    def process(self, name: str, source: str, *arguments: str, **members: Any) -> dict[str, Any]:
        code = channel_input("code", self.script(name, source))
        request = {
            "ProcessingJobName": name,
            "RoleArn": ROLE,
            "AppSpecification": {
                "ImageUri": IMAGE,
                "ContainerEntrypoint": ["python3", "/opt/ml/processing/input/code/run.py"],
                **({"ContainerArguments": list(arguments)} if arguments else {}),
            },
            "ProcessingResources": cluster(1),
            **members,
            "ProcessingInputs": [code, *members.get("ProcessingInputs", ())],
        }
        return self.sagemaker.create_processing_job(**request)  # type: ignore[no-any-return]

    def processed(self, name: str) -> dict[str, Any]:
        def done() -> dict[str, Any] | None:
            return ended(self.sagemaker.describe_processing_job(ProcessingJobName=name), "ProcessingJobStatus")

        return wait_until(done)  # type: ignore[no-any-return]

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
        return [each["Key"].removeprefix(prefix) for each in found]

    def text(self, key: str) -> str:
        return self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode()  # type: ignore[no-any-return]

    def packed(self, uri: str) -> dict[str, str]:
        """The files of an archive in S3."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        body = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            members = {each.name: archive.extractfile(each) for each in archive}
            return {name: file.read().decode() for name, file in members.items() if file}

    def log(self, group: str, job: str) -> dict[str, list[str]]:
        """The lines of a job's log streams. The first line of an account's first job creates the group."""
        logs = self.platform.client("logs")
        try:
            streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")["logStreams"]
        except logs.exceptions.ResourceNotFoundException:
            return {}
        names = [each["logStreamName"] for each in streams]
        return {
            name: [
                each["message"]
                for each in logs.get_log_events(logGroupName=group, logStreamName=name, startFromHead=True)["events"]
            ]
            for name in names
        }


def training(name: str, code: str, **members: Any) -> dict[str, Any]:
    """A request whose channel `code` has the script that its entrypoint runs."""
    algorithm = {
        "TrainingImage": IMAGE,
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/run.py"],
        **members.pop("AlgorithmSpecification", {}),
    }
    algorithm = {key: value for key, value in algorithm.items() if value is not None}
    return {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        **members,
        "AlgorithmSpecification": algorithm,
        "InputDataConfig": [channel("code", code), *members.get("InputDataConfig", ())],
    }


def channel(name: str, uri: str, **source: str) -> dict[str, Any]:
    return {
        "ChannelName": name,
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri, **source}},
    }


def channel_input(name: str, uri: str, **source: str) -> dict[str, Any]:
    given = {"S3DataType": "S3Prefix", "S3InputMode": "File", **source}
    return {"InputName": name, "S3Input": {"S3Uri": uri, "LocalPath": f"/opt/ml/processing/input/{name}", **given}}


def output(name: str, uri: str) -> dict[str, Any]:
    local = f"/opt/ml/processing/output/{name}"
    return {"OutputName": name, "S3Output": {"S3Uri": uri, "LocalPath": local, "S3UploadMode": "EndOfJob"}}


def cluster(count: int) -> dict[str, Any]:
    return {"ClusterConfig": {"InstanceCount": count, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}}


def ended(described: dict[str, Any], status: str) -> dict[str, Any] | None:
    return None if described[status] in ("InProgress", "Stopping") else described


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    with account(tmp_path_factory.mktemp("w"), job_stop_limit=30.0) as made:
        yield Jobs(made.platform, made._output)


# Where the paths of the container can be used, scripts have them as they stand; else from their own place.
HOME = """
import json, os, pathlib, signal, sys, time
ml = pathlib.Path(os.environ.get("SERVE_ML_ROOT", "/opt/ml"))
"""


def test_a_training_runs_while_it_is_described(aws: Jobs, tmp_path: Path) -> None:
    """Created it is InProgress; its phases follow; at the end there are its model, metrics, log and output."""
    gate = tmp_path / "gate"
    source = f"""{HOME}
    print("waiting", flush=True)
    while not pathlib.Path(json.loads((ml / "input/config/hyperparameters.json").read_text())["gate"]).exists():
        time.sleep(0.02)
    rows = (ml / "input/data/train/one.csv").read_text()
    for value in (9.5, 8.25):
        print(f"loss={{value}};", flush=True)
    (ml / "model/model.txt").write_text(rows)
    (ml / "output/data/notes.txt").write_text(os.environ["TRAINING_JOB_NAME"])
    print("done", os.environ["WISH"])
    """.replace("\n    ", "\n")
    rows = aws.put_rows(one="1,2\n")
    created = aws.train(
        "whole",
        source,
        HyperParameters={"gate": str(gate)},
        InputDataConfig=[channel("train", rows)],
        Environment={"WISH": "granted"},
        AlgorithmSpecification={"MetricDefinitions": [{"Name": "loss", "Regex": "loss=(.*?);"}]},
        Tags=[{"Key": "k", "Value": "v"}],
    )
    at_training = wait_until(lambda: aws.training("whole")["SecondaryStatus"] == "Training" and aws.training("whole"))
    early = wait_until(lambda: aws.log("/aws/sagemaker/TrainingJobs", "whole"))
    gate.touch()
    aws.sagemaker.get_waiter("training_job_completed_or_stopped").wait(
        TrainingJobName="whole", WaiterConfig={"Delay": 1}
    )
    described = aws.training("whole")

    assert created["TrainingJobArn"] == f"{ARN}:training-job/whole"
    assert at_training["TrainingJobStatus"] == "InProgress"
    assert "ModelArtifacts" not in at_training
    assert [each["Status"] for each in at_training["SecondaryStatusTransitions"]] == [
        *("Starting", "Downloading", "Training"),
    ]
    assert next(iter(early.values())) == ["waiting"]
    assert [each["Status"] for each in described["SecondaryStatusTransitions"]] == [
        *("Starting", "Downloading", "Training", "Uploading", "Completed"),
    ]
    assert all("EndTime" in each for each in described["SecondaryStatusTransitions"])
    artifacts = described["ModelArtifacts"]["S3ModelArtifacts"]
    assert artifacts == f"s3://{BUCKET}/out/whole/output/model.tar.gz"
    assert aws.packed(artifacts) == {"model.txt": "1,2\n"}
    assert aws.packed(f"s3://{BUCKET}/out/whole/output/output.tar.gz") == {"notes.txt": "whole"}
    assert [(each["MetricName"], each["Value"]) for each in described["FinalMetricDataList"]] == [("loss", 8.25)]
    (stream, lines), *none = aws.log("/aws/sagemaker/TrainingJobs", "whole").items()
    assert stream.startswith("whole/algo-1-")
    assert lines == ["waiting", "loss=9.5;", "loss=8.25;", "done granted"]
    assert none == []
    assert aws.sagemaker.list_tags(ResourceArn=created["TrainingJobArn"])["Tags"] == [{"Key": "k", "Value": "v"}]
    by_artifacts = {"Filters": [{"Name": "ModelArtifacts.S3ModelArtifacts", "Operator": "Equals", "Value": artifacts}]}
    found = aws.sagemaker.search(Resource="TrainingJob", SearchExpression=by_artifacts)["Results"]
    assert [each["TrainingJob"]["TrainingJobArn"] for each in found] == [created["TrainingJobArn"]]
    assert f"python3 of this machine in place of {IMAGE}" in [each["detail"] for each in aws.events("process")]


def test_the_metrics_of_a_training_are_in_cloudwatch(aws: Jobs) -> None:
    metric = [{"Name": "score", "Regex": "score ([0-9.]+)"}]
    aws.train(
        "scored", 'print("score 0.5\\nscore 0.75\\nscore none")', AlgorithmSpecification={"MetricDefinitions": metric}
    )
    described = aws.trained("scored")
    at = described["TrainingEndTime"].timestamp()
    (found,) = aws.cloudwatch.get_metric_statistics(
        Namespace="/aws/sagemaker/TrainingJobs",
        MetricName="score",
        Dimensions=[{"Name": "TrainingJobName", "Value": "scored"}],
        StartTime=at - 600,
        EndTime=at + 60,
        Period=3600,
        Statistics=["Maximum", "SampleCount"],
    )["Datapoints"]

    assert (found["Maximum"], found["SampleCount"]) == (0.75, 2)


def test_a_training_without_a_model_completes(aws: Jobs) -> None:
    aws.train("empty", "print('nothing to save')")

    assert aws.trained("empty")["TrainingJobStatus"] == "Completed"
    assert aws.keys("out/empty/") == []
    assert "no model: there is no file in /opt/ml/model" in [each["detail"] for each in aws.events("job")]


def test_a_training_that_fails_has_the_reason_that_it_wrote(aws: Jobs) -> None:
    written = HOME + '(ml / "output/failure").write_text("no rows in train"); sys.exit(3)'
    aws.train("written", written)
    aws.train("raised", "raise RuntimeError('out of luck')")
    aws.train("nodata", "print(1)", InputDataConfig=[channel("train", f"s3://{BUCKET}/nowhere/")])
    described, raised, nodata = (aws.trained(each) for each in ("written", "raised", "nodata"))

    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Failed", "Failed")
    assert described["FailureReason"] == "AlgorithmError: no rows in train, exit code: 3"
    assert "ModelArtifacts" not in described
    assert raised["FailureReason"].startswith("AlgorithmError: Traceback")
    assert raised["FailureReason"].endswith("RuntimeError: out of luck, exit code: 1")
    assert nodata["FailureReason"].startswith(
        f'ClientError: Data download failed: No S3 objects found under S3 URL "s3://{BUCKET}/nowhere/"'
    )


def test_a_stopped_training_keeps_the_model_that_it_has(aws: Jobs) -> None:
    """It gets SIGTERM and may save what it has."""
    source = f"""{HOME}
    def stop(*_):
        (ml / "model/half").write_text("half")
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    signal.pause()
    """.replace("\n    ", "\n")
    aws.train("stopped", source)
    wait_until(lambda: ["ready"] in aws.log("/aws/sagemaker/TrainingJobs", "stopped").values())
    aws.sagemaker.stop_training_job(TrainingJobName="stopped")
    described = aws.trained("stopped")
    again = refusal(lambda: aws.sagemaker.stop_training_job(TrainingJobName="stopped"))

    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert "FailureReason" not in described
    assert "Stopping" in [each["Status"] for each in described["SecondaryStatusTransitions"]]
    assert aws.packed(described["ModelArtifacts"]["S3ModelArtifacts"]) == {"half": "half"}
    assert again == (
        "ValidationException",
        "The request was rejected because the training job is in status Stopped.",
    )


def test_a_training_is_stopped_at_its_time_limit(aws: Jobs) -> None:
    aws.train("late", "import time; time.sleep(600)", StoppingCondition={"MaxRuntimeInSeconds": 1})
    described = aws.trained("late")

    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


def test_jobs_that_ignore_a_stop_are_killed(tmp_path: Path) -> None:
    """By a stop after the time limit of a stop, and by the end of the emulator at once, with their children."""
    source = f"""{HOME}
    import subprocess
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, os.getpid(), flush=True)
    time.sleep(600)
    """.replace("\n    ", "\n")

    def pids(jobs: Jobs, name: str) -> list[int]:
        (lines,) = wait_until(lambda: list(jobs.log("/aws/sagemaker/TrainingJobs", name).values()))
        return [int(each) for each in lines[0].split()]

    with account(tmp_path, job_stop_limit=0.1) as made:
        jobs = Jobs(made.platform, made._output)
        jobs.train("stopped-hard", source)
        first = pids(jobs, "stopped-hard")
        jobs.sagemaker.stop_training_job(TrainingJobName="stopped-hard")
        assert jobs.trained("stopped-hard")["TrainingJobStatus"] == "Stopped"
        assert not any(map(alive, first))
        jobs.train("closed", source)
        second = pids(jobs, "closed")
        assert all(map(alive, second))
    assert not any(map(alive, second))


def test_names_are_unique_and_unknown_jobs_are_refused(aws: Jobs) -> None:
    aws.train("once", "print(1)")
    aws.trained("once")
    code, message = refusal(lambda: aws.train("once", "print(1)"))
    aws.process("once", "print(1)")
    again = refusal(lambda: aws.process("once", "print(1)"))

    assert code == again[0] == "ResourceInUse"
    assert f"({ARN}:training-job/once)" in message
    assert f"({ARN}:processing-job/once)" in again[1]
    assert refusal(lambda: aws.training("never")) == ("ValidationException", "Requested resource not found.")
    assert refusal(lambda: aws.sagemaker.stop_processing_job(ProcessingJobName="never")) == (
        "ValidationException",
        "Could not find requested job with name: never",
    )


PIPE = {"AlgorithmSpecification": {"TrainingInputMode": "Pipe"}}
FILE_SYSTEM = {
    "ChannelName": "train",
    "DataSource": {
        "FileSystemDataSource": {
            "FileSystemId": "fs-1234567890",
            "FileSystemAccessMode": "ro",
            "FileSystemType": "EFS",
            "DirectoryPath": "/",
        }
    },
}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            {"AlgorithmSpecification": {"TrainingImage": BLAZINGTEXT, "ContainerEntrypoint": None}},
            "no process can take its place: this repository's server has no algorithm of blazingtext.",
        ),
        (
            {"AlgorithmSpecification": {"TrainingImage": "mine", "ContainerEntrypoint": ["/app/run"]}},
            "its entrypoint /app/run is in the image alone",
        ),
        (PIPE, "TrainingInputMode Pipe is not supported by this emulator: use File or FastFile."),
        ({"InputDataConfig": [FILE_SYSTEM]}, "channel train: only an S3DataSource is supported"),
        (
            {"InputDataConfig": [channel("train", "s3://b/manifest", S3DataType="AugmentedManifestFile")]},
            "channel train: S3DataType AugmentedManifestFile is not supported by this emulator, only S3Prefix and",
        ),
        (
            {"AlgorithmSpecification": {"MetricDefinitions": [{"Name": "x", "Regex": "x=("}]}},
            "MetricDefinitions: missing ), unterminated subpattern",
        ),
    ],
)
def test_a_training_that_cannot_run_here_is_refused(aws: Jobs, members: dict[str, Any], said: str) -> None:
    code, message = refusal(lambda: aws.train("refused", "print(1)", **members))

    assert code == "ValidationException"
    assert said in message
    assert refusal(lambda: aws.training("refused"))[1] == "Requested resource not found."


def test_jobs_are_listed_by_name_status_and_time(aws: Jobs) -> None:
    for number in range(3):
        aws.train(f"listed-{number}", f"raise SystemExit({number % 2})")
    created, *_ = [aws.trained(f"listed-{number}")["CreationTime"] for number in range(3)]

    def names(**asked: Any) -> list[str]:
        found = aws.sagemaker.list_training_jobs(NameContains="listed", **asked)["TrainingJobSummaries"]
        return [each["TrainingJobName"][-1] for each in found]

    pages = aws.sagemaker.get_paginator("list_training_jobs").paginate(
        NameContains="listed", SortBy="Name", SortOrder="Descending", PaginationConfig={"PageSize": 2}
    )
    paged = [[each["TrainingJobName"][-1] for each in page["TrainingJobSummaries"]] for page in pages]

    assert names() == ["0", "1", "2"]
    assert names(StatusEquals="Failed") == ["1"]
    assert names(SortBy="Status", SortOrder="Descending")[0] == "1"
    assert names(CreationTimeAfter=created - HOUR, LastModifiedTimeBefore=created + HOUR) == ["0", "1", "2"]
    assert names(CreationTimeBefore=created - HOUR) == names(LastModifiedTimeAfter=created + HOUR) == []
    assert paged == [["2", "1"], ["0"]]


def test_a_processing_job_runs_a_script_on_its_inputs(aws: Jobs) -> None:
    source = f"""{HOME}
    home = ml / "processing"
    rows = (home / "input/data/one.csv").read_text()
    (home / "output/upper/deep").mkdir()
    (home / "output/upper/deep/rows.txt").write_text(rows + sys.argv[1] + os.environ["WISH"])
    config = json.loads((ml / "config/processingjobconfig.json").read_text())
    (ml / "output/message").write_text("processed " + config["ProcessingJobName"])
    print(json.loads((ml / "config/resourceconfig.json").read_text())["hosts"])
    """.replace("\n    ", "\n")
    created = aws.process(
        "rows",
        source,
        "argument",
        ProcessingInputs=[channel_input("data", aws.put_rows(one="1,2\n") + "one")],
        ProcessingOutputConfig={"Outputs": [output("upper", f"s3://{BUCKET}/processed/")]},
        Environment={"WISH": "granted"},
    )
    described = aws.processed("rows")

    assert created["ProcessingJobArn"] == described["ProcessingJobArn"] == f"{ARN}:processing-job/rows"
    assert described["ProcessingJobStatus"] == "Completed", described
    assert described["ExitMessage"] == "processed rows"
    assert described["ProcessingStartTime"] <= described["ProcessingEndTime"]
    assert aws.keys("processed/") == ["deep/rows.txt"]
    assert aws.text("processed/deep/rows.txt") == "1,2\nargumentgranted"
    assert list(aws.log("/aws/sagemaker/ProcessingJobs", "rows").values()) == [["['algo-1']"]]


def test_a_processing_job_that_fails_or_is_stopped_says_so(aws: Jobs) -> None:
    aws.process("broken", "raise RuntimeError('no columns')")
    aws.process("endless", "import time\nprint('on', flush=True)\ntime.sleep(600)")
    wait_until(lambda: aws.log("/aws/sagemaker/ProcessingJobs", "endless"))
    aws.sagemaker.stop_processing_job(ProcessingJobName="endless")

    assert aws.processed("broken")["ProcessingJobStatus"] == "Failed"
    assert aws.processed("broken")["FailureReason"].endswith("RuntimeError: no columns, exit code: 1")
    assert aws.processed("endless")["ProcessingJobStatus"] == "Stopped"
    found = aws.sagemaker.list_processing_jobs(StatusEquals="Stopped")["ProcessingJobSummaries"]
    assert [each["ProcessingJobName"] for each in found] == ["endless"]


def test_each_instance_gets_its_share_of_the_objects(aws: Jobs) -> None:
    """ShardedByS3Key: every second object; FullyReplicated: all. A manifest names its objects."""
    uri = f"s3://{BUCKET}/shares/"
    for name in "abc":
        aws.s3.put_object(Bucket=BUCKET, Key=f"shares/{name}", Body=name.encode())
    aws.s3.put_object(Bucket=BUCKET, Key="manifest", Body=json.dumps([{"prefix": uri}, "a", "c"]).encode())
    source = f"""{HOME}
    host = json.loads((ml / "config/resourceconfig.json").read_text())["current_host"]
    found = {{each.name: sorted(file.name for file in each.iterdir()) for each in (ml / "processing/input").iterdir()}}
    (ml / "processing/output/found" / host).write_text(json.dumps(found))
    """.replace("\n    ", "\n")
    aws.process(
        "shares",
        source,
        ProcessingInputs=[
            channel_input("part", uri, S3DataDistributionType="ShardedByS3Key"),
            channel_input("all", uri),
            channel_input("named", f"s3://{BUCKET}/manifest", S3DataType="ManifestFile"),
        ],
        ProcessingOutputConfig={"Outputs": [output("found", f"s3://{BUCKET}/found/")]},
        ProcessingResources=cluster(2),
    )
    assert aws.processed("shares")["ProcessingJobStatus"] == "Completed", aws.processed("shares")
    first, second = (json.loads(aws.text(f"found/algo-{number}")) for number in (1, 2))

    assert (first["part"], second["part"]) == (["a", "c"], ["b"])
    assert first["all"] == second["all"] == ["a", "b", "c"]
    assert first["named"] == ["a", "c"]


def test_a_process_has_the_paths_and_names_of_its_container(aws: Jobs) -> None:
    """/opt/ml is the job's own, and its hosts find one another, where the machine allows mount namespaces."""
    source = """
    import json, pathlib, socket
    host = json.load(open("/opt/ml/input/config/resourceconfig.json"))["current_host"]
    pathlib.Path("/opt/ml/model", host).write_text(socket.gethostbyname(host))
    """
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}
    aws.train("pair", source, ResourceConfig=resources)
    described = aws.trained("pair")

    if not has_namespaces():
        assert "/opt/ml/input/config/resourceconfig.json" in described["FailureReason"]
        return
    assert described["TrainingJobStatus"] == "Completed", described
    found = aws.packed(described["ModelArtifacts"]["S3ModelArtifacts"])
    assert found == {"algo-1": "127.0.0.1", "algo-2": "127.0.0.2"}
    assert len(aws.log("/aws/sagemaker/TrainingJobs", "pair")) == 0
    with pytest.raises(OSError, match="Name or service not known"):
        socket.gethostbyname("algo-2")


RANGES = {
    "ContinuousParameterRanges": [{"Name": "x", "MinValue": "0", "MaxValue": "1"}],
    "CategoricalParameterRanges": [{"Name": "sign", "Values": ["1", "-1"]}],
}
SCORED = """
import json, os
given = json.loads(os.environ["SM_HPS"])
if given.get("fails"):
    raise RuntimeError("as asked")
print("score", given["x"] * given["sign"])
"""


def tuning(aws: Jobs, name: str, jobs: int = 3, **config: Any) -> dict[str, Any]:
    """A request for a tuning job that draws `x` and `sign`; the objective is their product."""
    metrics = {"MetricDefinitions": [{"Name": "score", "Regex": "score (.*)"}], "ContainerEntrypoint": None}
    definition = training(name, aws.script("none", ""), AlgorithmSpecification=metrics)
    del definition["TrainingJobName"]
    static = {**aws.submitted("scored", SCORED), **config.pop("StaticHyperParameters", {})}
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "score"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": jobs, "MaxParallelTrainingJobs": 2},
            "ParameterRanges": RANGES,
            **config,
        },
        "TrainingJobDefinition": {**definition, "StaticHyperParameters": static},
    }


def tuned(aws: Jobs, name: str) -> dict[str, Any]:
    def done() -> dict[str, Any] | None:
        described = aws.sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        return ended(described, "HyperParameterTuningJobStatus")

    return wait_until(done)  # type: ignore[no-any-return]


def test_a_tuning_job_finds_the_best_of_its_trainings(aws: Jobs) -> None:
    created = aws.sagemaker.create_hyper_parameter_tuning_job(**tuning(aws, "search"))
    described = tuned(aws, "search")

    def listed(**asked: str) -> list[dict[str, Any]]:
        pages = aws.sagemaker.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName="search", PaginationConfig={"PageSize": 2}, **asked
        )
        return [each for page in pages for each in page["TrainingJobSummaries"]]

    trainings = listed(SortBy="FinalObjectiveMetricValue", SortOrder="Descending")
    values = [each["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] for each in trainings]
    best = described["BestTrainingJob"]
    one = aws.training(best["TrainingJobName"])
    assert created["HyperParameterTuningJobArn"] == f"{ARN}:hyper-parameter-tuning-job/search"
    assert described["HyperParameterTuningJobStatus"] == "Completed", described
    assert described["TrainingJobStatusCounters"]["Completed"] == len(trainings) == 3
    assert described["ObjectiveStatusCounters"] == {"Succeeded": 3, "Pending": 0, "Failed": 0}
    assert values == sorted(values, reverse=True)
    assert best["FinalHyperParameterTuningJobObjectiveMetric"] == {
        "Type": "Maximize",
        "MetricName": "score",
        "Value": values[0],
    }
    assert one["TuningJobArn"] == created["HyperParameterTuningJobArn"]
    assert one["HyperParameters"]["_tuning_objective_metric"] == "score"
    assert {key: one["HyperParameters"][key] for key in ("x", "sign")} == best["TunedHyperParameters"]
    assert [each["TrainingJobName"][:11] for each in listed()] == [f"search-{number:03}-" for number in (1, 2, 3)]
    summaries = aws.sagemaker.list_hyper_parameter_tuning_jobs(NameContains="search")
    assert summaries["HyperParameterTuningJobSummaries"][0]["Strategy"] == "Random"


def test_a_grid_has_every_combination(aws: Jobs) -> None:
    ranges = {"CategoricalParameterRanges": [{"Name": "x", "Values": ["1", "2"]}, {"Name": "sign", "Values": ["-1"]}]}
    request = tuning(aws, "grid", Strategy="Grid", ParameterRanges=ranges)
    objective = {"Type": "Minimize", "MetricName": "score"}
    request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"] = objective
    aws.sagemaker.create_hyper_parameter_tuning_job(**request)

    assert tuned(aws, "grid")["BestTrainingJob"]["TunedHyperParameters"] == {"x": "2", "sign": "-1"}


def test_a_tuning_job_without_a_result_fails(aws: Jobs) -> None:
    aws.sagemaker.create_hyper_parameter_tuning_job(
        **tuning(aws, "lost", jobs=2, StaticHyperParameters={"fails": "1"}, Strategy="Bayesian")
    )
    described = tuned(aws, "lost")

    assert described["HyperParameterTuningJobStatus"] == "Failed"
    assert described["FailureReason"].startswith("All training jobs failed.")
    assert 'ErrorMessage "RuntimeError: as asked"' in described["FailureReason"]
    assert described["TrainingJobStatusCounters"]["NonRetryableError"] == 2
    assert "Strategy Bayesian is played by random draws" in [each["detail"] for each in aws.events("job")]


def test_a_stopped_tuning_job_stops_its_trainings(aws: Jobs) -> None:
    request = tuning(aws, "halted", jobs=3)
    sleeper = aws.submitted("sleeper", "import time; time.sleep(600)")
    request["TrainingJobDefinition"]["StaticHyperParameters"] = sleeper
    aws.sagemaker.create_hyper_parameter_tuning_job(**request)
    wait_until(lambda: len(aws.sagemaker.list_training_jobs(NameContains="halted")["TrainingJobSummaries"]) == 2)
    aws.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="halted")
    described = tuned(aws, "halted")

    assert described["HyperParameterTuningJobStatus"] == "Stopped"
    assert described["TrainingJobStatusCounters"]["Stopped"] == 2


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"Strategy": "Hyperband"},
            "Strategy Hyperband is not supported by this emulator, only Bayesian, Random, Grid.",
        ),
        ({"Strategy": "Grid"}, "Strategy Grid takes CategoricalParameterRanges only."),
        (
            {"HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"}},
            "A metric is required for this hyperparameter tuning job objective.",
        ),
        (
            {"ParameterRanges": {"ContinuousParameterRanges": [{"Name": "x", "MinValue": "2", "MaxValue": "1"}]}},
            "x: MinValue 2 is above MaxValue 1.",
        ),
    ],
)
def test_a_tuning_job_that_cannot_run_here_is_refused(aws: Jobs, config: dict[str, Any], said: str) -> None:
    request = tuning(aws, "refused", **config)
    code, message = refusal(lambda: aws.sagemaker.create_hyper_parameter_tuning_job(**request))
    parents = [{"HyperParameterTuningJobName": "parent"}]
    warm = {"WarmStartType": "TransferLearning", "ParentHyperParameterTuningJobs": parents}
    cold = refusal(
        lambda: aws.sagemaker.create_hyper_parameter_tuning_job(**tuning(aws, "refused"), WarmStartConfig=warm)
    )

    assert (code, message[: len(said)]) == ("ValidationException", said)
    assert cold[1] == "WarmStartConfig is not supported by this emulator: leave it out."


SCRIPT = """
import argparse, json, os, pathlib
import helper
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
given = parser.parse_args()
rows = pathlib.Path(given.train, "one.csv").read_text()
said = {"epochs": given.epochs, "rows": rows, "helped": helper.VALUE, "host": os.environ["SM_CURRENT_HOST"]}
pathlib.Path(given.model_dir, "said.json").write_text(json.dumps(said))
"""


@pytest.mark.parametrize("image", ["sagemaker-scikit-learn:1.2-1-cpu-py3", "pytorch-training:2.3-cpu-py311"])
def test_a_submitted_script_trains_as_in_aws_images(aws: Jobs, image: str) -> None:
    """The SDK's estimators of scikit-learn and PyTorch send a script by hyperparameters."""
    name = image.partition(":")[0]
    request = training(
        name,
        aws.script("none", ""),
        HyperParameters={**aws.submitted(name, SCRIPT, **{"helper.py": "VALUE = 5\n"}), "epochs": "3"},
        InputDataConfig=[channel("train", aws.put_rows(one="1,2\n"))],
        AlgorithmSpecification={
            "TrainingImage": f"683313688378.dkr.ecr.us-east-1.amazonaws.com/{image}",
            "ContainerEntrypoint": None,
        },
    )
    aws.sagemaker.create_training_job(**request)
    described = aws.trained(name)

    assert described["TrainingJobStatus"] == "Completed", described["FailureReason"]
    (said,) = aws.packed(described["ModelArtifacts"]["S3ModelArtifacts"]).values()
    assert json.loads(said) == {"epochs": 3, "rows": "1,2\n", "helped": 5, "host": "algo-1"}


def test_a_script_that_lacks_a_package_says_which(aws: Jobs) -> None:
    """At its import, and by its requirements.txt."""
    entrypoint = {"ContainerEntrypoint": None}
    for name, source, files in (
        ("imports", "import autogluon", {}),
        ("requires", "print(1)", {"requirements.txt": "autogluon==1.0\n"}),
    ):
        given = aws.submitted(name, source, **files)
        request = training(name, aws.script("none", ""), HyperParameters=given, AlgorithmSpecification=entrypoint)
        aws.sagemaker.create_training_job(**request)
    imports, requires = (aws.trained(name)["FailureReason"] for name in ("imports", "requires"))

    assert imports.startswith(
        'AlgorithmError: ExecuteUserScriptError:\nExitCode 1\nErrorMessage "ModuleNotFoundError: No module named '
        "'autogluon'; this image has no autogluon: list it in requirements.txt beside the script and set "
        "SERVE_ALLOW_PIP=true"
    )
    assert "missing packages of code/requirements.txt: autogluon==1.0 (not installed)" in requires
    assert "SERVE_ALLOW_PIP=true" in requires


def transforming(name: str, uri: str, **members: Any) -> dict[str, Any]:
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}
    return {
        "TransformJobName": name,
        "ModelName": "echo",
        "TransformOutput": {"S3OutputPath": f"s3://{BUCKET}/{name}", "AssembleWith": "Line", "Accept": "text/plain"},
        "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
        **members,
        "TransformInput": {
            "DataSource": source,
            "ContentType": "text/plain",
            "SplitType": "Line",
            **members.get("TransformInput", {}),
        },
    }


@pytest.fixture(scope="module")
def echo(aws: Jobs, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model that answers with its process id and the body."""
    return aws.model("echo", {"ModelDataUrl": aws.put("echo.tar.gz", toy(tmp_path_factory.mktemp("m"), "echo"))})


def transformed(aws: Jobs, name: str) -> dict[str, Any]:
    def done() -> dict[str, Any] | None:
        return ended(aws.sagemaker.describe_transform_job(TransformJobName=name), "TransformJobStatus")

    return wait_until(done)  # type: ignore[no-any-return]


def test_a_transform_sends_every_object_through_its_instances(aws: Jobs, echo: str) -> None:
    aws.s3.put_object(Bucket=BUCKET, Key="asked/a.csv", Body=b"1,2\n3,4\n")
    aws.s3.put_object(Bucket=BUCKET, Key="asked/deep/b.csv", Body=b"5,6\n")
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": 2}
    request = transforming("both", f"s3://{BUCKET}/asked/", BatchStrategy="SingleRecord", TransformResources=resources)
    created = aws.sagemaker.create_transform_job(**request)
    started = aws.sagemaker.describe_transform_job(TransformJobName="both")
    described = transformed(aws, "both")
    pids, rows = zip(
        *(
            line.split(":")
            for key in ("a.csv", "deep/b.csv")
            for line in aws.text(f"both/{key}.out").splitlines()
            if line
        ),
        strict=True,
    )

    assert created["TransformJobArn"] == f"{ARN}:transform-job/both"
    assert started["TransformJobStatus"] == "InProgress"
    assert described["TransformJobStatus"] == "Completed", described
    assert aws.keys("both/") == ["a.csv.out", "deep/b.csv.out"]
    assert rows == ("1,2", "3,4", "5,6")
    assert len(set(pids)) == 2
    assert len(aws.log("/aws/sagemaker/TransformJobs", "both")) == 2
    assert refusal(lambda: aws.sagemaker.create_transform_job(**request))[0] == "ResourceInUse"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"ModelName": "none"}, 'Could not find model "none".'),
        (
            {"TransformInput": {"SplitType": "RecordIO"}},
            "SplitType RecordIO is not supported by this emulator, only None",
        ),
    ],
)
def test_a_transform_that_cannot_run_here_is_refused(aws: Jobs, echo: str, members: dict[str, Any], said: str) -> None:
    request = transforming("refused", f"s3://{BUCKET}/asked/", **members)
    code, message = refusal(lambda: aws.sagemaker.create_transform_job(**request))

    assert (code, message[: len(said)]) == ("ValidationException", said)

"""The pictures of the emulator's page in the documentation, of real runs: `make docs-pictures`.

A pipeline as the one of AWS's Abalone example: data are prepared, XGBoost is trained and evaluated, and a model that is
good enough is registered. Then a multi-model endpoint gets calls for half a minute.
"""

import io
import json
import os
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_test.platform.emulator import Emulator
from local_test.platform.events import Events
from local_test.platform.options import Options
from tests.browser.browser import Browser, browser
from tests.live import tiny
from tests.live.account import BUCKET, ROLE, Account, multi_model
from tests.live.stack import ROOT, wait_until

PICTURES = ROOT / "docs" / "pictures"
WIDE, PHONE = (1280, 740), (390, 844)
CALLS = 30.0  # seconds
SERVE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/sagemaker-serve:latest"
XGBOOST = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1"
PREPARE = """
import numpy, pathlib
rng = numpy.random.default_rng(0)
for name, count in (("train", 3000), ("validation", 800), ("test", 377)):
    x = rng.random((count, 8)).round(4)
    y = 3 + 12 * x[:, 0] + 6 * x[:, 1] * x[:, 2] + rng.normal(0, 1.8, count)
    out = pathlib.Path("/opt/ml/processing/output", name)
    out.mkdir(parents=True, exist_ok=True)
    numpy.savetxt(out / f"{name}.csv", numpy.column_stack([y.round(2), x]), delimiter=",", fmt="%g")
    print(f"{name}: {count} rows, 8 features", flush=True)
"""
EVALUATE = """
import json, numpy, pathlib, tarfile, xgboost
where = pathlib.Path("/opt/ml/processing")
with tarfile.open(where / "input/model/model.tar.gz") as archive:
    archive.extractall("/tmp/evaluated", filter="data")
rows = numpy.loadtxt(where / "input/test/test.csv", delimiter=",")
(file,) = pathlib.Path("/tmp/evaluated").iterdir()
predicted = xgboost.Booster(model_file=str(file)).predict(xgboost.DMatrix(rows[:, 1:]))
mse = float(((predicted - rows[:, 0]) ** 2).mean())
print(f"mse {mse:.3f} on {len(rows)} rows", flush=True)
(where / "output/evaluation").mkdir(parents=True, exist_ok=True)
report = {"regression_metrics": {"mse": {"value": mse}}}
(where / "output/evaluation/evaluation.json").write_text(json.dumps(report))
"""


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        options = Options(work=Path(work) / "platform", runtime="process")
        with Emulator(options, Events(io.StringIO()), seed=1) as platform, browser(Path(work) / "profile") as tab:
            aws = Account(platform, io.StringIO())
            execution = run_pipeline(aws)
            call_endpoint(aws, Path(work))
            photograph(tab, platform.url, execution)
    os.sync()


def run_pipeline(aws: Account) -> str:
    """The id of an execution that has succeeded, after one that has failed."""
    aws.sagemaker.create_model_package_group(ModelPackageGroupName="Abalone")
    aws.sagemaker.create_pipeline(PipelineName="Abalone", RoleArn=ROLE, PipelineDefinition=json.dumps(definition(aws)))
    execution = ""
    for limit in ("1.5", "6.0"):
        values = [{"Name": "MseThreshold", "Value": limit}]
        started = aws.sagemaker.start_pipeline_execution(PipelineName="Abalone", PipelineParameters=values)
        execution = started["PipelineExecutionArn"]
        wait_until(lambda arn=execution: _status(aws, arn) in ("Succeeded", "Failed"))  # type: ignore[misc]
    assert _status(aws, execution) == "Succeeded"
    return execution.rpartition("/")[2]


def _status(aws: Account, execution: str) -> str:
    described = aws.sagemaker.describe_pipeline_execution(PipelineExecutionArn=execution)
    return str(described["PipelineExecutionStatus"])


def definition(aws: Account) -> dict[str, Any]:
    data = "Steps.Prepare.ProcessingOutputConfig.Outputs['{}'].S3Output.S3Uri"
    model = {"Get": "Steps.Train.ModelArtifacts.S3ModelArtifacts"}
    train = {
        "AlgorithmSpecification": {"TrainingImage": XGBOOST, "TrainingInputMode": "File"},
        "HyperParameters": {
            "objective": "reg:squarederror",
            "num_round": {"Get": "Parameters.Rounds"},
            "max_depth": "4",
            "eta": "0.12",
            "subsample": "0.7",
        },
        "InputDataConfig": [
            {
                "ChannelName": name,
                "ContentType": "text/csv",
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": {"Get": data.format(name)}}},
            }
            for name in ("train", "validation")
        ],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/abalone"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        "RoleArn": ROLE,
    }
    container = {"Image": SERVE, "ModelDataUrl": model}
    package = {
        "ModelPackageGroupName": "Abalone",
        "ModelApprovalStatus": "PendingManualApproval",
        "InferenceSpecification": {
            "Containers": [container],
            "SupportedContentTypes": ["text/csv"],
            "SupportedResponseMIMETypes": ["text/csv"],
        },
    }
    error = {"Std:Join": {"On": " ", "Values": ["The MSE is above", {"Get": "Parameters.MseThreshold"}]}}
    report = {"PropertyFile": {"Get": "Steps.Evaluate.PropertyFiles.Report"}, "Path": "regression_metrics.mse.value"}
    branches = {
        "Conditions": [
            {
                "Type": "LessThanOrEqualTo",
                "LeftValue": {"Std:JsonGet": report},
                "RightValue": {"Get": "Parameters.MseThreshold"},
            }
        ],
        "IfSteps": [
            {"Name": "Register", "Type": "RegisterModel", "Arguments": package},
            {
                "Name": "CreateModel",
                "Type": "Model",
                "Arguments": {"PrimaryContainer": container, "ExecutionRoleArn": ROLE},
            },
        ],
        "ElseSteps": [{"Name": "TooHigh", "Type": "Fail", "Arguments": {"ErrorMessage": error}}],
    }
    evaluated = {"model": model, "test": {"Get": data.format("test")}}
    return {
        "Version": "2020-12-01",
        "Metadata": {},
        "Parameters": [
            {"Name": "Rounds", "Type": "String", "DefaultValue": "60"},
            {"Name": "MseThreshold", "Type": "Float", "DefaultValue": 6.0},
        ],
        "Steps": [
            {
                "Name": "Prepare",
                "Type": "Processing",
                "Arguments": processing(aws, "prepare", PREPARE, {}, ("train", "validation", "test")),
            },
            {"Name": "Train", "Type": "Training", "Arguments": train},
            {
                "Name": "Evaluate",
                "Type": "Processing",
                "Arguments": processing(aws, "evaluate", EVALUATE, evaluated, ("evaluation",)),
                "PropertyFiles": [
                    {"PropertyFileName": "Report", "OutputName": "evaluation", "FilePath": "evaluation.json"}
                ],
            },
            {"Name": "CheckMse", "Type": "Condition", "Arguments": branches},
        ],
    }


def processing(
    aws: Account, name: str, source: str, inputs: Mapping[str, Any], outputs: tuple[str, ...]
) -> dict[str, Any]:
    """The arguments of a step that runs a script."""
    aws.s3.put_object(Bucket=BUCKET, Key=f"code/{name}/run.py", Body=source.encode())
    given = {"code": f"s3://{BUCKET}/code/{name}/", **inputs}
    root = "/opt/ml/processing"
    return {
        "AppSpecification": {"ImageUri": SERVE, "ContainerEntrypoint": ["python3", f"{root}/input/code/run.py"]},
        "ProcessingInputs": [
            {
                "InputName": key,
                "S3Input": {
                    "S3Uri": uri,
                    "LocalPath": f"{root}/input/{key}",
                    "S3DataType": "S3Prefix",
                    "S3InputMode": "File",
                },
            }
            for key, uri in given.items()
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": key,
                    "S3Output": {
                        "S3Uri": f"s3://{BUCKET}/{name}/{key}",
                        "LocalPath": f"{root}/output/{key}",
                        "S3UploadMode": "EndOfJob",
                    },
                }
                for key in outputs
            ]
        },
        "ProcessingResources": {
            "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 30}
        },
        "RoleArn": ROLE,
    }


def call_endpoint(aws: Account, work: Path) -> None:
    """A multi-model endpoint with two instances; some calls are not valid."""
    cities = ("Chicago_IL", "Houston_TX", "LosAngeles_CA", "NewYork_NY", "SanFrancisco_CA", "Boston_MA")
    for city in cities:
        tiny.xgboost_model(work / city)
        aws.put(f"homes/{city}.tar.gz", work / city)
    aws.endpoint("home-values", multi_model("homes"), count=2)
    chosen, until = random.Random(0), time.monotonic() + CALLS
    while time.monotonic() < until:
        body = "0.1,0.2,0.3,0.4" if chosen.random() < 0.97 else "no,numbers"
        try:
            aws.invoke("home-values", body, TargetModel=f"{chosen.choice(cities)}.tar.gz", ContentType="text/csv")
        except aws.runtime.exceptions.ModelError:
            pass
        time.sleep(0.05)


def photograph(tab: Browser, url: str, execution: str) -> None:
    def picture(name: str, view: str, ready: str, size: tuple[int, int] = WIDE, *, dark: bool = False) -> None:
        tab.resize(*size, dark=dark)
        tab.open(f"{url}/#{view}")
        tab.see(ready)
        time.sleep(0.5)  # until charts are drawn: nothing in the page says so
        tab.screenshot(PICTURES / f"{name}.png")

    chart = "document.querySelector('main line-chart canvas') !== null"
    picture("pipeline", f"pipeline/Abalone/{execution}/Train", chart)
    job = tab.run("document.querySelector('.step a[href^=\"#job/\"]').hash.slice(1)")
    picture("job", job, f"{chart} && document.querySelector('.kicker').textContent === 'Training job'")
    picture("endpoint", "endpoint/home-values", f"{chart} && document.querySelector('invoke-form form') !== null")
    picture("phone", f"pipeline/Abalone/{execution}", "document.querySelector('.node') !== null", PHONE, dark=True)


if __name__ == "__main__":
    main()

"""The emulator's page in Chromium."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_test.jobs.hosts import has_namespaces
from tests.browser.browser import Browser, browser
from tests.live.account import BUCKET, ROLE, Account, account, multi_model
from tests.live.stack import toy

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/sagemaker-serve:latest"
# Writes two metrics, then waits for a file.
TRAINING = """
import json, pathlib, time
gate = pathlib.Path(json.loads(pathlib.Path("/opt/ml/input/config/hyperparameters.json").read_text())["gate"])
print("loss=0.5", flush=True)
print("loss=0.25", flush=True)
while not gate.exists():
    time.sleep(0.05)
print("the end", flush=True)
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with account(tmp_path_factory.mktemp("w")) as made:
        yield made


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as made:
        yield made
        assert made.problems == []


def test_an_endpoint_is_watched_and_invoked(aws: Account, tab: Browser, tmp_path: Path) -> None:
    """It appears by itself. The form's call loads the model, whose name then stands at the instance."""
    aws.put("homes/first.tar.gz", toy(tmp_path, "echo", "first"))
    tab.open(f"{aws.platform.url}/")
    tab.see("document.querySelector('main h1')?.textContent === 'Overview'")

    aws.endpoint("homes", multi_model("homes"))
    tab.see("document.querySelector('nav a[title=homes]')?.click() ?? true")
    tab.see("document.querySelector('[data-status=InService]') && document.querySelector('invoke-form form')")
    tab.run("document.querySelector('[name=model]').value = 'first.tar.gz'")
    tab.run("document.querySelector('[name=body]').value = '[1, 2]'")
    tab.run("document.querySelector('invoke-form button').click()")

    assert tab.see("document.querySelector('[data-answer]')?.textContent") == "200"
    assert "[1, 2]" in tab.run("document.querySelector('.answer pre').textContent").replace("\n", " ")
    assert tab.see("document.querySelector('.chips li')?.textContent") == "first.tar.gz"
    assert "calls 1" in tab.see(label("Calls in 10 s"))
    tab.run("document.querySelector('[name=model]').value = 'none.tar.gz'")
    tab.run("document.querySelector('invoke-form button').click()")
    assert tab.see("document.querySelector('[data-answer].bad')?.textContent") == "400"


def label(title: str) -> str:
    """What a chart is called for a screen reader: its last values."""
    return f"""document.querySelector('[data-metric="{title}"] line-chart:has(canvas)')?.getAttribute('aria-label')"""


def status(step: str) -> str:
    return f"document.querySelector('[data-step={step}]')?.dataset.status"


def definition(code: str, gate: Path) -> str:
    """A training, and a condition by which its model is kept or the execution fails."""
    source = {"S3DataType": "S3Prefix", "S3Uri": code}
    train: dict[str, Any] = {
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/run.py"],
            "MetricDefinitions": [{"Name": "loss", "Regex": r"loss=([0-9.]+)"}],
        },
        "HyperParameters": {"gate": str(gate)},
        "InputDataConfig": [{"ChannelName": "code", "DataSource": {"S3DataSource": source}}],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "RoleArn": ROLE,
    }
    condition = {"Type": "Equals", "LeftValue": {"Get": "Parameters.Keep"}, "RightValue": "yes"}
    branches = {
        "Conditions": [condition],
        "IfSteps": [
            {
                "Name": "Keep",
                "Type": "Model",
                "Arguments": {"PrimaryContainer": {"Image": "serve"}, "ExecutionRoleArn": ROLE},
            }
        ],
        "ElseSteps": [{"Name": "Reject", "Type": "Fail", "Arguments": {"ErrorMessage": "the model is not wanted"}}],
    }
    steps = [
        {"Name": "Train", "Type": "Training", "Arguments": train},
        {"Name": "Check", "Type": "Condition", "DependsOn": ["Train"], "Arguments": branches},
    ]
    parameters = [{"Name": "Keep", "Type": "String", "DefaultValue": "yes"}]
    return json.dumps({"Version": "2020-12-01", "Metadata": {}, "Parameters": parameters, "Steps": steps})


@pytest.mark.skipif(not has_namespaces(), reason="this machine forbids mount namespaces, which scripts of jobs need")
def test_a_run_of_a_pipeline_is_watched_from_start_to_end(aws: Account, tab: Browser, tmp_path: Path) -> None:
    """Its graph, the states of its steps, the log and the curve of its job, and the reason of a failure."""
    aws.s3.put_object(Bucket=BUCKET, Key="watched/run.py", Body=TRAINING.encode())
    gate = tmp_path / "gate"
    text = definition(f"s3://{BUCKET}/watched/", gate)
    aws.sagemaker.create_pipeline(PipelineName="watched", RoleArn=ROLE, PipelineDefinition=text)
    tab.open(f"{aws.platform.url}/#pipeline/watched")
    tab.see("document.querySelectorAll('.node').length === 4")
    assert tab.run("document.querySelectorAll('.edge').length") == 3
    assert "The pipeline has not been started yet" in tab.run("document.body.innerText")

    aws.sagemaker.start_pipeline_execution(PipelineName="watched")
    tab.see(f"{status('Train')} === 'Executing'")
    assert tab.run(status("Check")) == "none"
    tab.run("document.querySelector('[data-step=Train]').focus()")
    tab.press("Enter")
    tab.see("document.querySelector('.step log-lines')?.textContent.includes('loss=0.25')")
    assert tab.see(label("loss")) == "Chart, last values: loss 0.25"
    assert tab.run("document.querySelector('.title .badge').dataset.status") == "Executing"

    gate.touch()
    tab.see("document.querySelector('.title .badge')?.dataset.status === 'Succeeded'")
    tab.see(f"{status('Keep')} === 'Succeeded'")
    assert [tab.run(status(step)) for step in ("Train", "Check", "Reject")] == ["Succeeded", "Succeeded", "none"]
    assert "did not run" in tab.run("document.querySelector('[data-step=Reject]').textContent")
    assert "the end" in tab.see("document.querySelector('.step log-lines').textContent")
    tab.run("document.querySelector('.step a[href^=\"#job/training/\"]').click()")
    tab.see("document.querySelector('main .kicker')?.textContent === 'Training job'")
    assert tab.see(label("loss")) == "Chart, last values: loss 0.25"

    aws.sagemaker.start_pipeline_execution(PipelineName="watched", PipelineParameters=[{"Name": "Keep", "Value": "no"}])
    tab.see("document.querySelector('nav a[title=watched]')?.click() ?? true")
    tab.see(f"{status('Reject')} === 'Failed'")
    tab.run("document.querySelector('[data-step=Reject]').click()")
    assert "the model is not wanted" in tab.see("document.querySelector('.step .alert')?.textContent")
    assert "no" in tab.run("document.querySelector('.pair').innerText").split()

    tab.resize(390, 844)
    tab.run("document.querySelector('[data-step=Train]').click()")
    tab.see("document.querySelector('[data-shown-step=Train]')?.getBoundingClientRect().top < 100")
    assert tab.run("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_view_is_wider_than_the_window(aws: Account, tab: Browser, width: int, dark: bool) -> None:
    """Tables, graphs and logs scroll in themselves. Each link and field is reached by the Tab key."""
    tab.resize(width, 800, dark=dark)
    for view in ("", "endpoints", "jobs", "pipelines", "events", "endpoint/none"):
        tab.open(f"{aws.platform.url}/#{view}")
        tab.see("document.querySelector('main h1') !== null")
        assert tab.run("document.documentElement.scrollWidth") <= width, view
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"

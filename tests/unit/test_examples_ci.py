"""The files of examples/ci: checked by their linters, and by the command that they call."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft201909Validator

from deploy import cli
from deploy.spec import load

ROOT = Path(__file__).parents[2]
CI = ROOT / "examples" / "ci"
BUILDSPECS = ("buildspec-plan.yml", "buildspec-deploy.yml")
BIN = Path(sys.executable).parent


def document(name: str) -> Any:
    return yaml.safe_load((CI / name).read_text())


def steps(name: str) -> list[str]:
    """The shell commands of a file."""
    content = document(name)
    if "jobs" in content:
        return [step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step]
    return [each for phase in content["phases"].values() for each in phase["commands"]]


def buildspec_faults(value: Any) -> list[str]:
    schema = json.loads((Path(__file__).with_name("schemas") / "buildspec.json").read_text())
    return [f"{error.json_path}: {error.message}" for error in Draft201909Validator(schema).iter_errors(value)]


def linted(path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "zizmor"), "--offline", "--quiet", "--persona", "auditor", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_workflow_has_no_finding_of_its_linter(tmp_path: Path) -> None:
    """zizmor: unpinned actions, credentials that stay, rights that are too wide, code from a pull request's text."""
    done = linted(CI / "github.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text((CI / "github.yml").read_text().replace("permissions: {}", "permissions: write-all"))
    assert linted(wrong).returncode != 0


@pytest.mark.parametrize("name", BUILDSPECS)
def test_a_buildspec_is_what_codebuild_accepts(name: str) -> None:
    """By the fields of its reference; a misspelt one is found."""
    assert buildspec_faults(document(name)) == []
    wrong = document(name)
    wrong["phases"]["bild"] = wrong["phases"].pop("build")
    (fault,) = buildspec_faults(wrong)
    assert "bild" in fault


@pytest.mark.parametrize("name", ["github.yml", *BUILDSPECS])
def test_the_commands_are_correct_shell_and_commands_of_deploy(name: str) -> None:
    for step in steps(name):
        checked = subprocess.run(
            [BIN / "shellcheck", "--shell=bash", "-"], input=step, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout
        if "-m deploy" in step:
            words = shlex.split(step.partition("||")[0])
            given = cli.parser().parse_args(words[3:])
            assert getattr(given, "spec", None) is None or load(ROOT / given.spec).name == "tuned-model"


def test_both_ways_do_the_same() -> None:
    """GitHub's two jobs and CodeBuild's two projects."""
    for job, name in (("plan", "buildspec-plan.yml"), ("deploy", "buildspec-deploy.yml")):
        theirs = [each["run"] for each in document("github.yml")["jobs"][job]["steps"] if "run" in each]
        assert theirs == steps(name)


def test_no_long_lived_key_and_two_roles() -> None:
    """The planning role is given to pull requests alone and only reads; the deploying role to one environment."""
    jobs = document("github.yml")["jobs"]
    assert not re.search(r"secrets\.|access[-_]key", (CI / "github.yml").read_text(), re.I)
    assert all(job["permissions"] == {"contents": "read", "id-token": "write"} for job in jobs.values())
    subjects = {}
    for name in jobs:
        (statement,) = json.loads((CI / "roles" / f"trust-{name}.json").read_text())["Statement"]
        equals = statement["Condition"]["StringEquals"]
        subjects[name] = equals["token.actions.githubusercontent.com:sub"]
        assert equals["token.actions.githubusercontent.com:aud"] == "sts.amazonaws.com"
    environment = jobs["deploy"]["environment"]
    assert subjects == {
        "plan": "repo:OWNER/REPOSITORY:pull_request",
        "deploy": f"repo:OWNER/REPOSITORY:environment:{environment}",
    }
    for statement in json.loads((CI / "roles" / "plan.json").read_text())["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert all(re.match(r"[\w-]+:(Describe|Get|List)", each) for each in actions)


def test_only_lists_are_of_all_resources() -> None:
    for name in ("plan", "deploy"):
        for statement in json.loads((CI / "roles" / f"{name}.json").read_text())["Statement"]:
            assert (statement["Resource"] == "*") == (statement["Sid"] == "Lists")
            assert not any("*" in action for action in statement["Action"])

"""The examples that need a cluster or Docker Compose: each file is valid, and fits the server and the others."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft201909Validator

from deploy import cli
from serve import settings

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCHEMAS = Path(__file__).with_name("schemas")
KINDS = {"deployment": "Deployment", "service": "Service", "autoscaler": "HorizontalPodAutoscaler"}


def manifest(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / "kubernetes" / f"{name}.yaml").read_text())


def compose() -> Any:
    return yaml.safe_load((EXAMPLES / "docker-compose" / "compose.yaml").read_text())


def container() -> Any:
    (only,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    return only


def faults(value: Any, schema: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft201909Validator(schema).iter_errors(value)]


def kubernetes_faults(value: Any) -> list[str]:
    schemas = json.loads((SCHEMAS / "kubernetes.json").read_text())
    return faults(value, {**schemas["kinds"][value["kind"]], "$defs": schemas["$defs"]})


def compose_faults(value: Any) -> list[str]:
    return faults(value, json.loads((SCHEMAS / "compose.json").read_text()))


def test_the_index_lists_each_example() -> None:
    """Each folder has a README, and a row in the README above them."""
    folders = {each.name for each in EXAMPLES.iterdir() if each.is_dir()}
    listed = set(re.findall(r"^\| \[[\w-]+\]\(([\w-]+)\) \|", (EXAMPLES / "README.md").read_text(), re.M))
    assert folders == listed
    assert all((EXAMPLES / name / "README.md").is_file() for name in folders)


def test_each_link_leads_to_a_file() -> None:
    """Relative ones, from the README that has them."""
    for readme in EXAMPLES.rglob("README.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / link).exists(), f"{readme}: {link}"


@pytest.mark.parametrize("name", KINDS)
def test_a_manifest_is_what_kubernetes_accepts(name: str) -> None:
    """By the schema of Kubernetes 1.37, which has no place for a field that is not known."""
    assert manifest(name)["kind"] == KINDS[name]
    assert kubernetes_faults(manifest(name)) == []


def test_a_misspelt_manifest_is_found() -> None:
    """Also deep inside."""
    wrong = manifest("deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    (fault,) = kubernetes_faults(wrong)
    assert "readynessProbe" in fault


def test_the_manifests_fit_one_another() -> None:
    """The Service finds the pods and their port, and the autoscaler the Deployment, which sets no number itself."""
    deployment, service, autoscaler = map(manifest, KINDS)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["ports"][0]["targetPort"] in [each["name"] for each in container()["ports"]]
    target = autoscaler["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"]
    assert "cpu" in container()["resources"]["requests"]  # of which the autoscaler takes its percentage


def test_the_manifests_fit_the_server() -> None:
    """Its port, its health check, its settings, its directories and its times."""
    chosen = settings.read({each["name"]: each["value"] for each in container()["env"]})
    pod = manifest("deployment")["spec"]["template"]["spec"]
    mounts = {each["mountPath"]: each for each in container()["volumeMounts"]}

    assert [each["containerPort"] for each in container()["ports"]] == [chosen.port]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"] == {"path": "/ping", "port": "http"}
    startup = container()["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= chosen.load_limit
    assert mounts[str(chosen.model_dir)]["readOnly"]
    assert "/tmp" in mounts
    pause = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + chosen.drain_limit + 5


def test_the_compose_file_is_valid() -> None:
    """By the schema of the Compose specification, which finds a misspelt field."""
    assert compose_faults(compose()) == []
    wrong = compose()
    wrong["services"]["serve"]["volumess"] = []
    (fault,) = compose_faults(wrong)
    assert "volumess" in fault


def test_the_compose_file_fits_the_server() -> None:
    """Its port, its health check, its settings, its directories and its times."""
    service = compose()["services"]["serve"]
    chosen = settings.read(service["environment"])
    (port,), (volume,) = service["ports"], service["volumes"]

    assert port == f"127.0.0.1:{chosen.port}:{chosen.port}"
    assert volume.split(":")[-2:] == [str(chosen.model_dir), "ro"]
    assert f"http://127.0.0.1:{chosen.port}/ping" in service["healthcheck"]["test"][-1]
    assert service["healthcheck"]["start_period"] == f"{chosen.load_limit:g}s"
    assert int(service["stop_grace_period"].removesuffix("s")) >= chosen.drain_limit + 5
    assert (EXAMPLES / "docker-compose" / service["build"]["context"] / "Dockerfile").is_file()


def test_the_endpoint_of_an_example_is_a_valid_spec(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a multi-model endpoint."""
    assert cli.main(["up", "--plan", str(EXAMPLES / "several-on-one-endpoint" / "endpoint.toml")]) == 0
    planned = {name: request for each in json.loads(capsys.readouterr().out) for name, request in each.items()}
    assert planned["CreateModel"]["PrimaryContainer"]["Mode"] == "MultiModel"
    assert planned["CreateEndpoint"]["EndpointName"] == "cities"


def test_the_commands_of_an_example_are_those_of_deploy() -> None:
    """Verbs and options."""
    page = (EXAMPLES / "several-on-one-endpoint" / "README.md").read_text()
    commands = re.findall(r"^sagemaker-deploy (.*)$", page, re.M)
    assert {cli.parser().parse_args(shlex.split(each)).verb for each in commands} == {"put", "up", "invoke", "down"}

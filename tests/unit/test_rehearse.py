"""The checks of an image's configuration."""

from typing import Any

import pytest

from local_test.rehearse.image_checks import CAPABILITIES, Image
from local_test.rehearse.rehearsal import IMAGE
from local_test.rehearse.under_test import RehearsalOptions

CONFIG: dict[str, Any] = {
    "Entrypoint": ["python", "-m", "serve"],
    "ExposedPorts": {"8080/tcp": {}},
    "Labels": {f"{CAPABILITIES}{what}": "true" for what in ("multi-models", "accept-bind-to-port")},
    "User": "",
    "Volumes": None,
}
GOOD: dict[str, Any] = {"Os": "linux", "Architecture": "amd64", "Size": 1 << 30, "Config": CONFIG}


def problems(inspected: dict[str, Any], **options: Any) -> dict[str, str]:
    image = Image(name="x", inspected=inspected, options=RehearsalOptions(**options))
    verdicts = [each.verdict(image) for each in IMAGE]
    return {each.name: each.outcome for each in verdicts if each.outcome != "pass"}


def test_a_good_image_passes() -> None:
    assert problems(GOOD) == {}


@pytest.mark.parametrize(
    ("config", "check", "outcome"),
    [
        ({"Entrypoint": ["/bin/sh", "-c", "python serve.py"]}, "entrypoint", "FAIL"),
        ({"Entrypoint": ["/usr/bin/tini", "--", "serve"]}, "no-init", "FAIL"),
        ({"Labels": {f"{CAPABILITIES}accept-bind-to-port": "true"}}, "label-multi-models", "warn"),
        ({"Labels": {f"{CAPABILITIES}multi-models": "true"}}, "label-accept-bind-to-port", "warn"),
        ({"Volumes": {"/opt/ml/model": {}}}, "volumes", "FAIL"),
        ({"ExposedPorts": {"80/tcp": {}}}, "exposed-port", "warn"),
        ({"User": "1000:1000"}, "image-user", "warn"),
    ],
)
def test_a_fault_of_the_configuration_is_found(config: dict[str, Any], check: str, outcome: str) -> None:
    """By its check only."""
    assert problems(GOOD | {"Config": CONFIG | config}) == {check: outcome}


@pytest.mark.parametrize(
    ("inspected", "check", "outcome"),
    [
        ({"Architecture": "arm64"}, "image-platform", "warn"),
        ({"Os": "windows"}, "image-platform", "FAIL"),
        ({"Size": 11 << 30}, "image-size", "warn"),
    ],
)
def test_a_fault_of_the_image_is_found(inspected: dict[str, Any], check: str, outcome: str) -> None:
    assert problems(GOOD | inspected) == {check: outcome}


def test_with_multi_model_a_missing_label_is_a_failure() -> None:
    assert problems(GOOD | {"Config": CONFIG | {"Labels": None}}, multi_model=True)["label-multi-models"] == "FAIL"

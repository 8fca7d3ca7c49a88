"""AWS's SageMaker SDK, unmodified, against the emulator: its session, its role, and a model by its resources."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STARTED = "Ctrl-C stops the emulator"
ROLE = "arn:aws:iam::123456789012:role/service-role/AmazonSageMaker-ExecutionRole"


@pytest.fixture(scope="module", autouse=True)
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A running emulator, whose printed variables this process has."""
    log = tmp_path_factory.mktemp("emulator") / "log"
    before = dict(os.environ)
    with log.open("w") as out:
        command = [str(ROOT / ".venv/bin/python"), "-m", "local_test.platform", "--port", "0", "--runtime", "process"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    try:
        while STARTED not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        exports = [line.removeprefix("export ") for line in log.read_text().splitlines() if line.startswith("export ")]
        os.environ.update({name: value for name, _, value in (line.partition("=") for line in exports)})
        yield
    finally:
        process.terminate()
        process.wait()
        os.environ.clear()
        os.environ.update(before)


def test_the_session_knows_its_account_bucket_and_role() -> None:
    """The account and the role come from STS at a literal address, the bucket from the configuration file."""
    from sagemaker.core.helper.session_helper import Session, get_execution_role

    session = Session()

    assert session.account_id() == "123456789012"
    assert session.default_bucket() == "sagemaker-us-east-1-123456789012"
    assert get_execution_role(session) == ROLE


def test_the_role_is_found_and_its_permissions_are_simulated() -> None:
    from sagemaker.core.helper.iam_role_resolver import resolve_and_validate_role

    assert [resolve_and_validate_role(None, each) for each in ("training", "serving", "pipeline")] == [ROLE] * 3


def test_a_model_is_created_and_described() -> None:
    """Its description has no empty structure, which the SDK's shapes refuse."""
    from sagemaker.core.resources import Model
    from sagemaker.core.shapes import ContainerDefinition

    container = ContainerDefinition(image="sagemaker-serve", environment={"A": "1"})
    Model.create(model_name="m", primary_container=container, execution_role_arn=ROLE)
    found = Model.get(model_name="m")

    assert found.primary_container.environment == {"A": "1"}
    found.delete()

"""The service of the Docker Compose example, run by docker with what its file asks for."""

import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from tests.image.containers import Start, docker

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_compose_example_becomes_healthy_and_answers(start: Start, tmp_path: Path) -> None:
    """As an unprivileged user without capabilities, on a read-only root, by the health check of the file."""
    service = yaml.safe_load((EXAMPLES / "docker-compose" / "compose.yaml").read_text())["services"]["serve"]
    tmp_path.chmod(0o755)  # pytest makes it for its own user only; in the container another one reads
    subprocess.run([sys.executable, EXAMPLES / "xgboost" / "make_model.py", tmp_path / "models"], check=True)
    options = {
        "--user": [service["user"]],
        "--cap-drop": service["cap_drop"],
        "--security-opt": service["security_opt"],
        "--tmpfs": service["tmpfs"],
        "--memory": [service["mem_limit"]],
        "--cpus": [service["cpus"]],
        "--env": [f"{name}={value}" for name, value in service["environment"].items()],
        "--health-cmd": [shlex.join(service["healthcheck"]["test"][1:])],
        "--health-interval": ["1s"],
        "--health-timeout": [service["healthcheck"]["timeout"]],
    }
    given = [f"{name}={value}" for name, values in options.items() for value in values]

    container = start(tmp_path / "models", "--read-only", *given)

    container.wait_until(
        lambda: docker("inspect", "--format", "{{.State.Health.Status}}", container.id) == "healthy", 60, "its health"
    )
    assert container.ask("/invocations", "120,4,10", "text/csv").status == 200

"""Where a pipeline is executed on this machine: a platform of its own, or one that runs already."""

import io
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from deploy.aws import CALLS, Aws, Failed
from deploy.images import parts
from local_test.pipelines import function as functions
from local_test.platform.containers.runtimes import engine_answers
from local_test.platform.emulator import Emulator
from local_test.platform.events import Events
from local_test.platform.options import Options

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Here(Aws):
    """The platform where a pipeline is executed; `environment` is what makes any AWS client talk to it."""

    def __init__(self, environment: Mapping[str, str], options: Options) -> None:
        super().__init__(environment["AWS_DEFAULT_REGION"])
        self.environment = environment
        self.options = options
        self._session = boto3.session.Session(
            environment["AWS_ACCESS_KEY_ID"],
            environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_DEFAULT_REGION"],
        )

    def client(self, service: str) -> Any:
        if service not in self._clients:
            url = self.environment["AWS_ENDPOINT_URL"]
            self._clients[service] = self._session.client(service, endpoint_url=url, config=CALLS)
        return self._clients[service]


@contextmanager
def platform(runtime: str) -> Iterator[Here]:
    """The platform that AWS_ENDPOINT_URL names; where it names none, one that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="pipeline-", ignore_cleanup_errors=True) as work:
        options = Options(work=Path(work), runtime=runtime, ping_every=0.5, stop_limit=10.0)
        if url := os.environ.get("AWS_ENDPOINT_URL"):
            theirs = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
            yield Here({"AWS_ENDPOINT_URL": url, **theirs}, options)
            return
        with Emulator(options, Events(io.StringIO(), as_json=True)) as played:
            yield Here(played.environment, options)


def with_host(image: str) -> str:
    """An image by a name that nobody looks for in ECR."""
    return image if parts(image)[0] else f"localhost/{image}"


def runtime_for(asked: str, image: str) -> str:
    """`auto` is Docker where an engine answers and has the image, which is then there by its name with a host too."""
    if asked == "process" or not engine_answers():
        if asked == "docker":
            raise Failed("no Docker engine answers: leave out --runtime docker")
        return "process"
    if subprocess.run(["docker", "tag", image, with_host(image)], capture_output=True).returncode == 0:
        return "docker"
    if asked == "docker":
        raise Failed(f"Docker has no image {image}: `make image`, or name another with --image")
    return "process"


def how(runtime: str) -> str:
    """By what in SageMaker's place."""
    jobs = "Docker" if runtime == "docker" else "`python -m serve` in place of any image"
    lambdas = "AWS's emulator" if functions.is_emulated() else "a process (AWS's emulator: `make lambda`)"
    return f"jobs: {jobs}; function: {lambdas}; tuning: draws at random, searches nothing"

"""build_and_push.sh as it is: a real registry under ECR's own name, the real AWS CLI, and moto for ECR's calls.

Docker speaks plain HTTP to names that lead to 127.0.0.0/8, so a line in /etc/hosts is all that makes it ECR.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.image.containers import docker
from tests.patience import PATIENCE

SCRIPT = Path(__file__).parents[2] / "build_and_push.sh"
HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
# The user and password that moto gives for that account, hashed as htpasswd -B does.
LOGIN = "AWS:$2b$04$Q8m44QX/7cn.d8dU5FY4nendRkH0IJ0upP00P5Y8HgBOvWmM6ga4y\n"
REGISTRY = """
version: 0.1
storage: {filesystem: {rootdirectory: %(work)s/blobs}}
http: {addr: "127.0.0.1:80"}
auth: {htpasswd: {realm: ecr, path: %(work)s/htpasswd}}
"""
NEEDED = ("docker", "aws", "docker-registry")


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """What of AWS answers calls: its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def environ(aws: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's, and nothing of this machine's own but where programs are."""
    for name in ("docker", "aws"):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DOCKER_"))},
        "DOCKER_CONFIG": str(tmp_path_factory.mktemp("docker")),  # where `docker login` keeps passwords
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": aws,
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry on port 80, where ECR's name leads to; what it keeps."""
    program = shutil.which("docker-registry")
    if not program:
        pytest.skip("docker-registry is not installed")
    if os.geteuid() != 0:
        pytest.skip("only root may take port 80 and write /etc/hosts")
    work = tmp_path_factory.mktemp("registry")
    (work / "config.yml").write_text(REGISTRY % {"work": work})
    (work / "htpasswd").write_text(LOGIN)
    hosts = Path("/etc/hosts")
    line = f"127.0.0.1 {HOST}\n"
    with (work / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", work / "config.yml"], stdout=log, stderr=log)
    hosts.write_text(hosts.read_text() + line)
    try:
        _wait_for(process, work / "log")
        yield work / "blobs/docker/registry/v2/repositories"
    finally:
        hosts.write_text(hosts.read_text().replace(line, ""))
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.skip(f"docker-registry does not start here: {log.read_text()[-300:]}")
        try:
            urllib.request.urlopen("http://127.0.0.1:80/v2/", timeout=2)
        except urllib.error.HTTPError:  # it asks who that is
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script itself, beside a Dockerfile of an image that takes no time to build."""
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "Dockerfile").write_text(f"FROM scratch\nARG TORCH\nLABEL torch=$TORCH\nCOPY it /{tmp_path.name}\n")
    (tmp_path / "it").write_text(str(tmp_path))
    return tmp_path / SCRIPT.name


def run(script: Path, environ: Mapping[str, str], *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *arguments], env={**environ, **more}, cwd="/", capture_output=True, text=True, timeout=PATIENCE
    )


def ecr(aws: str) -> Any:
    return boto3.client(
        "ecr", endpoint_url=aws, region_name="eu-west-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )


def test_the_image_arrives_and_its_digest_is_the_last_line(
    script: Path, environ: dict[str, str], registry: Path, aws: str
) -> None:
    """In a repository that scans what is pushed and drops what has no tag; a second push finds all there."""
    done = run(script, environ, "many-models", "v1", TORCH="cu130")
    assert done.returncode == 0, done.stdout + done.stderr
    uri, _, digest = done.stdout.splitlines()[-1].partition("@")
    assert uri == f"{HOST}/many-models"
    assert (registry / "many-models/_manifests/tags/v1/current/link").read_text() == digest
    again = run(script, environ, "many-models", "v1", TORCH="cu130")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, f"{uri}@{digest}"), again.stderr

    (repository,) = ecr(aws).describe_repositories()["repositories"]
    rules = json.loads(ecr(aws).get_lifecycle_policy(repositoryName="many-models")["lifecyclePolicyText"])["rules"]
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    assert [each["selection"]["tagStatus"] for each in rules] == ["untagged"]

    docker("rmi", f"{uri}:v1", f"{uri}@{digest}", check=False)
    # Logged in as the script left it.
    pulled = subprocess.run(["docker", "pull", f"{uri}@{digest}"], env=environ, capture_output=True, text=True)
    assert pulled.returncode == 0, pulled.stderr
    said = docker(
        "image", "inspect", "--format", "{{.Os}}/{{.Architecture}} {{.Config.Labels.torch}}", f"{uri}@{digest}"
    )
    docker("rmi", f"{uri}@{digest}")
    assert said == "linux/amd64 cu130"


def without(name: str, environ: Mapping[str, str], directory: Path) -> str:
    """A PATH on which all that the script needs is, but for this program."""
    directory.mkdir()
    for each in {"bash", "env", "dirname", "grep", "docker", "aws"} - {name}:
        found = shutil.which(each, path=environ["PATH"])
        assert found
        (directory / each).symlink_to(found)
    return str(directory)


def test_what_is_missing_is_said(script: Path, environ: dict[str, str], tmp_path: Path) -> None:
    """In one line, with what to do; before anything is built."""
    empty = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    for more, says in (
        ({"PATH": without("docker", environ, tmp_path / "1")}, "docker is missing: install it"),
        ({"PATH": without("aws", environ, tmp_path / "2")}, "the AWS CLI is missing: install it"),
        ({"DOCKER_HOST": f"unix://{tmp_path}/none"}, "no Docker engine answers: start it"),
        ({"AWS_REGION": ""}, "no region: set AWS_REGION"),
        (empty, "AWS does not accept the credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}, "or there is no region eu-west-1"),
    ):
        done = run(script, environ, **more)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert says in done.stderr.splitlines()[-1]


def test_what_fails_later_is_said(script: Path, environ: dict[str, str], registry: Path) -> None:
    """A build, an ECR that does not take the name, a registry that is not there."""
    (script.parent / "it").unlink()
    assert "the build failed: see the last lines" in run(script, environ, "other").stderr
    (script.parent / "it").write_text("it")
    elsewhere = run(script, environ, "other", AWS_REGION="eu-north-1")  # moto makes the repository; no host is there
    assert elsewhere.returncode == 1
    assert "could not log in to 123456789012.dkr.ecr.eu-north-1.amazonaws.com" in elsewhere.stderr
    docker("rmi", f"{HOST.replace('eu-west', 'eu-north')}/other:latest", check=False)


def test_a_user_who_may_not_is_told_what_he_needs(script: Path, environ: dict[str, str], aws: str) -> None:
    """moto checks permissions as AWS does, when asked to."""
    iam = boto3.client(
        "iam", endpoint_url=aws, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    iam.create_user(UserName="pusher")
    key = iam.create_access_key(UserName="pusher")["AccessKey"]
    mine = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def allow(*actions: str) -> None:
        said = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
        iam.put_user_policy(UserName="pusher", PolicyName="p", PolicyDocument=json.dumps(said))

    def check(calls: int) -> None:
        """From so many calls on permissions are looked at."""
        headers = {"Content-Type": "text/plain"}
        asked = urllib.request.Request(f"{aws}/moto-api/reset-auth", str(calls).encode(), headers)
        urllib.request.urlopen(asked).close()

    allow("sts:GetCallerIdentity")
    check(0)
    try:
        refused = run(script, environ, "mine", **mine)
        assert (refused.returncode, "you need ecr:DescribeRepositories" in refused.stderr) == (1, True), refused.stderr
        check(10**9)
        allow("sts:GetCallerIdentity", "ecr:DescribeRepositories")
        check(0)
        refused = run(script, environ, "mine", **mine)
        assert (refused.returncode, "you need ecr:CreateRepository" in refused.stderr) == (1, True), refused.stderr
    finally:
        check(10**9)
        docker("rmi", f"{HOST}/mine:latest", check=False)

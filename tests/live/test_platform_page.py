"""What the emulator's page shows, over HTTP, without a browser."""

import http.client
import json
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest

from tests.live.account import BUCKET, ROLE, Account, account
from tests.live.stack import Answer


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with account(tmp_path_factory.mktemp("w")) as made:
        yield made


def get(aws: Account, path: str, **headers: str) -> Answer:
    connection = http.client.HTTPConnection(urlsplit(aws.platform.url).netloc)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def state(aws: Account, show: str = "", **headers: str) -> Answer:
    return get(aws, f"/_platform/api/state?show={quote(show, safe='')}", **headers)


def test_the_page_stands_beside_list_buckets(aws: Account) -> None:
    """Both are `GET /`."""
    assert "<title>SageMaker on this machine</title>" in get(aws, "/", Accept="text/html").body.decode()
    assert BUCKET in [each["Name"] for each in aws.s3.list_buckets()["Buckets"]]


def test_a_state_is_sent_again_once_it_has_changed(aws: Account) -> None:
    """304 before; a request to the platform is enough for a new one."""
    tag = state(aws).headers["etag"]
    unchanged = state(aws, If_None_Match=tag)
    step = {"Name": "Stop", "Type": "Fail", "Arguments": {"ErrorMessage": "here"}}
    definition = json.dumps({"Version": "2020-12-01", "Metadata": {}, "Parameters": [], "Steps": [step]})
    aws.sagemaker.create_pipeline(PipelineName="shown", RoleArn=ROLE, PipelineDefinition=definition)
    changed = state(aws, If_None_Match=tag)

    assert (unchanged.status, unchanged.body) == (304, b"")
    assert changed.status == 200
    assert "shown" in [each["name"] for each in changed.json["pipelines"]]
    shown = state(aws, "pipeline/shown").json["shown"]
    assert [each["name"] for each in shown["graph"]["nodes"]] == ["Stop"]
    assert shown["executions"] == []


@pytest.mark.parametrize("show", ["endpoint/none", "job/training/none", "job/other/none", "pipeline/none", "what/ever"])
def test_what_does_not_exist_is_shown_as_missing(aws: Account, show: str) -> None:
    """Nothing else of the state is lost by it."""
    answer = state(aws, show).json

    assert answer["shown"] is None
    assert {"endpoints", "jobs", "pipelines", "events"} <= answer.keys()

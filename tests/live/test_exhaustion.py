"""When a resource runs out: 507 with the next step, and no other request is affected."""

import resource
from pathlib import Path

import pytest

from tests.live.conftest import Later, Start
from tests.live.platform_side import invoke, listed, load, unload
from tests.live.stack import Server, alive, toy, wait_until

RUN_OUT = {
    "memory": "out of memory",
    "device": "out of device memory",
    "files": "out of file desc",
    "disk": "out of disk",
}


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    for what in RUN_OUT:
        toy(shared_models, "exhaust", f"loads-{what}", {"load.txt": what})
    toy(shared_models, "exhaust")
    toy(shared_models, "echo")
    return start_shared(shared_models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=shared_models)


@pytest.mark.parametrize("what", RUN_OUT)
def test_a_load_that_runs_out_of_something_is_507(server: Server, what: str) -> None:
    """With the resource and what to do; nothing of the load is left, and /ping is 200."""
    answer = load(server, "m", server.models / f"loads-{what}")

    assert answer.status == 507, answer.body
    assert answer.json["type"] == "InsufficientStorageException"
    assert RUN_OUT[what] in answer.json["message"]
    assert answer.json["hint"]
    assert answer.json["retryable"]
    assert server.pings()
    assert listed(server) == []
    assert load(server, "m", server.models / "echo").status == 200
    assert unload(server, "m").status == 200


@pytest.mark.parametrize("what", RUN_OUT)
def test_a_request_that_runs_out_of_something_is_507(server: Server, what: str) -> None:
    """Only that request: the same process answers the next."""
    assert load(server, "m", server.models / "exhaust").status == 200
    pid = invoke(server, "m").json["pid"]

    answer = invoke(server, "m", f'{{"of": "{what}"}}')

    assert answer.status == 507, answer.body
    assert RUN_OUT[what] in answer.json["message"]
    assert invoke(server, "m").json["pid"] == pid
    assert unload(server, "m").status == 200


def test_other_requests_of_the_batch_do_not_fail(server: Server, later: Later) -> None:
    """They are retried one by one, after the memory of the batch is freed."""
    assert load(server, "m", server.models / "exhaust").status == 200
    invoke(server, "m")

    calls = [later(invoke, server, "m", '{"of": "memory"}' if n % 4 == 0 else f'{{"id": {n}}}') for n in range(16)]

    for number, call in enumerate(calls):
        answer = call.result()
        assert answer.status == (200 if number % 4 else 507)
        assert not number % 4 or answer.json["id"] == number
    assert unload(server, "m").status == 200


def test_a_process_that_keeps_running_out_is_replaced(server: Server) -> None:
    """After three 507 in a row a new process takes its place, without the platform: 507 is not permanent."""
    assert load(server, "m", server.models / "exhaust").status == 200
    pid = invoke(server, "m").json["pid"]
    assert invoke(server, "m", '{"of": "memory", "keeps": true}').status == 507
    assert [invoke(server, "m").status for _ in range(2)] == [507, 507]

    wait_until(lambda: not alive(pid))

    answer = invoke(server, "m")
    assert (answer.status, listed(server)) == (200, ["m"])
    assert answer.json["pid"] != pid
    assert [each["model"] for each in server.events("replaced")] == ["m"]
    assert unload(server, "m").status == 200


def test_a_process_that_has_lost_its_device_is_replaced(server: Server) -> None:
    """After some errors of CUDA each further call fails too: a new process answers the next request."""
    assert load(server, "m", server.models / "exhaust").status == 200
    pid = invoke(server, "m").json["pid"]

    lost = invoke(server, "m", '{"of": "context", "keeps": true}')
    answer = invoke(server, "m")

    assert (lost.status, lost.json["type"]) == (500, "DeviceLostException"), lost.body
    assert "CUDA error: device-side assert triggered" in lost.json["message"]
    assert "new process" in lost.json["hint"]
    assert lost.json["retryable"]
    assert (answer.status, listed(server)) == (200, ["m"])
    assert answer.json["pid"] != pid
    wait_until(lambda: not alive(pid))
    wait_until(lambda: server.model("m")["deaths"] == 1)  # the forkserver reports it after the answer, perhaps
    assert unload(server, "m").status == 200


def test_a_model_that_loses_its_device_each_time_pauses(server: Server) -> None:
    """After the third time within a minute: 503 with the cause, as after any three crashes."""
    assert load(server, "m", server.models / "exhaust").status == 200
    lost = [invoke(server, "m", '{"of": "context", "keeps": true}') for _ in range(3)]

    wait_until(lambda: server.model("m")["state"] == "failed")
    answer = invoke(server, "m")

    assert [each.status for each in lost] == [500] * 3
    assert (answer.status, answer.json["type"]) == (503, "ModelFailedException")
    assert "device-side assert" in answer.json["message"]
    assert server.pings()
    assert unload(server, "m").status == 200


def test_a_model_that_grew_beyond_the_budget_is_loaded_again(start: Start, models: Path) -> None:
    """It grew beyond the budget during a request, and crashed. The next load reserves its size right after loading."""
    path = toy(models, "exhaust")
    server = start(models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models, SERVE_MEMORY_BUDGET_MB=60)
    assert load(server, "m", path).status == 200
    assert invoke(server, "m", '{"holds": 100}').status == 200
    wait_until(lambda: server.get("/models/m").json["bytes"] > 100 << 20)

    assert invoke(server, "m", '{"dies": true}').status == 500

    assert wait_until(lambda: invoke(server, "m").status == 200)


def test_too_many_models_for_the_hosts_files_is_507(start: Start, models: Path) -> None:
    """The host keeps spare file descriptors for its own connections; after an unload the next load fits."""
    path = toy(models, "echo")
    server = start(models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models)
    host = server.part("host")
    most = resource.prlimit(host, resource.RLIMIT_NOFILE)[1]
    open_now = len(list(Path(f"/proc/{host}/fd").iterdir()))
    resource.prlimit(host, resource.RLIMIT_NOFILE, (open_now + 64 + 10, most))

    answers = [load(server, f"m{number}", path) for number in range(8)]

    fitted = [each for each in answers if each.status == 200]
    assert 0 < len(fitted) < 8
    refused = answers[len(fitted)]
    assert refused.status == 507, refused.body
    assert "out of file descriptors" in refused.json["message"]
    assert server.pings()
    assert listed(server) == [f"m{number}" for number in range(len(fitted))]
    assert unload(server, "m0").status == 200
    assert load(server, "another", path).status == 200

"""Each line of the log that belongs to a request has its id: tracebacks, and all that a model's own code writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Later, Start
from tests.live.stack import Server, at_once, toy, wait_until

# Ways in which code can write; the key of the line that has the text.
WAYS = {
    **dict.fromkeys(("print", "print without a newline", "stderr", "write", "bytes", "a descriptor"), "text"),
    **dict.fromkeys(("printf of C", "a child process", "a thread"), "text"),
    **dict.fromkeys(("logging", "warnings"), "event"),
}


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    toy(shared_models, "chatty")
    toy(shared_models, "chatty", "fatal")
    toy(shared_models, "batch")
    return start_shared(shared_models)


def _lines(server: Server, text: str) -> list[dict[str, Any]]:
    """The lines of the log in which this text occurs, but for those of nginx."""
    lines = [json.loads(line) for line in server.log.splitlines() if text in line and line.startswith("{")]
    return [line for line in lines if line["process"] != "nginx"]


def _written(server: Server, text: str, count: int) -> list[dict[str, Any]]:
    """Exactly `count` lines. What goes to a descriptor reaches the log by a thread, perhaps after the answer."""
    wait_until(lambda: len(_lines(server, text)) >= count)
    lines = _lines(server, text)
    assert len(lines) == count, lines
    return lines


def _speak(server: Server, request_id: str, **body: Any) -> Any:
    return server.invoke("chatty", body, **{"X-Request-Id": request_id})


def test_whatever_own_code_writes_has_the_id_of_its_request(server: Server) -> None:
    """By print, logging, warnings, C or a child process: one line of JSON each, with model and request."""
    at_once(len(WAYS), lambda number: _speak(server, f"id-{number}", by=list(WAYS)[number], say=f"said-{number}-said"))

    for number, (way, key) in enumerate(WAYS.items()):
        lines = _written(server, f"said-{number}-said", 1 + (way == "a child process"))
        for line in lines:
            assert f"said-{number}-said" in line[key], (way, line)
            assert (line["model"], line["request_id"]) == ("chatty", f"id-{number}"), (way, line)
            assert line["process"] == "runner chatty"
    assert not [line for line in server.log.splitlines() if "said-" in line and not line.startswith("{")]


def test_output_of_the_load_has_the_model_alone(server: Server) -> None:
    """No request is at work then, even if one waits for the load."""
    _speak(server, "id-first")
    (line,) = [each for each in server.events("output") if each["model"] == "chatty" and each["text"] == "loading"]
    assert "request_id" not in line


def test_each_step_of_a_request_is_its_own(server: Server, later: Later) -> None:
    """input_fn, predict_fn and each chunk of a stream, with other requests between them; each line once, in order."""
    calls = at_once(
        8,
        lambda number: _speak(
            server, f"step-{number}", read=f"read {number}.", by="print", say=f"chunk {number}.", stream=True
        ),
    )
    assert [each.status for each in calls] == [200] * 8
    for number in range(8):
        own = [each for each in server.events("output") if each.get("request_id") == f"step-{number}"]
        assert [each["text"] for each in own] == [
            f"read {number}.",
            f"chunk {number}.",
            *(f"chunk {number}. {part}" for part in range(3)),
        ]


def test_a_traceback_has_the_id_of_its_request(server: Server) -> None:
    """And what was printed before it comes before it."""
    assert _speak(server, "id-failed", by="print", say="about to fail", fail="told to fail").status == 500
    lines = [line for line in _lines(server, "") if line.get("request_id") == "id-failed"]
    assert [line.get("text", line["event"]) for line in lines] == ["about to fail", "predict_fn failed"]
    assert "RuntimeError: told to fail" in lines[1]["traceback"]


def test_the_lines_of_a_batch_have_the_ids_of_its_requests(server: Server, tmp_path: Path, later: Later) -> None:
    """All of them where they work together, one where they are retried one by one."""
    gate = tmp_path / "gate"
    first = later(server.invoke, "batch", {"gate": str(gate)}, **{"X-Request-Id": "b-0"})
    wait_until(lambda: server.model("batch")["inFlight"] == 1)
    calls = [
        later(server.invoke, "batch", body, **{"X-Request-Id": f"b-{number}"})
        for number, body in ((1, {"id": 1}), (2, {"fail": True}))
    ]
    wait_until(lambda: server.queued("batch") == 3)
    gate.touch()
    assert [call.result().status for call in (first, *calls)] == [200, 200, 500]

    (together,) = server.events("batch failed, retrying its requests one by one")
    assert sorted(together["request_ids"]) == ["b-1", "b-2"]
    tracebacks = [line for line in _lines(server, "told to fail") if line["model"] == "batch" and "traceback" in line]
    assert [line["request_id"] for line in tracebacks if "request_ids" not in line] == ["b-2"]


def test_a_long_step_is_seen_while_it_runs(server: Server, tmp_path: Path, later: Later) -> None:
    """Not only at its end: a request may take minutes."""
    call = later(_speak, server, "id-long", by="print", say="half way", gate=str(tmp_path / "gate"))
    wait_until(lambda: _lines(server, "half way"))
    assert not call.done()
    (tmp_path / "gate").touch()
    assert call.result().status == 200
    (line,) = _lines(server, "half way")
    assert line["request_id"] == "id-long"


def test_a_crash_loses_no_line(server: Server) -> None:
    """What was printed before it, without a newline too, and the Python stack of the crash, under the request's id."""
    answer = server.invoke(
        "fatal", {"by": "print without a newline", "say": "last words", "segv": True}, **{"X-Request-Id": "id-crash"}
    )

    assert "killed by SIGSEGV" in answer.json["message"]
    wait_until(lambda: server.events("runner crashed"))
    own = [line for line in _lines(server, "") if line.get("request_id") == "id-crash"]
    text = "\n".join(line.get("text", line["event"]) for line in own)
    assert text.startswith("last words")
    assert "Segmentation fault" in text
    assert "in predict_fn" in text
    assert own[-1]["event"] == "runner crashed"


def test_output_after_the_request_has_the_model_alone(server: Server) -> None:
    """A child process that goes on: its request is over, and no other one is blamed."""
    assert _speak(server, "id-late", by="a late child process", say="too late").status == 200
    (line,) = wait_until(lambda: _lines(server, "too late"))
    assert line["model"] == "chatty"
    assert "request_id" not in line

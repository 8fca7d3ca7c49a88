"""The output of a runner: each line once, with the requests of its step, whoever of the two processes reads it."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.capture import LONGEST, Captured

STEPS = 400
RUNNER = """
import os, signal, sys
from serve import capture
fd, out = map(int, sys.argv[1:])
capture.install(fd, "runner m", "m", "INFO", out)
"""
CHATTY = f"""
for step in range({STEPS}):
    capture.begin([f"id-{{step}}", "other"] if step % 7 == 0 else [f"id-{{step}}"])
    for line in range(step % 5):
        print(f"{{step}}:{{line}}")
    os.write(1, b"%d:" % step)
    os.write(2, b"part\\n")
    capture.end()
"""
ENDS = {
    "it is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "it exits": "os._exit(0)",
    "it returns": "",
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def captured(log: Path) -> Iterator[Captured]:
    """The host's side, which logs into a file."""
    found = Captured("m")
    with log.open("ab", buffering=0) as file:
        found._out = file.fileno()
        yield found


def _run(captured: Captured, log: Path, code: str, *, look: bool) -> list[dict[str, Any]]:
    """The log of a runner that runs this code, while the host looks all the time, or at the end only."""
    with log.open("ab", buffering=0) as file:
        passed = (captured.fd, file.fileno())
        command = [sys.executable, "-c", RUNNER + code, *map(str, passed)]
        child = subprocess.Popen(command, pass_fds=passed)
        while child.poll() is None:
            if look:
                captured.look()
        captured.finish()
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_each_line_is_logged_once_with_its_requests(captured: Captured, log: Path, end: str, look: bool) -> None:
    """In order, while both processes read, and if the runner is killed in a step."""
    last = "capture.begin(['last']); os.write(1, b'cut off'); "
    lines = _run(captured, log, f"{CHATTY}\n{last}{end}\n", look=look)

    expected = [(f"{step}:{line}", step) for step in range(STEPS) for line in (*range(step % 5), "part")]
    assert Counter(each["text"] for each in lines) == Counter([*(text for text, _ in expected), "cut off"])
    of_step = dict(expected)
    for each in lines[:-1]:
        step = of_step[each["text"]]
        ids = each["request_ids"] if step % 7 == 0 else [each["request_id"]]
        assert ids == [f"id-{step}", "other"][: len(ids)], each
    assert (lines[-1]["text"], lines[-1]["request_id"]) == ("cut off", "last")
    if not look:
        assert [each["text"] for each in lines[:-1]] == [text for text, _ in expected]


def test_output_between_steps_belongs_to_no_request(captured: Captured, log: Path) -> None:
    """A thread or a child process of an earlier request may write then."""
    steps = "capture.begin(['a']); capture.end(); print('between'); capture.begin(['b']); print('in b'); capture.end()"
    lines = _run(captured, log, steps, look=False)
    assert [(each["text"], each.get("request_id")) for each in lines] == [("between", None), ("in b", "b")]


def test_a_long_line_is_cut_and_read_memory_is_given_back(captured: Captured, log: Path) -> None:
    """16 kB a line; after 8 MB of output the file holds less than 2 MB."""
    code = """
for step in range(8):
    capture.begin([str(step)])
    os.write(1, b"x" * (1 << 20))
    capture.end()
size = os.fstat(fd).st_blocks * 512
capture.begin([]); print(size); capture.end()
"""
    lines = _run(captured, log, code, look=False)
    pieces = lines[:-1]
    assert {len(each["text"]) for each in pieces} == {LONGEST}
    assert Counter(each["request_id"] for each in pieces) == {str(step): (1 << 20) // LONGEST for step in range(8)}
    assert int(lines[-1]["text"]) < 2 << 20


def test_bytes_that_are_no_text_are_escaped(captured: Captured, log: Path) -> None:
    """No line of the log is invalid JSON."""
    (line,) = _run(captured, log, r"os.write(2, b'\xff\x00 \xe4\xb8\xad\n')", look=False)
    assert line["text"] == "\\xff\x00 中"

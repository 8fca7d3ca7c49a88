"""The output of a runner: each line once, with the requests of its step, whoever of the two processes reads it."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.capture import AT_ONCE, LAST_LINES, LINES_AT_ONCE, LONGEST, PAGE, UNREAD, Captured

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


# A model's own code, which can write anything to the file and to its first page.


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE])
def test_a_runner_cannot_truncate_its_output(captured: Captured, size: int) -> None:
    """The host maps its first page: a truncated file would end the host with SIGBUS."""
    os.write(captured.fd, b"printed\n")
    with pytest.raises(PermissionError):
        os.ftruncate(captured.fd, size)
    captured.finish()


@pytest.mark.parametrize("page", [b"\0", b"\xff", b"\x7f", b"\x80", b"random"], ids=["0", "ff", "7f", "80", "random"])
def test_the_host_reads_each_byte_once_whatever_the_first_page_says(captured: Captured, log: Path, page: bytes) -> None:
    """A position in the past or beyond the end, ids without end: neither an error nor a line twice."""
    luck = random.Random(13)
    for number in range(50):
        os.write(captured.fd, b"line %d\n" % number)
        scribbled = luck.randbytes(PAGE) if page == b"random" else page * PAGE
        captured._head[:] = scribbled
        captured.look()
        captured.requests()
    captured._head[:] = bytes(PAGE)
    captured.finish()
    texts = Counter(each["text"] for each in _lines(log))
    assert set(texts.values()) <= {1}
    assert set(texts) <= {f"line {number}" for number in range(50)}
    if page == b"\0":
        assert len(texts) == 50


def test_a_page_that_changes_while_it_is_read_ends_no_reader(captured: Captured, log: Path) -> None:
    """Another process writes positions at random all the time."""
    code = """
import random
while True:
    capture._capture._head[0:24] = random.randbytes(24)
"""
    child = subprocess.Popen([sys.executable, "-c", RUNNER + code, str(captured.fd), "2"], pass_fds=(captured.fd,))
    try:
        for number in range(3000):
            os.write(captured.fd, b"line %d\n" % number)
            captured.look()
    finally:
        child.kill()
        child.wait()
    captured.finish()
    assert max(Counter(each["text"] for each in _lines(log)).values(), default=1) == 1


def test_a_flood_of_lines_is_written_in_turns_and_left_out_beyond_a_limit(captured: Captured, log: Path) -> None:
    """A look writes some hundred lines, the end the last ones; the memory of the rest is given back."""
    for _ in range(2 * UNREAD // AT_ONCE):
        os.write(captured.fd, b"\n" * AT_ONCE)
    captured.look()
    assert len(_lines(log)) <= LINES_AT_ONCE + 1
    assert os.fstat(captured.fd).st_blocks * 512 <= 2 * AT_ONCE
    os.write(captured.fd, b"the last words")
    captured.finish()
    lines = _lines(log)
    assert len(lines) <= LINES_AT_ONCE + LAST_LINES + 2
    assert lines[-1]["text"] == "the last words"


def test_a_file_that_a_runner_makes_enormous_is_not_read_to_its_end(captured: Captured, log: Path) -> None:
    """It has holes, and takes no memory; but to log it would take years."""
    os.write(captured.fd, b"printed\n")
    os.ftruncate(captured.fd, 1 << 61)
    captured.look()
    captured.finish()
    assert len(log.read_bytes()) < 20 * AT_ONCE


def test_a_lock_that_a_runner_holds_for_ever_keeps_no_memory(captured: Captured, log: Path) -> None:
    """And the host does not wait for it, while the runner lives and afterwards."""
    code = f"""
import fcntl, time
fcntl.lockf(fd, fcntl.LOCK_EX)
for _ in range({2 * UNREAD // AT_ONCE}):
    os.write(fd, b"x" * {AT_ONCE})
os.write(out, b"locked")
time.sleep(600)
"""
    ours, theirs = os.pipe()
    command = [sys.executable, "-c", RUNNER + code, str(captured.fd), str(theirs)]
    child = subprocess.Popen(command, pass_fds=(captured.fd, theirs))
    try:
        assert os.read(ours, 6) == b"locked"
        captured.look()
        assert os.fstat(captured.fd).st_blocks * 512 <= 2 * AT_ONCE
    finally:
        child.kill()
        child.wait()
        os.close(ours)
        os.close(theirs)
    captured.finish()

"""What a process may hold, and which one is ended: on real processes, without a server."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve import machine, settings
from serve.catalog.catalog import Entry
from serve.failures import refused_allocation
from serve.host import memory
from serve.host.eviction import Held
from serve.host.model import Phase, RunnerProcess, ServedModel
from serve.host.runners import MemoryWatch
from serve.host.store import keeps_too_much
from serve.machine import Resident
from serve.settings import MB

HOLDS = """
import mmap, sys
a, shared = int(sys.argv[1]), int(sys.argv[2])
held = bytearray(b"x") * (a << 20)
other = mmap.mmap(-1, (shared or 1) << 20)
if shared:
    other.write(b"x" * (shared << 20))
print("ready", flush=True)
sys.stdin.read()
"""


class Process:
    """A runner of the host that is a process of so many MB."""

    def __init__(self, number: int, mb: int, shared: int = 0) -> None:
        self.runner = RunnerProcess(number, f"m{number}", Held(runner=number, bytes=0, last_used=0))
        self.runner.phase = Phase.READY
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(mb), str(shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == b"ready\n"
        self.runner.pid = self.process.pid

    def allow(self, share: int, *, private: int = 0, own: int | None = None) -> RunnerProcess:
        """As if it had been idle and small when it was measured."""
        rested = Resident(0, 0)
        self.runner.allowance = memory.while_working(private * MB, 0, rested, share * MB, own)
        return self.runner

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.runner.discard()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    made: list[Process] = []
    yield made
    for each in made:
        each.close()


def test_a_process_over_its_limit_is_killed_and_the_reason_has_the_figures(processes: list[Process]) -> None:
    """Its neighbour, which holds less than its limit, is not."""
    large, small = Process(1, 120), Process(2, 8)
    processes += [large, small]
    watch = MemoryWatch({1: large.allow(60, private=10), 2: small.allow(60, private=10)}, 1 << 40)

    watch.look(everyone=True)

    assert large.process.wait() == -9
    assert "the limit of its memory is 70 MB: 10 MB after its load, and 60 MB of SERVE_WORKING_MEMORY_MB" in (
        large.runner.kill_reason
    )
    assert "memory_limit_mb" in large.runner.over_limit
    assert large.runner.holds > 130 * MB
    assert small.process.poll() is None
    assert not small.runner.kill_reason


def test_shared_memory_counts(processes: list[Process]) -> None:
    """A process could hold all of the machine in it."""
    shares = Process(1, 0, shared=120)
    processes.append(shares)

    MemoryWatch({1: shares.allow(100)}, 1 << 40).look(everyone=True)

    assert shares.process.wait() == -9


def test_mapped_files_do_not_count(processes: list[Process], tmp_path: Path) -> None:
    """Weights that are mapped are pages of files, which the kernel takes back."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(120 << 20))
    code = f"""
import mmap, sys
file = open({str(file)!r}, "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(mapped[::4096])
print("ready", flush=True)
sys.stdin.read()
"""
    maps = Process(1, 0)
    processes.append(maps)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        maps.runner.pid = process.pid
        found = machine.resident(process.pid)
        assert found
        assert found.files > 120 * MB

        MemoryWatch({1: maps.allow(100)}, 1 << 40).look(everyone=True)

        assert process.poll() is None
        process.kill()


def test_when_all_together_hold_too_much_the_one_that_has_grown_most_ends(processes: list[Process]) -> None:
    """Although each of them is within its own limit. A model that is large at rest is not to blame."""
    grown, at_rest = Process(1, 100), Process(2, 160)
    processes += [grown, at_rest]
    at_rest.allow(500, private=160)
    at_rest.runner.allowance = replace(
        memory.while_working(160 * MB, 0, machine.resident(at_rest.process.pid) or Resident(0, 0), 500 * MB, None)
    )
    watch = MemoryWatch({1: grown.allow(500), 2: at_rest.runner}, 200 * MB)

    watch.look(everyone=True)

    assert grown.process.wait() == -9
    assert "all models together held" in grown.runner.kill_reason
    assert at_rest.process.poll() is None


def test_caches_are_beside_the_limit_and_at_most_as_large_as_the_share() -> None:
    """The figure is the runner's own, so that it is not believed without end."""
    allowed = memory.while_working(10 * MB, 0, Resident(0, 0), 100 * MB, None)
    assert not allowed.over(200 * MB, 95 * MB)
    assert allowed.over(200 * MB, 0)
    assert allowed.over(300 * MB, 1 << 60)
    assert allowed.over(300 * MB, -(1 << 60))
    assert memory.while_working(10 * MB, 0, Resident(0, 0), 100 * MB, 150).over(200 * MB, 95 * MB)


def test_a_model_that_loads_more_with_each_first_request_is_not_replaced_without_end(tmp_path: Path) -> None:
    """Each replacement doubles what the next process may keep."""
    model = ServedModel(Entry(name="m", path=tmp_path, archive=False), tmp_path / "m.sock", 8)
    model.bytes_at_ready = 10 * MB
    runner = RunnerProcess(1, "m", Held(runner=1, bytes=0, last_used=0))
    runner.phase = Phase.READY
    runner.bytes = 100 * MB
    found = []
    for _ in range(3):
        found.append(keeps_too_much(model, runner, 100 * MB, 1e12))
        model.replaced_for_keeping += found[-1]
    runner.slot.set("in_flight", 1)
    model.replaced_for_keeping = 0
    assert found == [True, False, False]
    assert not keeps_too_much(model, runner, 100 * MB, 1e12)
    runner.discard()
    model.close()


@pytest.mark.parametrize(
    "line",
    [
        "memory allocation of 1073741824 bytes failed",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "  what():  std::bad_alloc",
    ],
)
def test_what_compiled_code_writes_before_it_aborts(line: str) -> None:
    assert refused_allocation(f"before\n{line}\nFatal Python error: Aborted\n") == line.strip()


def test_another_abort_is_not_of_memory() -> None:
    assert refused_allocation("terminate called after throwing an instance of 'std::runtime_error'\n") == ""


def test_the_share_for_work_is_half_of_the_budget() -> None:
    assert settings.read({"SERVE_MEMORY_BUDGET_MB": "1500"}).working_bytes == 750 * MB
    assert settings.read({"SERVE_MEMORY_BUDGET_MB": "60"}).working_bytes == 256 * MB
    assert settings.read({"SERVE_WORKING_MEMORY_MB": "5"}).working_bytes == 5 * MB


@pytest.mark.parametrize(
    ("limit", "wanted", "expected"),
    [(23_000, 30_000, 22_500), (2_000, 1_950, 1_600), (700, 386, 386), (700, 5_000, 560)],
)
def test_what_all_models_may_hold_together(limit: int, wanted: int, expected: int) -> None:
    """On a machine, and in small containers; MB."""
    assert machine.for_models(limit * MB, wanted * MB, 2) // MB == expected


def test_an_idle_runner_gives_back_what_a_csv_of_25_mb_left_behind() -> None:
    """The pool of pyarrow and the heap keep it; and it is looked for only after further requests."""
    code = """
from serve.formats import tables
from serve.machine import OwnMemory
from serve.runner.rest import Rest
tables.csv(b"1,2,3,4\\\\n" * 5000, 4)  # imports what it needs
rest = Rest(OwnMemory())
rest.worked = True
begun = rest._memory.bytes()
bodies = [b"1.5,2,3,4\\\\n" * 1_500_000 for _ in range(4)]
for body in bodies: tables.csv(body, 4)
del body, bodies
left = rest._memory.bytes()
rest.begin()
print(left - begun >> 20, rest._memory.bytes() - begun >> 20, rest.worked)
""".replace("\\\\", "\\")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    left, kept, worked = out.split()
    assert int(left) > 40
    assert int(kept) < 20
    assert worked == "False"

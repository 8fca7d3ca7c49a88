"""Walls around each model: its code attacks files, processes and secrets, and may do what usual scripts do."""

import signal
from pathlib import Path
from typing import Any

import pytest

from serve.walls import landlock
from serve.walls.enclosure import NAMES
from tests.live.conftest import Start
from tests.live.stack import Server, alive, descendants, toy, wait_until

SECRET = "a-value-that-no-model-sees"
OPENED = """
[allow]
network = true
subprocess = true
environment = ["PASSED", "MORE_*"]
"""
WITH_CREDENTIALS = "[allow]\ncredentials = true\n"
# Put before the code of an attack: it must end with PermissionError, or with -1 and EPERM for a bare system call.
C = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0: raise OSError(ctypes.get_errno(), name)
def number(number, *arguments):
    if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), str(number))
"""


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    toy(shared_models, "intruder")
    toy(shared_models, "intruder", "victim")
    toy(shared_models, "intruder", "opened", {"model.toml": OPENED})
    toy(shared_models, "intruder", "trusted", {"model.toml": WITH_CREDENTIALS})
    variables = {"A_SECRET": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "PASSED": "one", "MORE_OF_IT": "two"}
    server = start_shared(shared_models, **variables)
    assert server.invoke("victim", {}).status == 200
    return server


def run(server: Server, code: str, model: str = "intruder") -> Any:
    """What the model's own code finds."""
    answer = server.invoke(model, {"code": code})
    assert answer.status == 200, answer.body
    return answer.json["result"]


def outcome(server: Server, code: str, model: str = "intruder") -> str:
    """The name of the error that code of the model ends with, or what it found."""
    caught = f"try:\n exec({code!r}, globals())\nexcept OSError as error: result = type(error).__name__"
    return str(run(server, caught, model))


def test_each_wall_is_told_for_each_model_and_at_the_start(server: Server) -> None:
    """Those that hold by name, those that do not with the cause."""
    walls = server.loaded("victim")["walls"]
    assert {*walls["holds"], *walls["missing"]} == NAMES.keys()
    assert not {*walls["holds"]} & walls["missing"].keys()
    assert all(walls["missing"].values())
    assert walls["allowed"] == []
    assert ("files" in walls["holds"]) == bool(landlock.version())
    assert "around each model" in server.log


FILES = {
    "list the models": "os.listdir({models!r})",
    "read the code of another model": "open({models!r} + '/victim/code/inference.py')",
    "write the code of another model": "open({models!r} + '/victim/code/inference.py', 'a')",
    "remove another model": "os.rename({models!r} + '/victim', {models!r} + '/gone')",
    "list the run directory": "os.listdir({run!r})",
    "replace a socket": "os.unlink({run!r} + '/s/victim.sock')",
    "let others connect": "os.chmod({run!r} + '/s', 0o777) or os.listdir({run!r} + '/s')",
    "read the catalog": "open({run!r} + '/catalog')",
    "read the temporary files of another": "os.listdir({run!r} + '/own/victim.sock')",
    "change the server's program": "open({program!r}, 'a')",
    "read passwords": "open('/etc/shadow')",
    "read a disk": "os.mknod('disk', 0o60600, os.makedev(8, 0))",
    "list processes": "os.listdir('/proc')",
    "read the host's environment": "open(f'/proc/{{os.getppid()}}/environ')",
    "read the host's memory": "open(f'/proc/{{os.getppid()}}/mem', 'rb').read(1)",
    "be the last that the kernel kills": "open('/proc/self/oom_score_adj', 'w').write('0')",
}


@pytest.mark.parametrize("attack", FILES)
def test_files_beside_its_own_are_refused(server: Server, attack: str) -> None:
    if not landlock.version():
        assert "files" in server.loaded("victim")["walls"]["missing"]
        return
    program = Path(landlock.__file__)
    code = FILES[attack].format(models=str(server.models), run=str(server.run_dir), program=str(program))
    assert outcome(server, f"import os; {code}") in ("PermissionError", "FileNotFoundError")
    assert server.invoke("victim", {}).status == 200


CALLS = {
    "signal its parent": "os.kill(os.getppid(), 9)",
    "signal all processes": "os.kill(-1, 9)",
    "signal its group": "os.kill(0, 9)",
    "signal by a file's owner": "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "trace its parent": "call('ptrace', 16, os.getppid(), 0, 0)",
    "read memory": "call('process_vm_readv', os.getppid(), None, 0, None, 0, 0)",
    "write memory": "call('process_vm_writev', os.getppid(), None, 0, None, 0, 0)",
    "hold a process": "os.pidfd_open(os.getppid())",
    "take the files of a process": "number(438, 3, 0, 0)",
    "move its parent to one processor": "os.sched_setaffinity(os.getppid(), {0})",
    "slow its parent down": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "limit its parent": "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (3, 3))",
    "fork": "os.fork()",
    "run a program": "import subprocess; subprocess.run(['true'])",
    "become a program": "os.execv('/bin/true', ['true'])",
    "use processes": "import multiprocessing; multiprocessing.Process(target=print).start()",
    "connect to a network": "import socket; socket.create_connection(('127.0.0.1', 8080), 1)",
    "connect to a path": "import socket; socket.socket(socket.AF_UNIX).connect('{run}/host.sock')",
    "read packets": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "ask the kernel": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "mount": "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
    "have a namespace": "call('unshare', 0x10000000)",
    "change the root": "os.chroot('/')",
    "load a program into the kernel": "number(321, 0, 0, 0)",
    "use the kernel's keys": "number(250, 0, 0, 0)",
    "make calls by a ring": "number(425, 1, 0)",
    "share memory by number": "call('shmget', 1, 4096, 0o1777)",
    "be looked into": "call('prctl', 4, 1, 0, 0, 0)",
    "outlive its parent": "call('prctl', 1, 0, 0, 0, 0)",
    "be root": "os.setuid(0) or os.chown('/', 1, 1)",
}


@pytest.mark.parametrize("attack", CALLS)
def test_other_processes_and_the_system_are_out_of_reach(server: Server, attack: str) -> None:
    before = descendants(server.process.pid)
    code = CALLS[attack].replace("{run}", str(server.run_dir))
    assert outcome(server, C + code) == "PermissionError"
    assert before <= descendants(server.process.pid)
    assert server.invoke("victim", {}).status == 200


MAY = {
    "read its own code": ("open(model_dir + '/code/inference.py').read(3)", '"""'),
    "write temporary files": ("__import__('tempfile').TemporaryFile().write(b'12')", "2"),
    "write where it works": ("open('made', 'w').write('123')", "3"),
    "write in its home": ("open(os.path.expanduser('~/.made'), 'w').write('1')", "1"),
    "start threads": ("(t := __import__('threading').Thread(target=print)).start() or t.join()", "None"),
    "have a pair of sockets": ("__import__('socket').socketpair()[0].family.value", "1"),
    "run a loop of asyncio": ("(a := __import__('asyncio')).run(a.sleep(0, 'ran'))", "ran"),
    "read of the machine": ("os.cpu_count() > 0 and os.getloadavg()[0] >= 0", "True"),
    "verify certificates": ("__import__('ssl').create_default_context() is not None", "True"),
    "import": ("__import__('sqlite3').connect(':memory:').execute('select 1').fetchone()[0]", "1"),
    "read of itself": (
        "'VmRSS' in open('/proc/self/status').read() and len(os.listdir('/proc/self/task')) > 0",
        "True",
    ),
    "name the user": ("__import__('getpass').getuser()", "model"),
    "find a library": ("__import__('ctypes.util').util.find_library('nothing')", "None"),
    "describe the platform": ("__import__('platform').processor() is not None", "True"),
    "signal itself": ("os.kill(os.getpid(), 0)", "None"),
    "use random numbers": ("len(open('/dev/urandom', 'rb').read(4))", "4"),
}


@pytest.mark.parametrize("work", MAY)
def test_usual_work_needs_no_permission(server: Server, work: str) -> None:
    code, found = MAY[work]
    directory = str(server.models / "intruder")
    assert outcome(server, f"import os; model_dir = {directory!r}; result = {code}") == found


def test_no_secret_of_the_server_is_in_a_models_process(server: Server) -> None:
    """Neither in its environment, nor anywhere in the memory that it has inherited."""
    code = """
import os
half = "a-value-that-no-"
result = [half in value for value in os.environ.values()].count(True)
with open("/proc/self/mem", "rb", 0) as memory:
    for line in open("/proc/self/maps"):
        area, rights, *_ = line.split()
        if rights.startswith("rw"):
            start, end = (int(part, 16) for part in area.split("-"))
            memory.seek(start)
            try: held = memory.read(end - start)
            except OSError: continue
            result += held.count(half.encode() + b"model-sees")
"""
    assert run(server, code) == 0
    lacks = server.invoke("intruder", {"code": "import os; os.environ['A_SECRET']"})
    assert lacks.status == 500
    assert '[allow] environment = ["A_SECRET"]' in lacks.json["hint"]


def test_what_its_settings_allow_is_open_to_a_model_and_told(server: Server) -> None:
    """A network, programs, variables by name or by their beginning; another model gets none of it."""
    code = """
import os, socket, subprocess
listener = socket.create_server(("127.0.0.1", 0))
caller = socket.create_connection(listener.getsockname())
result = subprocess.run(["echo", os.environ["PASSED"], os.environ["MORE_OF_IT"]], capture_output=True, text=True).stdout
"""
    assert run(server, code, "opened") == "one two\n"
    assert run(server, "import os; result = os.environ.get('A_SECRET')", "opened") is None
    allowed = server.model("opened")["walls"]["allowed"]
    assert {"network", "subprocess", "PASSED", "MORE_OF_IT"} == set(allowed)
    assert run(server, "import os; result = os.environ.get('PASSED')") is None
    assert run(server, "import os; result = os.environ['AWS_SECRET_ACCESS_KEY']", "trusted") == SECRET


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import subprocess; subprocess.run(['true'])", "subprocess = true"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:1/')", "network = true"),
        ("import urllib.request; urllib.request.urlopen('http://a.name.that.is.not/')", "network = true"),
        ("open('/etc/shadow')", 'read = ["/etc"]'),
    ],
)
def test_the_error_of_a_wall_names_the_line_that_opens_it(server: Server, code: str, line: str) -> None:
    refused = server.invoke("intruder", {"code": code})
    assert refused.status == 500
    assert line in refused.json["hint"]


DAEMON = """
import os, signal, time
ready, done = os.pipe()
if os.fork() == 0:
    os.setsid()
    for number in range(1, 64):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    if os.fork() == 0:
        os.setsid()
        for _ in range(3): os.fork()  # eight of them
        os.write(done, b"%d " % os.getpid())
        while True: time.sleep(60)
    os._exit(0)
os.close(done)
found = b""
while found.count(b" ") < 8: found += os.read(ready, 100)
result = [int(each) for each in found.split()]
"""


def test_no_process_of_a_model_outlives_it(server: Server) -> None:
    """Whether it has daemonized, left its session, or ignores all signals; and its files are gone."""
    made = run(server, DAEMON + "open('left', 'w').write('x')", "opened")
    directory = Path(run(server, "import os; result = os.getcwd()", "opened"))
    assert len(made) == 8
    assert all(alive(pid) for pid in made)
    assert (directory / "left").exists()
    server.invoke("opened", {"code": f"import os; os.kill(os.getpid(), {signal.SIGKILL.value})"})
    wait_until(lambda: not any(alive(pid) for pid in made))
    wait_until(lambda: not directory.exists())
    assert server.invoke("victim", {}).status == 200
    assert run(server, "result = 1", "opened") == 1


def test_the_operator_limits_what_models_allow_themselves(start: Start, tmp_path: Path) -> None:
    toy(tmp_path, "intruder", "asks", {"model.toml": OPENED})
    toy(tmp_path, "intruder", "modest", {"model.toml": '[allow]\nenvironment = ["PASSED"]\n'})
    server = start(tmp_path, SERVE_ALLOW="environment,read", PASSED="one")
    assert run(server, "import os; result = os.environ['PASSED']", "modest") == "one"
    refused = server.invoke("asks", {})
    assert refused.status in (404, 424)
    assert "allow: network is refused by this server" in refused.body.decode()


@pytest.mark.parametrize("path", ["/", "{run}", "{run}/s", "{models}"])
def test_no_setting_of_a_model_opens_the_server_or_all_models(start: Start, tmp_path: Path, path: str) -> None:
    models, run_dir = tmp_path / "models", tmp_path / "r"
    named = path.format(run=run_dir, models=models)
    models.mkdir()
    toy(models, "intruder", "greedy", {"model.toml": f'[allow]\nread = ["{named}"]\n'})
    refused = start(models, SERVE_RUN_DIR=str(run_dir)).invoke("greedy", {})
    assert refused.status == 424
    assert "model.toml: allow: " in refused.json["message"]


BLOCKS = """
import fcntl, os
for fd in range(3, 64):
    try: fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) ^ os.O_NONBLOCK)
    except OSError: pass
"""


def test_flags_of_what_a_model_shares_with_the_server_do_not_stop_it(start: Start, tmp_path: Path) -> None:
    """Its socket waits where the host does not expect that, and the log does not wait."""
    for name in ("intruder", "victim"):
        toy(tmp_path, "intruder", name)
    server = start(tmp_path)
    assert server.invoke("victim", {"code": BLOCKS}).status == 200
    for _ in range(3):  # then the host closes the connections to this model for a while
        server.invoke("intruder", {"code": BLOCKS + "os._exit(1)"})
    assert {server.invoke("intruder", {}).status for _ in range(3)} <= {200, 500, 503}
    assert server.model("victim")["state"] == "ready"  # the host tells
    assert server.pings()

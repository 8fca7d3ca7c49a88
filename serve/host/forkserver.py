"""The process from which all runners are forked: it has imported the frameworks, and has no tensor, thread or CUDA.

It imports the modules that it is given, then waits for orders from the host on a socket of whole messages, forks,
reaps, and reports every exit with its status. It exits when the host does, and its runners with it.
"""

import errno
import gc
import importlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec

from serve import log as serve_log
from serve import machine, shared_pages
from serve.catalog.kinds import ALSO_IMPORTED, HANDLERS, IMPORTED_AT_FIRST_LOAD, installed, module_of
from serve.catalog.model_config import ModelConfig, decoder
from serve.children import become_subreaper, children_of, die_with_parent, kill_with_descendants, signal_name
from serve.devices import VISIBLE
from serve.failures import not_installed
from serve.host.model import RunnerProcess
from serve.http.addresses import socket_name
from serve.runner.limits import PAGE
from serve.runner.record import made
from serve.settings import Settings
from serve.walls import environment
from serve.walls.users import Users

log = logging.getLogger(__name__)

# Seconds without an order before the forkserver imports a framework that no known model needs. An order that arrives
# during an import waits until it ends, and all of them take 8 to 15 s of processor time (torch alone 2 s).
QUIET = 5.0
MESSAGE = 1 << 16  # bytes; the longest message between host and forkserver
NICENESS = 5  # nginx, web workers and host go first, so that /ping is answered under full load

LACKS = {errno.ENOMEM: "memory", errno.EMFILE: "file descriptors", errno.ENFILE: "file descriptors"}

_OWN_ESTIMATORS = {module_of("custom"), module_of("sklearn")}  # handlers of models that may use any scikit-learn
_USE_SCIPY = {*_OWN_ESTIMATORS, module_of("xgboost")}


class Order(msgspec.Struct, frozen=True):
    """A runner to fork. Descriptors come with it: the model's record, output, counters, socket and control channel.

    A further one, of copies that count together, is that of their page.
    """

    runner: int  # its number
    model: str
    handler: str
    device: str | None = None  # its CUDA_VISIBLE_DEVICES: one GPU, or "" for none; None: as the server's


def run(channel: socket.socket, needed: Sequence[str], possible: Sequence[str], settings: Settings) -> None:
    """Fork a runner for each order until the host closes the channel. Between orders, import modules, one at a time.

    The `needed` modules are those of known models. The `possible` ones, for models whose kind is unknown, are imported
    while no orders come, if the settings say so. The module of an order's handler is imported first, so that a small
    model does not wait for the imports of others.
    """
    from serve.runner import main  # here: the host, which imports this module, does not need it

    serve_log.start("forkserver", settings.log_level)
    die_with_parent()
    for handler in HANDLERS:
        decoder(handler)
    main.prepare(settings)
    family = _Family(channel, settings)
    awake, wake = socket.socketpair()
    awake.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(awake, select.POLLIN)
    began = last_order = time.monotonic()
    known = {*needed, *possible}
    # Those that import scipy come last: it can be hidden only until then.
    missing = [*sorted(needed, key=_USE_SCIPY.__contains__), *possible]
    at_first_load = {handler: installed(modules) for handler, modules in IMPORTED_AT_FIRST_LOAD.items()}
    wanted_ahead = [*needed, *(possible if settings.import_ahead else ())]
    logged = False
    while True:
        ahead = [each for each in missing if each in wanted_ahead]
        if not ahead and not logged:
            logged = True
            log.info("imported", extra={"modules": wanted_ahead, "seconds": round(time.monotonic() - began, 2)})
        pause = pause_before_import(ahead, needed, last_order=last_order, now=time.monotonic())
        ready = [fd for fd, _ in poll.poll(None if pause is None else pause * 1e3)]
        if awake.fileno() in ready:
            awake.recv(4096)
            family.reap()
        if channel.fileno() in ready:
            message, fds, _, _ = socket.recv_fds(channel, MESSAGE, 6)
            if not message:
                signal.set_wakeup_fd(-1)  # children may end while this process exits
                return
            order = msgspec.json.decode(message, type=Order)
            for wanted in (module_of(order.handler), *ALSO_IMPORTED.get(order.handler, ())):
                if wanted in missing:
                    missing.remove(wanted)
                    import_framework(wanted, known)
            for module in at_first_load.pop(order.handler, ()):
                import_framework(module, known)
            family.spare_others()
            if pid := _fork(channel, order, fds, settings, (awake, wake), main.run):
                family.add(pid, order.model)
            last_order = time.monotonic()
        elif not ready:
            missing.remove(ahead[0])
            import_framework(ahead[0], known)


def pause_before_import(
    missing: Sequence[str], needed: Sequence[str], *, last_order: float, now: float
) -> float | None:
    """Seconds to wait for an order before the first missing module is imported; None where no module is missing."""
    if not missing:
        return None
    return 0.0 if missing[0] in needed else max(0.0, last_order + QUIET - now)


def hidden_from(module: str, known: Collection[str]) -> tuple[str, ...]:
    """The packages that count as not installed while a module is imported. `known`: all modules of handlers.

    scikit-learn (so XGBoost too) imports pandas where it is installed, and pandas imports pyarrow, which starts a
    thread. XGBoost and transformers import scikit-learn where it is installed, and 700 modules with it, which take
    46 MB; transformers imports scipy.optimize for losses of training, 240 modules, which take 30 MB. Our handlers need
    none of that: only a model's own code uses frames, estimators of XGBoost or losses.
    """
    if not _OWN_ESTIMATORS.isdisjoint(known):
        return ("pandas",)
    return ("pandas", "sklearn") if module in _USE_SCIPY else ("pandas", "sklearn", "scipy")


def import_framework(module: str, known: Collection[str]) -> None:
    """Import a module, as if the packages hidden from it were not installed, and freeze its objects.

    A runner can import the hidden packages. An import that fails is logged.
    """
    hidden = hidden_from(module, known)
    absent = [name for name in hidden if sys.modules.setdefault(name, cast(ModuleType, None)) is None]
    try:
        importlib.import_module(module)
    except Exception as error:
        # Not an error yet: the runner of a model that needs the module imports it again, and answers with the reason.
        extra = {"imported": module, "error": f"{type(error).__name__}: {error}"}
        log.warning("import failed", extra=extra, exc_info=None if not_installed(error) else error)
    finally:
        for name in absent:
            del sys.modules[name]
        if "scipy" in absent and (utils := sys.modules.get("transformers.utils")):
            utils.is_scipy_available.cache_clear()  # its answer is remembered; FNet, which a runner imports, asks it
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page of the imported modules


def _fork(
    channel: socket.socket,
    order: Order,
    fds: list[int],
    settings: Settings,
    own: Sequence[socket.socket],
    start: Callable[..., None],
) -> int:
    """The process id of the runner; 0 if there is none. Returns in this process only."""
    config, output, counters, *sockets = fds[:5]
    listener, control = (socket.socket(fileno=fd) for fd in sockets)
    common = fds[5] if len(fds) > 5 else -1
    gate = opened = -1
    try:
        gate, opened = os.pipe()
        pid = os.fork()
    except OSError as error:  # the limit of processes, of memory, or of files
        lacks = LACKS.get(error.errno or 0, "processes")
        _send(channel, {"unborn": order.runner, "cause": f"fork: {error.strerror}", "lacks": lacks})
        pid = -1
    if pid:
        os.close(config)
        os.close(output)
        os.close(counters)
        if common >= 0:
            os.close(common)
        listener.close()
        control.close()
        if pid > 0:
            # Before the child gives up rights: then neither the host nor this process may look into it.
            memory = machine.open_private_bytes(pid)
            files = [memory] if memory >= 0 else []
            _send(channel, {"runner": order.runner, "pid": pid}, files)
            for file in files:
                os.close(file)
        for end in (gate, opened):
            if end >= 0:
                os.close(end)
        return max(0, pid)
    try:
        os.close(opened)
        os.read(gate, 1)  # until the parent has opened the measure of this process
        os.close(gate)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        channel.close()
        for each in own:
            each.close()
        die_with_parent()
        os.setsid()  # a signal to the own group reaches no other process
        os.nice(NICENESS)
        _offer_to_oom_killer()
        if order.device is not None:
            os.environ[VISIBLE] = order.device
        start(counters, config, output, listener, control, settings, common=common)
        os._exit(0)
    except BaseException:
        log.exception("runner failed", extra={"model": order.model})
        sys.stderr.flush()
        os._exit(1)


class _Family:
    """The children of the forkserver: runners, and what a runner has left behind.

    A process whose parent has ended becomes a child of the forkserver, however often it has forked, and of whichever
    session it is. A child that is no runner is therefore left by one that has ended, and is killed.
    """

    def __init__(self, channel: socket.socket, settings: Settings) -> None:
        self._channel = channel
        self._own = settings.own
        self._runners: dict[int, Path] = {}  # process id -> the directory of its own
        self._others: set[int] = set()  # of frameworks, and those that delete files
        become_subreaper()

    def spare_others(self) -> None:
        """Before a fork: processes that frameworks have started when they were imported."""
        if not self._runners:
            self._others |= set(children_of(os.getpid()))

    def add(self, pid: int, model: str) -> None:
        self._runners[pid] = self._own / socket_name(model) / str(pid)

    def reap(self) -> None:
        """Report all runners that have ended, several of one signal perhaps; kill and delete what they have left."""
        ended = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            self._others.discard(pid)
            if pid in self._runners:
                ended.append((pid, os.waitstatus_to_exitcode(status)))
                self._delete(self._runners.pop(pid))
        kill_with_descendants(set(children_of(os.getpid())) - self._runners.keys() - self._others)
        for pid, code in ended:
            _send(self._channel, {"died": pid, "status": code})

    def _delete(self, directory: Path) -> None:
        try:
            directory.rmdir()
        except FileNotFoundError:
            pass
        except OSError:  # it may hold a million files
            try:
                self._others.add(os.posix_spawnp("rm", ["rm", "-rf", "--", str(directory)], os.environ))
            except OSError:
                log.warning("the files of a model's process are not deleted", extra={"directory": str(directory)})


def _send(channel: socket.socket, message: dict[str, object], files: Sequence[int] = ()) -> None:
    socket.send_fds(channel, [msgspec.json.encode(message)], list(files))


def _offer_to_oom_killer() -> None:
    """When the container runs out of memory, the kernel kills a runner, not the host or nginx."""
    try:
        Path("/proc/self/oom_score_adj").write_text("800")
    except OSError:
        log.warning("oom_score_adj cannot be set")


def _cache_of_image(settings: Settings) -> str:
    """HF_HOME where the image has files there, else a directory that no model can make."""
    said = os.environ.get("HF_HOME", "")
    return said if said and Path(said).is_dir() else f"{settings.run_dir}/huggingface"


class Forkserver:
    """The host's client of the forkserver process."""

    def __init__(self, settings: Settings, needed: Sequence[str], possible: Sequence[str], *, alone: bool) -> None:
        """`alone`: there is never more than one runner, and it may use whole processors."""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._settings = settings
        self._users = Users()
        self._unsent: deque[tuple[bytes, int, int, int, int, socket.socket, socket.socket]] = deque()
        self._common: dict[str, int] = {}  # by model: the page in which its copies count together
        environ = {
            **environment.named(os.environ),
            # numpy's OpenBLAS starts its threads at import by default, and threads do not survive a fork.
            "OPENBLAS_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",  # the same for the allocator of pyarrow
            # Threads share two heaps, so that more of the freed pages return to the system.
            "MALLOC_ARENA_MAX": "2",
            # torch's large blocks in huge pages: the head of GPT-2 takes 11 ms for one row and not 15.
            "THP_MEM_ALLOC_ENABLE": "1",
            "TOKENIZERS_PARALLELISM": "false",  # no pool of its own in each runner: the server assigns the threads
            "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, also in own code, reports to its vendor by default
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # the log is JSON lines
            "TRANSFORMERS_VERBOSITY": "error",
            "SERVE_RUN_DIR": str(settings.run_dir),
            # A cache that one model could fill for another would carry code from one to the other.
            "HF_HOME": _cache_of_image(settings),
        }
        if not alone:
            # Threads that wait for the next product sleep at once. A runner that has its cores to itself keeps what
            # libgomp does by default, a short spin ("active" would not end it): docs/decisions/0007-threads.md.
            environ.setdefault("OMP_WAIT_POLICY", "passive")
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serve", "forkserver", str(theirs.fileno()), *needed, "--", *possible],
                pass_fds=[theirs.fileno()],
                env=environ,
                stdin=subprocess.DEVNULL,
            )
        self.channel.setblocking(False)

    def fork(
        self, runner: RunnerProcess, config: ModelConfig[Any], listener: socket.socket, device: str | None = None
    ) -> None:
        """Order a runner. Raises EOFError when the forkserver has exited, as do the other methods.

        `device`: the GPU that the runner sees, as in CUDA_VISIBLE_DEVICES; "" for none, None for those of the server.

        The channel holds some 170 orders, which the forkserver does not read during an import. Further orders wait
        here. If the host blocked instead, it would answer no requests; and once its unread reports fill the other
        direction of the channel, both processes would block each other.
        """
        order = Order(runner.number, config.name, config.handler, device)
        counters, control = runner.hand_over()
        record = made(config, self._users.of(config.name), self._settings, os.environ)
        files = record, runner.output.fd, counters, self._common_of(config), listener.dup(), control
        self._unsent.append((msgspec.json.encode(order), *files))
        self._flush()

    def _common_of(self, config: ModelConfig[Any]) -> int:
        """A descriptor of the page in which the copies of a model count together; -1: nothing is counted so."""
        if config.limits is None or config.copies == 1:
            return -1
        if config.name not in self._common:
            self._common[config.name] = shared_pages.create("limits", PAGE)
        return os.dup(self._common[config.name])

    def _flush(self) -> None:
        while self._unsent:
            message, config, output, counters, common, listener, control = self._unsent[0]
            try:
                fds = [config, output, counters, listener.fileno(), control.fileno()]
                fds += [common] if common >= 0 else []
                socket.send_fds(self.channel, [message], fds)
            except BlockingIOError:
                return  # tried again at the next message: then the forkserver has read an order
            except OSError as broken:
                raise EOFError from broken
            self._unsent.popleft()
            os.close(config)
            if common >= 0:
                os.close(common)
            os.close(counters)
            listener.close()
            control.close()

    def messages(self) -> Iterator[Mapping[str, Any]]:
        """Starts and exits of runners since the last call. `memory`: a descriptor for serve.machine.private_bytes."""
        while True:
            try:
                raw, files, _, _ = socket.recv_fds(self.channel, MESSAGE, 1)
            except BlockingIOError:
                self._flush()
                return
            except OSError as broken:
                raise EOFError from broken
            if not raw:
                raise EOFError
            try:
                message = msgspec.json.decode(raw, type=dict[str, Any])
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise EOFError("the forkserver has sent an invalid message") from error
            if files:
                message["memory"] = files[0]
            yield message

    def ended(self) -> str:
        """Why the forkserver has exited, in words; it closes its channel before that."""
        try:
            status = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the forkserver has closed its channel"
        how = f"was killed by {signal_name(-status)}" if status < 0 else f"exited with status {status}"
        return f"the forkserver {how}"

    def stop(self) -> None:
        self.process.kill()  # before the close: otherwise a report that is being sent fails with BrokenPipeError
        self.channel.close()
        self.process.wait()

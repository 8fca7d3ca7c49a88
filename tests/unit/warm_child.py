"""Children that skip their imports: each is forked from one process that has already imported the libraries.

`python -m serve convert` reads a file in a new interpreter, which imports XGBoost or scikit-learn first: seconds for
each file. A child of WarmChildren begins where those imports end. After that it does what the interpreter does: it
has the same descriptors, runs the same code, enters the same sandbox and exits with the same status and message.
"""

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NoReturn

SERVER = "import sys; from tests.unit import warm_child; warm_child.serve(int(sys.argv[1]))"


class WarmChildren:
    """Replaces `subprocess.run` where the child is `python -m serve.convert`."""

    def __init__(self) -> None:
        self._socket, self._theirs = socket.socketpair()
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: IO[bytes],
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: Mapping[str, str],
        timeout: float,
    ) -> "subprocess.CompletedProcess[bytes]":
        python, *module, kind = command
        assert (python, module) == (sys.executable, ["-m", "serve.convert.command"])
        if self._process is None:
            self._start(env)
        assert env == self._environment
        self._socket.settimeout(timeout)
        socket.send_fds(self._socket, [kind.encode()], [each.fileno() for each in (stdin, stdout, stderr)])
        try:
            status = self._socket.recv(16)
        except TimeoutError as error:
            raise subprocess.TimeoutExpired([*command], timeout) from error
        assert status, "the process that forks the children has exited"
        return subprocess.CompletedProcess([*command], int(status))

    def close(self) -> None:
        self._socket.close()
        self._theirs.close()
        if self._process is not None:
            self._process.wait()

    def _start(self, env: Mapping[str, str]) -> None:
        """The libraries read some of these variables when they are imported."""
        self._environment = dict(env)
        number = self._theirs.fileno()
        self._process = subprocess.Popen([sys.executable, "-c", SERVER, str(number)], env=env, pass_fds=[number])
        self._theirs.close()


def serve(descriptor: int) -> None:
    """Import what a conversion needs; then for each request fork a child, and send its exit status."""
    import skops.io  # noqa: F401
    import xgboost  # noqa: F401

    from serve.convert import command as convert
    from serve.convert import estimators
    from serve.handlers.xgboost import model_files  # noqa: F401

    estimators.warm()
    with socket.socket(fileno=descriptor) as requests:
        while True:
            kind, descriptors, _, _ = socket.recv_fds(requests, 64, 3)
            if not kind:
                return
            child = os.fork()
            if not child:
                requests.close()
                for target, source in enumerate(descriptors):
                    os.dup2(source, target)
                    os.close(source)
                _exit(convert._child, kind.decode())
            for each in descriptors:
                os.close(each)
            requests.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _exit(call: Callable[[str], None], kind: str) -> NoReturn:
    """Exit with the status and the last line of an interpreter, without its second of taking all modules apart."""
    status = 0
    try:
        call(kind)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)

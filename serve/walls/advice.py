"""Hints for exceptions of a model's own code that a wall has raised: the line of `model.toml` that would open it."""

import errno
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from traceback import walk_tb

_withheld: frozenset[str] = frozenset()  # names of variables; of this process, once its walls are raised
_raised = False
_STARTS = ("subprocess", "multiprocessing", "pty", "concurrent")
_CONNECTS = ("socket", "asyncio", "ssl", "http", "urllib")


def note(withheld: Sequence[str]) -> None:
    """The walls of this process are raised, and it lacks these variables of the server."""
    global _raised, _withheld
    _raised, _withheld = True, frozenset(withheld)


def hint(error: BaseException) -> str:
    """What to write into model.toml if a wall was in the way; "" if none was."""
    if not _raised:
        return ""
    return next((found for each in _chain(error) if (found := _of(each))), "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _of(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args and error.args[0] in _withheld:
        line = f"environment = [{json.dumps(error.args[0])}]"
        return f"the server keeps this variable from models; to pass it on, write into model.toml: [allow] {line}"
    if isinstance(error, socket.gaierror):
        return _open("the network", "network = true")
    if not isinstance(error, OSError) or error.errno not in (errno.EPERM, errno.EACCES):
        return ""
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    if packages and packages[-1] in _STARTS:
        return _open("programs and processes", "subprocess = true")
    if packages and packages[-1] in _CONNECTS:
        return _open("the network", "network = true")
    if isinstance(error.filename, str):
        path = str(Path(error.filename).absolute().parent)
        keys = f"read = [{json.dumps(path)}], or write"
        return f"a model's code has its own files, and temporary ones (tempfile); for {path} see [allow] {keys}"
    return "a model's code starts no processes unless its model.toml has: [allow] subprocess = true"


def _open(what: str, line: str) -> str:
    return f"a model's code has no access to {what} unless its model.toml has: [allow] {line}"

"""A child process that keeps an object: it imports and loads once, so that measurements of it can alternate."""

import os
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

_made: Any = None  # in the child


class Child:
    """A process that holds `make(*arguments)`; its frameworks have so many threads."""

    def __init__(self, make: Callable[..., Any], *arguments: Any, threads: int = 1) -> None:
        initial = (threads, make, arguments)
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=initial)
        self._pool.submit(os.getpid).result()

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Calls a method of the object."""
        return self._pool.submit(_call, method, *arguments, **named).result()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def _start(threads: int, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _made
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    # Before `make` imports the frameworks.
    os.environ |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    _made = make(*arguments)


def _call(method: str, *arguments: Any, **named: Any) -> Any:
    return getattr(_made, method)(*arguments, **named)

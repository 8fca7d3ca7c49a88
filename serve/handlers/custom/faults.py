"""Invalid input as errors of Python: what the toolkits' decoders raise, so that model code can catch it.

The toolkits decode with json, numpy and xgboost, whose errors are ValueErrors. Uncaught, ours are a 400 as elsewhere.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import BadRequest, ServeError


class InvalidInput(BadRequest, ValueError):
    """A body that a stand-in cannot read, or a value that it cannot write."""


class InvalidJson(InvalidInput, json.JSONDecodeError):
    """A body that is not JSON."""

    def __init__(self, message: str, doc: str = "", pos: int = 0, *, hint: str = "") -> None:
        json.JSONDecodeError.__init__(self, message, doc, pos)
        self.message, self.hint, self.model, self.retry_after = message, hint, None, None

    __reduce__ = Exception.__reduce__  # of JSONDecodeError it would lose the hint


@contextmanager
def value_errors() -> Iterator[None]:
    """Raise InvalidInput in place of the server's own errors of a request (4xx)."""
    try:
        yield
    except ServeError as error:
        if error.status >= 500 or isinstance(error, ValueError):
            raise
        raise InvalidInput(error.message, hint=error.hint) from error


@contextmanager
def json_errors(text: str | bytes) -> Iterator[None]:
    """The same for a body of JSON: InvalidJson, with the position in `text`."""
    try:
        yield
    except BadRequest as error:
        doc, pos = "", 0
        try:
            json.loads(text)
        except json.JSONDecodeError as found:
            doc, pos = found.doc, found.pos
        except (ValueError, RecursionError):
            pass
        raise InvalidJson(error.message, doc, pos, hint=error.hint) from error

"""The two errors of deploy, each with its exit code, and the message for an unknown name."""

import difflib
from collections.abc import Sequence


class SpecError(Exception):
    """The spec or the command is invalid (exit code 2). The message names key, value and allowed values."""


class Failed(Exception):
    """The requested state was not reached (exit code 1). The message gives the reason and the next step."""


def unknown(name: str, known: Sequence[str], kind: str, where: str = "") -> str:
    """The message for a name that is none of the known ones; `where` follows the name."""
    close = difflib.get_close_matches(name, known, 1)
    advice = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return f"unknown {kind} {name!r}{where}; {advice}"

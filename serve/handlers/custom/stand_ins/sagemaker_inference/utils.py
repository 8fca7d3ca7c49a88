"""Files, and headers of a request."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CONTENT_TYPE = re.compile("[Cc]ontent-?[Tt]ype")


def parse_accept(accept: str) -> list[str]:
    """The media types of an Accept header in its order, without parameters."""
    return [part.partition(";")[0].strip() for part in accept.split(",")]


def read_file(path: str, mode: str = "r") -> Any:
    with Path(path).open(mode) as file:
        return file.read()


def write_file(path: str, data: Any, mode: str = "w") -> None:
    with Path(path).open(mode) as file:
        file.write(data)


def retrieve_content_type_header(request_property: Mapping[str, Any]) -> Any:
    """The value of the first key that begins with Content-Type, in any of its spellings; None for none."""
    return next((value for name, value in request_property.items() if _CONTENT_TYPE.match(name)), None)


def remove_crlf(illegal_string: str) -> str:
    """The text with a blank for each line break: a phrase of an answer has one line."""
    return illegal_string.replace("\r", " ").replace("\n", " ")

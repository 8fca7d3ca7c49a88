"""Which model gets the request: pure functions from what the caller sent to a name."""

import re
from collections.abc import Callable

import msgspec

from serve.errors import BadRequest

# The platform's header, and the plain name that people type; the platform strips the second (contract, section 5).
TARGET_HEADERS = ("X-Amzn-SageMaker-Target-Model", "TargetModel")


def peek(field: str) -> Callable[[bytes], str | None]:
    """A function that finds one string field at the top of a JSON object and skips the rest without building it.

    It raises BadRequest where the body is not JSON, with the position.
    """
    found = msgspec.defstruct("Body", [("name", str | None, None)], rename={"name": field})
    decoder = msgspec.json.Decoder(found)

    def name_in(body: bytes) -> str | None:
        try:
            name: str | None = decoder.decode(body).name  # type: ignore[attr-defined]
        except msgspec.ValidationError as error:
            if str(error).startswith("Expected `object`"):
                return None  # a bare list or number names no model
            raise BadRequest(f"{field!r} in the body must be a string: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
        except RecursionError as error:
            raise BadRequest("the body is not JSON we read: nested too deep") from error
        return name

    return name_in


def in_attributes(attributes: str, field: str) -> str | None:
    """The model named in X-Amzn-SageMaker-Custom-Attributes: `trace=1,model_type=gpt2`."""
    found = re.search(rf"(?:^|[,;\s]){re.escape(field)}=([^,;\s]+)", attributes)
    return found.group(1) if found else None

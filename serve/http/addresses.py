"""How a model's name travels: as the file name of its socket, and as a field of a JSON body."""

import hashlib
import re
from collections.abc import Callable

import msgspec

from serve.errors import BadRequest

INVOCATIONS = "/invocations"
# OpenAI's API; the platform forwards .../openai/v1/... here.
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OPENAI = (CHAT, COMPLETIONS)
OPENAI_FIELD = "model"

SOCKET_PATH = 107  # bytes a socket's path may have (unix(7)), so names stay short
# nginx's straight lane takes these as they are.
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHORT_ID = " "  # a name that is not plain, whose socket is as long as that of any other such


def socket_name(model: str) -> str:
    """The file name of a model's socket: its own name, or for long and odd ones a short id no plain name can equal."""
    if PLAIN.fullmatch(model):
        return model + ".sock"
    return "~" + hashlib.sha256(model.encode(errors="surrogateescape")).hexdigest()[:16] + ".sock"


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

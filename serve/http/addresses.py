"""How requests address models: paths, the file name of a model's socket, and the field of a JSON body."""

import hashlib
import re
from collections.abc import Callable

import msgspec

from serve.errors import BadRequest
from serve.http.body import decode_json

INVOCATIONS = "/invocations"
PING = "/ping"
# OpenAI's API; the platform forwards .../openai/v1/... here.
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"  # not of OpenAI, but of Cohere, Jina and vLLM
OPENAI = (CHAT, COMPLETIONS, EMBEDDINGS, RERANK)
OPENAI_FIELD = "model"
# The Open Inference Protocol, as a runner sees it: nginx replaces /v2/models/NAME/infer and /v2/models/NAME.
INFER, METADATA = "/v2/infer", "/v2/metadata"
OPEN_INFERENCE = (INFER, METADATA)
LIVE, READY = "/v2/health/live", "/v2/health/ready"

SOCKET_PATH = 107  # bytes; the limit of a socket's path (unix(7)), so that file names must be short
# A plain name: nginx's straight lane accepts it, and uses it as the socket's name.
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHORT_ID = " "  # a name that is not plain; the socket names of all such names have the same length


def socket_name(model: str) -> str:
    """The file name of a model's socket: a plain name, or else a short hash, which no plain name can equal."""
    if PLAIN.fullmatch(model):
        return model + ".sock"
    return "~" + hashlib.sha256(model.encode(errors="surrogateescape")).hexdigest()[:16] + ".sock"


def peek(field: str) -> Callable[[bytes], str | None]:
    """A function that returns one string field of a JSON object, and parses the rest without building it.

    The function returns None for a body without the field, and raises BadRequest for invalid JSON.
    """
    found = msgspec.defstruct("Body", [("name", str | None, None)], rename={"name": field})
    decoder = msgspec.json.Decoder(found)

    def name_in(body: bytes) -> str | None:
        try:
            name: str | None = decode_json(body, decoder=decoder).name
        except msgspec.ValidationError as error:
            if str(error).startswith("Expected `object`"):
                return None  # a bare list or number names no model
            raise BadRequest(f"{field!r} in the body must be a string: {error}") from error
        return name

    return name_in

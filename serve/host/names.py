"""How a model's name becomes the name of its socket."""

import hashlib
import re

# nginx's straight lane takes these as they are. A socket's path may have 107 bytes (unix(7)), so names stay short.
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def socket_name(model: str) -> str:
    """The file name of a model's socket: its own name, or for long and odd ones a short id no plain name can equal."""
    if PLAIN.fullmatch(model):
        return model + ".sock"
    return "~" + hashlib.sha256(model.encode(errors="surrogateescape")).hexdigest()[:16] + ".sock"

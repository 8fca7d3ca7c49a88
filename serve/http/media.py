"""Media types: their names, the one that a Content-Type states, the one that an Accept header chooses."""

from collections.abc import Sequence
from functools import lru_cache

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header, parse_options_header

from serve.errors import NotAcceptable

JSON = "application/json"
JSON_LINES = "application/jsonlines"
CSV = "text/csv"
TEXT = "text/plain"
NPY = "application/x-npy"
NPZ = "application/x-npz"
RECORDIO = "application/x-recordio-protobuf"
LIBSVM = "text/libsvm"
LIBSVM_NAMES = (LIBSVM, "text/x-libsvm", "libsvm")  # as AWS's XGBoost container takes it
URI_LIST = "text/uri-list"
EVENTS = "text/event-stream"
BYTES = "application/octet-stream"


def is_json(media_type: str) -> bool:
    return media_type == JSON or media_type.endswith("+json")


def is_text(media_type: str) -> bool:
    return media_type.startswith("text/") or is_json(media_type) or media_type == JSON_LINES


@lru_cache(maxsize=512)
def content_type(header: str) -> tuple[str, str]:
    """The media type in lower case and the charset of a Content-Type header such as `text/csv; charset=utf-8`."""
    media_type, parameters = parse_options_header(header)
    return media_type.strip().lower(), parameters.get("charset", "utf-8")


@lru_cache(maxsize=512)
def choose(accept: str, offers: Sequence[str], default: str) -> str:
    """The offer that an Accept header prefers; `default` when the header is absent or `*/*`.

    Args:
        offers: the media types that the caller can write; a tuple, because the result is cached.

    Raises NotAcceptable (406), which lists the offers.
    """
    if not accept or accept == "*/*":
        return default
    if accept in offers:
        return accept
    wanted = parse_accept_header(accept, MIMEAccept)
    ordered = (default, *(offer for offer in offers if offer != default))
    best = wanted.best_match(ordered)
    if best is None:
        raise NotAcceptable(
            f"Accept {accept[:100]!r} matches no format that this model can write",
            hint="ask for one of: " + ", ".join(offers),
        )
    return best

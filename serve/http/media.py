"""Media types: their names, the one that a Content-Type states, the one that an Accept header chooses."""

import re
from collections.abc import Sequence
from functools import lru_cache

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

# Names without a slash, as AWS's containers accept them: `get_content_type` in data_utils.py of its XGBoost container
# (Content-Type), `default_output_fn` in algorithm_mode/handler_service.py (Accept).
SHORT_NAMES = {"csv": CSV, "json": JSON, "recordio-protobuf": RECORDIO}
_PARAMETER = re.compile(r'(?:[^;"]|"(?:\\.|[^"\\])*"?)+')  # a part between semicolons that no quotes hold
_RANGE = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')  # the same between commas


def is_json(media_type: str) -> bool:
    return media_type == JSON or media_type.endswith("+json")


def is_text(media_type: str) -> bool:
    return media_type.startswith("text/") or is_json(media_type) or media_type == JSON_LINES


@lru_cache(maxsize=512)
def content_type(header: str) -> tuple[str, str]:
    """The media type in lower case and the charset of a Content-Type header such as `text/csv; charset=utf-8`.

    Blanks may stand around each part. A short name becomes the media type that it stands for.
    """
    media_type, parameters = _parsed(header)
    return SHORT_NAMES.get(media_type, media_type), parameters.get("charset", "utf-8")


@lru_cache(maxsize=512)
def choose(accept: str, offers: Sequence[str], default: str) -> str:
    """The offer that an Accept header prefers; `default` when the header is absent or `*/*`.

    Of several types, the one with the highest `q` counts, then the most exact, then the first: AWS's toolkit takes the
    first that it can write. Other parameters, a charset for instance, are ignored.

    Args:
        offers: the media types that the caller can write; a tuple, because the result is cached.

    Raises NotAcceptable (406), which lists the offers.
    """
    if not accept.strip() or accept == "*/*":
        return default
    if accept in offers:
        return accept
    ranges = [(*_parsed(part), position) for position, part in enumerate(_RANGE.findall(accept))]
    best, chosen = (0.0, 0, 0), ""
    for offer in (default, *offers):
        matches = [(exact, -place, _q(found)) for name, found, place in ranges if (exact := _exactness(name, offer))]
        if not matches:
            continue
        exact, place, q = max(matches)  # RFC 9110 12.5.1: the most exact range decides, also if its q is lower
        if q and (q, exact, place) > best:
            best, chosen = (q, exact, place), offer
    if not chosen:
        raise NotAcceptable(
            f"Accept {accept[:100]!r} matches no format that this model can write",
            hint="ask for one of: " + ", ".join(offers),
        )
    return chosen


def _parsed(header: str) -> tuple[str, dict[str, str]]:
    """The first part of a header and its parameters by name, both in lower case. Of equal names the last counts."""
    first, *rest = _PARAMETER.findall(header) or [""]
    parameters = {}
    for part in rest:
        name, _, value = part.partition("=")
        value = value.strip()
        if value[:1] == '"':
            value = re.sub(r"\\(.)", r"\1", value[1:].removesuffix('"'))
        parameters[name.strip().lower()] = value
    return first.strip().lower(), parameters


def _exactness(wanted: str, offer: str) -> int:
    """3: a media range of Accept names the offer; 2: its type with any subtype; 1: any type; 0: another one."""
    if SHORT_NAMES.get(wanted, wanted) == offer:
        return 3
    if wanted in ("*/*", "*"):  # Java's URLConnection sends the second
        return 1
    return 2 if wanted.endswith("/*") and offer.startswith(wanted[:-1]) else 0


def _q(parameters: dict[str, str]) -> float:
    """The weight of a media range: 1 without a valid q."""
    found = re.fullmatch(r"[01]?(\.\d{0,9})?", parameters.get("q", ""))
    return min(1.0, float(found[0])) if found and found[0].strip(".") else 1.0

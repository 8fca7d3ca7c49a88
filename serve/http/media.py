"""Media types: what a request's Content-Type says and which of our formats its Accept asks for."""

from collections.abc import Sequence
from functools import lru_cache

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header, parse_options_header

from serve.errors import NotAcceptable


@lru_cache(maxsize=512)
def content_type(header: str) -> tuple[str, str]:
    """Media type in lower case and charset of a Content-Type header: `text/csv; charset=utf-8`."""
    media_type, parameters = parse_options_header(header)
    return media_type.strip().lower(), parameters.get("charset", "utf-8")


@lru_cache(maxsize=512)
def choose(accept: str, offers: Sequence[str], default: str) -> str:
    """The offer that Accept likes best; `default` when it is absent or `*/*`.

    Raises NotAcceptable (406) naming the offers. `offers` must be hashable (a tuple).
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
            f"Accept {accept[:100]!r} names none of the formats this model can write",
            hint="ask for one of: " + ", ".join(offers),
        )
    return best

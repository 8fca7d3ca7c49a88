"""Content types and Accept headers, as they are read."""

import pytest

from serve.errors import NotAcceptable
from serve.http.media import choose, content_type

OFFERS = ("text/csv", "application/json")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "text/csv"),
        ("*/*", "text/csv"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("text/csv;q=0.1, application/json;q=0.9", "application/json"),
        ("image/png, */*;q=0.1", "text/csv"),
    ],
)
def test_accept_chooses_what_it_likes_best(accept: str, expected: str) -> None:
    """With weights and wildcards."""
    assert choose(accept, OFFERS, "text/csv") == expected


def test_accept_that_names_nothing_we_write_is_406() -> None:
    """Naming what there is."""
    with pytest.raises(NotAcceptable) as refused:
        choose("image/png", OFFERS, "text/csv")
    assert "application/json" in refused.value.hint


def test_content_type_has_parameters() -> None:
    """`text/csv; charset=utf-8` is text/csv."""
    assert content_type("Text/CSV; charset=latin-1") == ("text/csv", "latin-1")
    assert content_type("") == ("", "utf-8")

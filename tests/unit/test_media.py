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
        ("application/json, text/plain, */*", "application/json"),  # axios
        ("text/html, image/gif, *; q=.2, */*; q=.2", "text/csv"),  # Java's URLConnection
        ("application/json, text/csv", "application/json"),  # of equals the first, as AWS's toolkit takes it
        ("text/csv;q=0, */*", "application/json"),
        ("text/*, application/json;q=0.9", "text/csv"),
        ("text/csv;q=0.2, */*;q=0.5", "application/json"),  # the most exact range decides for each type
        ("json", "application/json"),
        ("CSV", "text/csv"),
        ("application/json;q=nan", "application/json"),
        ('application/json; profile="a,b', "application/json"),
        ("text/csv; q=0.1, application/json; q=0.2; charset=utf-8", "application/json"),
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
    assert content_type(" csv ; charset = latin-1 ;") == ("text/csv", "latin-1")
    assert content_type('application/json; charset="utf-\\16"') == ("application/json", "utf-16")
    assert content_type("Recordio-Protobuf")[0] == "application/x-recordio-protobuf"


def test_ten_thousand_quotes_are_parsed_at_once() -> None:
    """A header of nginx's greatest length, in a form that makes a careless pattern backtrack."""
    for part in ('"', '\\"', '"\\', ';"', ',"', '"a"'):
        header = part * (16_000 // len(part))
        content_type(header)
        with pytest.raises(NotAcceptable):
            choose("image/png" + header, OFFERS, "text/csv")

"""Which model gets the request: the pure part."""

import pytest

from serve.errors import BadRequest, NotAcceptable
from serve.http.addresses import peek, socket_name
from serve.http.media import choose, content_type
from serve.web.invocations import in_attributes


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model_type": "gpt2", "inputs": "x"}', "gpt2"),
        (b'{"inputs": {"model_type": "nested"}}', None),
        (b'{"inputs": "\\"model_type\\": \\"quoted\\"", "model_type": "bart"}', "bart"),
        (b'{"model_type": null}', None),
        (b"[[1, 2]]", None),
        (b"3", None),
    ],
)
def test_the_field_is_found_at_the_top_and_only_there(body: bytes, name: str | None) -> None:
    """Wherever it stands, whatever else there is."""
    assert peek("model_type")(body) == name


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b'{"model_type": 3}', b'{"a":' * 10_000, b"", b"{} x"])
def test_what_is_not_json_is_a_bad_request(body: bytes) -> None:
    """With the position, and without an exception of the parser's."""
    with pytest.raises(BadRequest):
        peek("model_type")(body)


def test_custom_attributes_may_name_the_model() -> None:
    """Beside whatever else callers put there."""
    assert in_attributes("trace=7,model_type=gpt2", "model_type") == "gpt2"
    assert in_attributes("model_type=gpt2; b=1", "model_type") == "gpt2"
    assert in_attributes("my_model_type=gpt2", "model_type") is None
    assert in_attributes("", "model_type") is None


def test_socket_names_are_short_and_apart() -> None:
    """A path to a socket has 107 bytes; no name can pass for the id of another."""
    assert socket_name("abalone-1") == "abalone-1.sock"
    names = ["x" * 65, "x" * 300, "a b", "ä", ".hidden", "~" + "0" * 16, "-a"]
    short = {socket_name(name) for name in names}
    assert len(short) == len(names)
    assert all(len(each) <= 70 and each.startswith("~") for each in short)


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

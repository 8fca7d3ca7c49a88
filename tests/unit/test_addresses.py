"""The model that a body names, and the names of the models' sockets."""

import pytest

from serve.errors import BadRequest
from serve.http.addresses import peek, socket_name


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
    """At any position, beside any other fields."""
    assert peek("model_type")(body) == name


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b'{"model_type": 3}', b'{"a":' * 10_000, b"", b"{} x"])
def test_invalid_json_is_a_bad_request(body: bytes) -> None:
    """The error has the position; it is not an exception of the parser."""
    with pytest.raises(BadRequest):
        peek("model_type")(body)


def test_socket_names_are_short_and_apart() -> None:
    """A path to a socket has 107 bytes; no name equals the hash of another."""
    assert socket_name("abalone-1") == "abalone-1.sock"
    names = ["x" * 65, "x" * 300, "a b", "ä", ".hidden", "~" + "0" * 16, "-a"]
    short = {socket_name(name) for name in names}
    assert len(short) == len(names)
    assert all(len(each) <= 70 and each.startswith("~") for each in short)

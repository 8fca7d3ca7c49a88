"""The pure part of the multi-model API: names, paths and pages."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve import errors
from serve.catalog.scan import real
from serve.errors import BadRequest, ModelNotFound
from serve.host.model_api import NAME, page, requested
from serve.http.addresses import socket_name


def body(name: object, url: object) -> bytes:
    return json.dumps({"model_name": name, "url": url}).encode()


def test_a_directory_under_a_root_is_an_entry(tmp_path: Path) -> None:
    """The name is the platform's, independent of the path."""
    (tmp_path / "x" / "model").mkdir(parents=True)
    entry = requested(body("abc", str(tmp_path / "x" / "model")), [tmp_path])
    assert (entry.name, entry.path, entry.archive) == ("abc", tmp_path / "x" / "model", False)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "x" * 256, "ä", "a b", "a\x00", 3, None])
def test_names_are_plain(tmp_path: Path, name: object) -> None:
    """Other names are a 400."""
    with pytest.raises(BadRequest):
        requested(body(name, str(tmp_path)), [tmp_path])


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model_name": "a"}', b'{"url": "/x"}', b"\xff", b"[" * 10_000])
def test_an_invalid_load_request_is_a_bad_request(raw: bytes) -> None:
    """The hint shows a valid request."""
    with pytest.raises(BadRequest) as refused:
        requested(raw, [Path("/")])
    assert "model_name" in refused.value.hint


@pytest.mark.parametrize(
    "url", ["/etc", "relative", "{root}/../{root.name}2", "{root}/link", "/proc/self/root", "a\x00b"]
)
def test_a_path_outside_the_roots_is_refused(tmp_path: Path, url: str) -> None:
    """By dots, by links, or directly."""
    root = tmp_path / "models"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    with pytest.raises(BadRequest):
        requested(body("a", url.format(root=root)), [root])


def test_a_path_that_is_not_there_is_404(tmp_path: Path) -> None:
    """As in AWS's TensorFlow server."""
    with pytest.raises(ModelNotFound):
        requested(body("a", str(tmp_path / "nothing")), [tmp_path])


def test_a_path_swapped_for_a_link_meanwhile_is_refused(tmp_path: Path) -> None:
    """It is checked again before it is read."""
    root = tmp_path / "models"
    (root / "m").mkdir(parents=True)
    entry = requested(body("a", str(root / "m")), [root])
    (root / "m").rmdir()
    (root / "m").symlink_to("/etc")
    with pytest.raises(BadRequest, match="is not under"):
        real(entry.path, [root])


def test_roots_may_be_links(tmp_path: Path) -> None:
    """Their targets count."""
    (tmp_path / "disk" / "m").mkdir(parents=True)
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    assert real(tmp_path / "root" / "m", [tmp_path / "root"]) == (tmp_path / "disk" / "m").resolve()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    max_leaves=5,
)
urls = st.text().map("/nothing/here/".__add__) | values


@given(st.binary() | st.builds(body, st.from_regex(NAME, fullmatch=True) | values, urls))
def test_any_body_is_a_load_request_or_refused(raw: bytes) -> None:
    """With one of the known errors, and in few words."""
    with pytest.raises((BadRequest, ModelNotFound)) as refused:
        requested(raw, [Path("/nothing/here")])
    assert len(errors.body(refused.value)) <= errors.MAX_BODY


@given(st.text(), st.text())
def test_any_token_and_limit_is_a_page_or_refused(token: str, limit: str) -> None:
    """A page is never longer than the limit."""
    try:
        shown = page(MODELS, token, limit)
    except BadRequest:
        return
    assert len(shown["models"]) <= 100


some = st.text("abcdxyz0", min_size=1, max_size=3)


@pytest.mark.peer("multi-model")
@given(st.sets(some, min_size=1), st.integers(1, 4), st.data())
def test_pages_have_each_model_that_stays_exactly_once(first: set[str], limit: int, data: st.DataObject) -> None:
    """Between any two pages other models may be loaded and unloaded."""
    staying = data.draw(st.sets(st.sampled_from(sorted(first))))
    there, token = first, ""
    seen: list[str] = []
    while True:
        shown = page({name: name for name in there}, token, str(limit))
        seen += shown["models"]
        if "nextPageToken" not in shown:
            break
        token = shown["nextPageToken"]
        there = staying | data.draw(st.sets(some))
    assert [name for name in seen if name in staying] == sorted(staying)
    assert seen == sorted(set(seen))


def test_a_page_that_ends_at_the_end_has_no_token() -> None:
    """A limit above the maximum is a full page."""
    assert "nextPageToken" not in page({"a": 1, "b": 2}, "", "2")
    assert page({"a": 1, "b": 2}, "", "1")["nextPageToken"]
    assert len(page(MODELS, "", "1000")["models"]) == 100


@pytest.mark.parametrize(("length", "plain"), [(1, True), (64, True), (65, False), (255, False)])
def test_a_long_name_has_a_short_socket(length: int, plain: bool) -> None:
    """A socket's path may have 107 bytes; two long names never share one."""
    name = "x" * length
    assert (socket_name(name) == f"{name}.sock") is plain
    assert len(socket_name(name)) <= 69
    assert socket_name(name) != socket_name(name[:-1] + "y")


MODELS = {f"m{number:03d}": {"modelName": f"m{number:03d}"} for number in range(250)}


def test_pages_hold_every_model_once() -> None:
    """A hundred a page; no token if the last page ends exactly at the end."""
    seen, token = [], ""
    while True:
        shown = page(dict(list(MODELS.items())[:200]), token, "")
        seen += [each["modelName"] for each in shown["models"]]
        token = shown.get("nextPageToken", "")
        if not token:
            break
    assert seen == sorted(MODELS)[:200]


def test_pages_are_stable_while_models_are_loaded_and_unloaded() -> None:
    """A model that is unloaded before its page is absent; no other is repeated or skipped."""
    first = page(MODELS, "", "100")
    rest = {name: shown for name, shown in MODELS.items() if name not in ("m005", "m100", "m150")} | {"a": {}}
    second = page(rest, first["nextPageToken"], "100")
    assert [each["modelName"] for each in second["models"]] == [f"m{n:03d}" for n in range(101, 202) if n != 150]


@pytest.mark.parametrize(("token", "limit"), [("garbage!", ""), ("", "0"), ("", "-1"), ("", "x"), ("/////w==", "")])
def test_an_invalid_token_or_limit_is_refused(token: str, limit: str) -> None:
    """It is not an empty page."""
    with pytest.raises(BadRequest):
        page(MODELS, token, limit)


@pytest.mark.peer("multi-model")
def test_an_empty_list_is_a_list() -> None:
    assert page({}, "", "") == {"models": []}

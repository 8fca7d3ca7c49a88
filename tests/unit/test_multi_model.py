"""What the platform may ask for on a multi-model endpoint: names, paths and pages, the pure part."""

import json
from pathlib import Path

import pytest

from serve.errors import BadRequest, ModelNotFound
from serve.host.multi_model import page, requested


def body(name: object, url: object) -> bytes:
    return json.dumps({"model_name": name, "url": url}).encode()


def test_a_directory_under_a_root_is_an_entry(tmp_path: Path) -> None:
    """The name is the platform's; nothing of the path goes into it."""
    (tmp_path / "x" / "model").mkdir(parents=True)
    entry = requested(body("abc", str(tmp_path / "x" / "model")), [tmp_path])
    assert (entry.name, entry.path, entry.archive) == ("abc", tmp_path / "x" / "model", False)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "x" * 256, "ä", "a b", "a\x00", 3, None])
def test_names_are_plain(tmp_path: Path, name: object) -> None:
    """Whatever else is a 400."""
    with pytest.raises(BadRequest):
        requested(body(name, str(tmp_path)), [tmp_path])


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model_name": "a"}', b'{"url": "/x"}', b"\xff", b"[" * 10_000])
def test_junk_is_a_bad_request(raw: bytes) -> None:
    """And says what a request looks like."""
    with pytest.raises(BadRequest) as refused:
        requested(raw, [Path("/")])
    assert "model_name" in refused.value.hint


@pytest.mark.parametrize(
    "url", ["/etc", "relative", "{root}/../{root.name}2", "{root}/link", "/proc/self/root", "a\x00b"]
)
def test_a_path_outside_the_roots_is_refused(tmp_path: Path, url: str) -> None:
    """By dots, links or as it is."""
    root = tmp_path / "models"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    with pytest.raises(BadRequest):
        requested(body("a", url.format(root=root)), [root])


def test_a_path_that_is_not_there_is_404(tmp_path: Path) -> None:
    """As AWS's TensorFlow server has it."""
    with pytest.raises(ModelNotFound):
        requested(body("a", str(tmp_path / "nothing")), [tmp_path])


MODELS = {f"m{number:03d}": {"modelName": f"m{number:03d}"} for number in range(250)}


def test_pages_hold_every_model_once() -> None:
    """A hundred at a time; no token when the last page ends exactly at the end."""
    seen, token = [], ""
    while True:
        shown = page(dict(list(MODELS.items())[:200]), token, "")
        seen += [each["modelName"] for each in shown["models"]]
        token = shown.get("nextPageToken", "")
        if not token:
            break
    assert seen == sorted(MODELS)[:200]


def test_pages_hold_while_models_come_and_go() -> None:
    """One that leaves before its page is missing; nobody is told twice or passed over."""
    first = page(MODELS, "", "100")
    rest = {name: shown for name, shown in MODELS.items() if name not in ("m005", "m100", "m150")} | {"a": {}}
    second = page(rest, first["nextPageToken"], "100")
    assert [each["modelName"] for each in second["models"]] == [f"m{n:03d}" for n in range(101, 202) if n != 150]


@pytest.mark.parametrize(("token", "limit"), [("garbage!", ""), ("", "0"), ("", "-1"), ("", "x"), ("/////w==", "")])
def test_a_token_or_limit_that_is_none_is_refused(token: str, limit: str) -> None:
    """And not an empty page."""
    with pytest.raises(BadRequest):
        page(MODELS, token, limit)


def test_an_empty_list_is_a_list() -> None:
    assert page({}, "", "") == {"models": []}

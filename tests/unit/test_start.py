"""The first outputs of a start: nginx.conf, banner, counters, log lines."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xgboost

from serve import banner, launcher, nginx, settings
from serve.catalog import examples
from serve.catalog.catalog import Catalog
from serve.catalog.model_config import Example
from serve.catalog.scan import check, scan
from serve.log import JsonLines
from serve.slots import Slots, State
from tests.unit import tiny_encoders


def model(models: Path, name: str, card: str = "") -> None:
    (models / name / "code").mkdir(parents=True)
    (models / name / "code" / "inference.py").write_text("")
    (models / name / "model.toml").write_text(card)


def conf(models: Path, **changes: object) -> str:
    chosen = replace(settings.read({}), run_dir=Path("/run/x"), **changes)  # type: ignore[arg-type]
    return nginx.rendered(chosen, scan(models))


def test_nginx_conf_has_no_name_left_unfilled(tmp_path: Path) -> None:
    """And limits and port come from the settings."""
    text = conf(tmp_path, port=9123, payload_bytes=1234)
    assert "{{" not in text
    assert "listen 127.0.0.1:9123 " in text
    assert "client_max_body_size 1234;" in text
    assert "listen [::]:9123 ipv6only=off " in conf(tmp_path, port=9123, bind="::")


def test_only_a_single_model_gets_requests_that_name_none(tmp_path: Path) -> None:
    """With two, the Flask lane must ask which."""
    model(tmp_path, "one")
    assert '"one.sock"' in conf(tmp_path)
    model(tmp_path, "two")
    assert '.sock"' not in conf(tmp_path)


def test_the_limits_stand_in_order() -> None:
    """Runner before nginx before platform, whatever the one number is."""
    from serve.settings import margin, nginx_limit

    for limit in (1.0, 2.0, 10.0, 60.0, 3600.0):
        assert margin(limit) < nginx_limit(limit) < limit


def test_nginx_waits_for_a_load_and_for_an_unload(tmp_path: Path) -> None:
    """For the longer of the two: an unload waits for the requests in flight, up to their time limit."""
    assert "proxy_read_timeout 370000ms" in conf(tmp_path)
    assert "proxy_read_timeout 3610000ms" in conf(tmp_path, request_limit=3600.0)


def test_an_error_in_nginx_conf_survives_its_quotes() -> None:
    """A quote ends a string of nginx's, and a backslash escapes the next character."""
    from serve.errors import BadRequest

    quoted = nginx._json(BadRequest('it\'s "so"'))
    assert quoted.count("\\'") == 1
    assert json.loads(quoted.replace("\\'", "'").replace("\\\\", "\\"))["message"] == 'it\'s "so"'


def test_the_banner_tells_each_choice_with_its_source(tmp_path: Path) -> None:
    """And each model that cannot be served, with the cause."""
    model(tmp_path, "good")
    model(tmp_path, "bad", "colour = 1")
    chosen = settings.read({"SAGEMAKER_BIND_TO_PORT": "9000", "SERVE_MODEL_DIR": str(tmp_path)})
    text = banner.text(chosen, scan(tmp_path))
    assert "9000" in text
    assert "(SAGEMAKER_BIND_TO_PORT)" in text
    assert re.search(r"address +127\.0\.0\.1, this machine alone +\(default\)", text)
    assert re.search(
        r"address +0\.0\.0\.0 +\(SERVE_BIND\)", banner.text(settings.read({"SERVE_BIND": "0.0.0.0"}), scan(tmp_path))
    )
    assert "cannot be served: model.toml: no key named 'colour'" in text


def test_the_commands_to_paste_name_the_model(tmp_path: Path) -> None:
    """JSON gets the field, anything else the header; one for each handler."""
    body = "content_type = 'application/json'\nbody = '''{\"inputs\": \"it's\"}'''"
    model(tmp_path, "a", f"[example]\n{body}")
    model(tmp_path, "b", f"[example]\n{body}")
    text = banner.curls(settings.read({}), scan(tmp_path))
    assert text.count("curl ") == 1
    assert '"model_type": "a"' in text
    assert "curl localhost:8080/invocations" in text
    assert "curl '[::1]:8080/invocations'" in banner.curls(settings.read({"SERVE_BIND": "::"}), scan(tmp_path))


def test_models_without_an_example_have_a_command_too(tmp_path: Path) -> None:
    """XGBoost's has as many columns as the model; a wrong guess would be answered 400. Own code has none."""
    rows = np.random.default_rng(0).random((20, 7))
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, rows.sum(1), nthread=1), 2)
    for name in ("ours.ubj", "theirs.json"):
        directory = tmp_path / name.partition(".")[0]
        directory.mkdir()
        booster.save_model(directory / name)
        config = scan(tmp_path).entries[directory.name].config
        assert config is not None
        assert examples.of(config) == Example(content_type="text/csv", body="1,1,1,1,1,1,1")
    tiny_encoders.masked(tmp_path / "masks")
    (tmp_path / "own" / "code").mkdir(parents=True)
    (tmp_path / "own" / "code" / "inference.py").touch()

    commands = banner.curls(settings.read({}), scan(tmp_path)).splitlines()

    assert sorted(re.findall(r"TargetModel: (\w+)|\"model_type\": \"(\w+)\"", "".join(commands))) == [
        ("", "masks"),
        ("ours", ""),
    ]


def test_before_its_first_beat_the_host_is_starting(tmp_path: Path) -> None:
    """Its silence is not counted from the boot of the machine."""
    slots = Slots(tmp_path / "slots", create=True)
    state, silence, says = slots.pulse()
    assert (state, says) == (State.STARTING, "starting")
    assert silence < 5
    slots.beat(State.READY, "ready")
    assert slots.pulse()[::2] == (State.READY, "ready")


def test_a_log_line_is_one_json_object(caplog: pytest.LogCaptureFixture) -> None:
    """Event, process and what was added; a traceback stays within the line."""
    with caplog.at_level(logging.INFO):
        try:
            raise ValueError("x\ny")
        except ValueError:
            logging.getLogger("t").exception("broke", extra={"model": "m", "path": Path("/p")})
    line = JsonLines("test").format(caplog.records[-1])
    parsed = json.loads(line)
    assert "\n" not in line
    assert (parsed["event"], parsed["process"], parsed["model"], parsed["path"]) == ("broke", "test", "m", "/p")
    assert "ValueError" in parsed["traceback"]


def test_a_run_directory_too_long_for_sockets_is_told_by_its_setting(tmp_path: Path) -> None:
    """The longest name of a model counts; on a multi-model endpoint, the shortest socket name that serves any model."""
    model(tmp_path, "a-name-that-is-plain-but-not-short")
    found = scan(tmp_path)
    chosen = replace(settings.read({}), run_dir=Path("/" + "x" * 70))
    with pytest.raises(settings.BadSetting, match=r"^SERVE_RUN_DIR: /x+: .* has 113 bytes, the limit is 107; .* 6 by"):
        check(chosen, found)
    check(chosen, Catalog([]))
    check(replace(chosen, run_dir=Path("/" + "x" * 64)), found)
    with pytest.raises(settings.BadSetting, match="112 bytes"):
        check(replace(chosen, run_dir=Path("/" + "x" * 86)), Catalog([]))


def test_input_from_s3_needs_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start is refused, and not the first request that has a reference."""
    launcher._refuse_missing_boto3(settings.read({"SERVE_S3_INPUTS": "s3://bucket/in"}))
    monkeypatch.setattr(launcher, "find_spec", lambda _: None)
    launcher._refuse_missing_boto3(settings.read({}))
    with pytest.raises(settings.BadSetting, match=r"^SERVE_S3_INPUTS: boto3 is not installed: pip install '.*\[s3\]'$"):
        launcher._refuse_missing_boto3(settings.read({"SERVE_S3_INPUTS": "s3://bucket/in"}))

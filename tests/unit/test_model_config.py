"""What a model.toml may contain, how errors in it are reported, and how a model's record travels."""

import datetime as dt
import math
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from serve.catalog.kinds import HANDLERS, options_of
from serve.catalog.model_config import Example, ModelConfig, checked_options, decoded, encoded
from serve.catalog.scan import describe
from serve.errors import ModelUnusable
from serve.handlers.custom.options import OTHERS
from serve.handlers.xgboost.options import XGBoostOptions
from serve.settings import Settings
from tests.unit.configs import config_of
from tests.unit.model_files import put, refusal, xgboost


def test_every_key_of_model_toml_is_in_the_record(tmp_path: Path) -> None:
    """All keys of model.toml at once, with a byte order mark as some editors write it."""
    xgboost(
        tmp_path,
        "\ufeff"
        """
        name = "rings"
        handler = "xgboost"
        task = "regression"
        aliases = ["age", "age"]
        copies = 2
        threads = 1
        pin = true
        preload = true
        max_batch = 64
        options.ensemble = false
        [example]
        content_type = "text/csv"
        body = "1,2"
        """,
    )

    config = describe("abalone", tmp_path)

    assert config == ModelConfig(
        name="abalone",
        directory=tmp_path,
        handler="xgboost",
        task="regression",
        aliases=("rings", "age"),
        model_type=None,
        copies=2,
        threads=1,
        pin=True,
        preload=True,
        max_batch=64,
        options=XGBoostOptions(ensemble=False),
        example=Example(content_type="text/csv", body="1,2"),
        bytes=config.bytes,
    )
    assert config.bytes > 8 << 20


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("copies = ", "model.toml: invalid TOML"),
        ("a = " + "[" * 5000, "model.toml: invalid TOML"),
        ('copes = 2\nhandler = "xgboost"', "no key named 'copes'; did you mean copies?"),
        ("max-batch = 2", "no key named 'max-batch'; did you mean max_batch?"),
        ("zzz = 2", "no key named 'zzz'; known: name, handler, task, aliases"),
        (
            "[example]\ncontent-type = 'a'\nbody = 'b'",
            "no key of [example] named 'content-type'; did you mean content_type?",
        ),
        ("[example]\nbody = 'b'", "model.toml: example: Object missing required field `content_type`"),
        ("example = 1", "model.toml: example: Expected `object | null`, got `int`"),
        ("handler = 'xgbost'", "no handler named 'xgbost'; did you mean xgboost?"),
        ("handler = 'tflite'", "no handler named 'tflite'; known: custom, onnx, xgboost"),
        ("handler = 1", "model.toml: handler: Expected `str | null`, got `int`"),
        ("copies = '2'", "model.toml: copies: Expected `int`, got `str`"),
        ("copies = true", "model.toml: copies: Expected `int`, got `bool`"),
        ("copies = 0", "model.toml: copies: Expected `int` >= 1"),
        ("copies = 65", "model.toml: copies: Expected `int` <= 64"),
        ("threads = 257", "model.toml: threads: Expected `int` <= 256"),
        ("max_batch = 4097", "model.toml: max_batch: Expected `int` <= 4096"),
        ("pin = 1", "model.toml: pin: Expected `bool`, got `int`"),
        ("aliases = 'a'", "model.toml: aliases: Expected `array`, got `str`"),
        ("aliases = ['a', 1]", "model.toml: aliases[1]: Expected `str`, got `int`"),
        ("aliases = ['']", "model.toml: aliases: invalid name '': it is empty"),
        ("name = 'a/b'", "model.toml: name: invalid name 'a/b': it is empty, or contains /"),
        ('name = "a\\nb"', "control character"),
        ("options = 1", "model.toml: options: Expected `object`, got `int`"),
    ],
)
def test_model_toml_is_checked_key_by_key(tmp_path: Path, toml: str, said: str) -> None:
    """Unknown keys are refused with a suggestion, wrong values with the key's name."""
    assert said in refusal(xgboost(tmp_path, toml))


def test_a_model_toml_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """With its name and the cause."""
    xgboost(tmp_path)
    (tmp_path / "model.toml").write_bytes(b"name = '\xff'")

    assert "model.toml: invalid TOML: 'utf-8'" in refusal(tmp_path)


OPTIONS = [(handler, name) for handler in HANDLERS for name in options_of(handler).__struct_fields__ if name != OTHERS]


def misspelt(name: str) -> set[str]:
    """The name without one of its letters, with one twice, in capitals, with a hyphen."""
    parts = [(name[:at], name[at], name[at + 1 :]) for at in range(len(name))]
    wrong = {f"{before}{after}" for before, _, after in parts} | {f"{a}{char}{char}{b}" for a, char, b in parts}
    return (wrong | {name.upper(), name.replace("_", "-"), f"{name}s"}) - {name}


@pytest.mark.parametrize(("handler", "name"), OPTIONS)
def test_a_misspelt_option_is_refused_with_the_right_name(handler: str, name: str) -> None:
    """For every option of every handler."""
    for wrong in misspelt(name):
        with pytest.raises(ModelUnusable) as refused:
            checked_options(handler, {wrong: True})
        assert refused.value.message.startswith("model.toml: no option ")
        assert refused.value.message.endswith(f" named {wrong!r}; did you mean {name}?")


@pytest.mark.parametrize("handler", HANDLERS)
def test_every_option_has_a_default_and_a_description(handler: str) -> None:
    """The pages of the handlers are generated from them."""
    assert checked_options(handler, {}) == options_of(handler)()
    for field in msgspec.inspect.type_info(options_of(handler)).fields:  # type: ignore[attr-defined]
        assert field.type.extra_json_schema["description"]
        assert not field.required


@pytest.mark.parametrize(
    ("handler", "option", "message"),
    [
        ("xgboost", "ensemble = 1", "model.toml: options.ensemble: Expected `bool | null`, got `int`"),
        ("xgboost", "zzz = 1", "no option of xgboost named 'zzz'; known: inference_output, ensemble, allow_pickle"),
        ("onnx", "file = ['a']", "model.toml: options.file: Expected `str | null`, got `array`"),
        ("sklearn", "method = 'predit'", "options.method: unsupported value 'predit'; use one of: predict, "),
        ("sklearn", "trusted = ['a', 1]", "model.toml: options.trusted[1]: Expected `str`, got `int`"),
        ("torch", "dtype = 'float33'", "options.dtype: unsupported value 'float33'; use one of: float32, float64, "),
        (
            "fill_mask",
            "fold = 1",
            "no option of fill_mask named 'fold'; known: dtype, quantize, pack, trust_remote_code",
        ),
        (
            "text_generation",
            "quantize = 'int4'",
            "options.quantize: unsupported value 'int4'; use one of: int8, float16",
        ),
        (
            "text_generation",
            "quantise = 'int8'",
            "no option of text_generation named 'quantise'; did you mean quantize",
        ),
        ("custom", "toolkit = 'keras'", "options.toolkit: unsupported value 'keras'; use one of: pytorch, sklearn, "),
        ("custom", "size = 18446744073709551616", "model.toml: options: an integer does not fit 64 bits"),
    ],
)
def test_options_are_checked_by_their_handler(tmp_path: Path, handler: str, option: str, message: str) -> None:
    """At the scan, without its framework."""
    put(tmp_path, code__inference_py="", model_toml=f"handler = '{handler}'\n[options]\n{option}")

    assert message in refusal(tmp_path)


def test_own_code_has_options_of_its_own() -> None:
    """The server's among them; dates arrive as text. A name that is nearly one of the server's is a mistake."""
    table = {"toolkit": "pytorch", "size": 3, "since": dt.date(2026, 1, 2), "others": [1]}

    assert checked_options("custom", table).table() == {**table, "since": "2026-01-02"}
    assert checked_options("custom", {"program": "a.py", "programs": 1}).table() == {"program": "a.py", "programs": 1}


def test_a_record_arrives_as_it_was_sent(tmp_path: Path) -> None:
    """With a path that is not UTF-8, an infinite number, and options in their handler's struct."""
    sent = [
        config_of("custom", tmp_path / os.fsdecode(b"\xff"), {"limit": math.inf}, threads=2),
        config_of("torch", tmp_path, {"dtype": "int8"}, aliases=("a", "b"), model_type="gpt2"),
    ]

    assert [decoded(encoded(each)) for each in sent] == sent
    assert sent[1].names() == ["m", "m.tar.gz", "a", "b", "gpt2"]


def test_the_settings_of_a_handler_come_from_the_server(tmp_path: Path) -> None:
    """`threads` and `max_batch` only where model.toml leaves them out."""
    xgboost(tmp_path, "max_batch = 7")
    given = Settings(threads=3, max_batch=64, multi_model=True, inference_output="score", default_accept="text/csv")

    found = describe("m", tmp_path, given)

    assert (found.threads, found.max_batch, found.multi_model) == (3, 7, True)
    assert (found.inference_output, found.default_accept) == ("score", "text/csv")


def test_options_import_no_framework() -> None:
    """The host checks them."""
    code = (
        "import sys; from serve.catalog.kinds import HANDLERS, options_of; [options_of(each) for each in HANDLERS];"
        "sys.exit(', '.join({'torch', 'transformers', 'xgboost', 'numpy', 'sklearn'} & sys.modules.keys()) or 0)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

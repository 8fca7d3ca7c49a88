"""What a model.toml may say, and how it is told what is wrong in it."""

from pathlib import Path

import pytest

from serve.catalog.model_config import Example, ModelConfig
from serve.catalog.scan import describe
from serve.handlers.xgboost.options import XGBoostOptions
from tests.unit.model_files import refusal, xgboost


def test_everything_a_card_may_say_is_in_the_spec(tmp_path: Path) -> None:
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

    spec = describe("abalone", tmp_path)

    assert spec == ModelConfig(
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
        bytes=spec.bytes,
    )
    assert spec.bytes > 8 << 20


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("copies = ", "model.toml: not valid TOML"),
        ("a = " + "[" * 5000, "model.toml: not valid TOML"),
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
        ("aliases = ['']", "model.toml: aliases: '' is empty"),
        ("name = 'a/b'", "model.toml: name: 'a/b' is empty, or has a /"),
        ('name = "a\\nb"', "control character"),
        ("options = 1", "model.toml: options: Expected `object`, got `int`"),
    ],
)
def test_a_card_is_checked_key_by_key(tmp_path: Path, toml: str, said: str) -> None:
    """Unknown keys are refused with a suggestion, wrong values with the key's name."""
    assert said in refusal(xgboost(tmp_path, toml))


def test_a_card_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """With its name and the cause."""
    xgboost(tmp_path)
    (tmp_path / "model.toml").write_bytes(b"name = '\xff'")

    assert "model.toml: not valid TOML: 'utf-8'" in refusal(tmp_path)

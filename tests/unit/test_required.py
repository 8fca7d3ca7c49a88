"""Which models a server requires, and how it is known before a load that one of them cannot be served."""

from pathlib import Path

import pytest

from serve.catalog.catalog import Catalog
from serve.catalog.required import required, unservable
from serve.catalog.scan import at_start
from serve.errors import DoesNotFit, InternalError, ModelUnusable, RunnerDied
from serve.failed_start import FailedStart, read, write
from serve.host.store import ATTEMPTS, RETRIED_FOR, hopeless
from serve.settings import Settings
from tests.unit.model_files import GPT2, hugging, put, xgboost

UNREADABLE = "handler ="


def started(root: Path, **settings: object) -> FailedStart | None:
    chosen = Settings(model_dir=root, **settings)  # type: ignore[arg-type]
    return unservable(chosen, at_start(chosen))


def broken(directory: Path, toml: str = "") -> None:
    put(directory, model_toml=f"alias = 1\n{toml}")


WAYS = [
    ({"preload": ("x",)}, ""),
    ({"preload": ("*",)}, ""),
    ({"preload": ("x.tar.gz",)}, ""),
    ({"pin": ("x",)}, ""),
    ({"pin": ("*",)}, ""),
    ({"default_model": "x"}, ""),
    ({}, "preload = true"),
    ({}, "pin = true"),
]


@pytest.mark.peer("sagemaker-hosting")
@pytest.mark.parametrize(("settings", "toml"), WAYS)
def test_a_server_without_a_required_model_does_not_start(
    tmp_path: Path, settings: dict[str, object], toml: str
) -> None:
    """Required is a model that is preloaded, pinned or the default, by a setting or by its model.toml.

    The endpoint would be in service and answer 424 for ever: only a start that fails makes CreateEndpoint fail.
    """
    xgboost(tmp_path / "good")
    broken(tmp_path / "x", toml)

    failed = started(tmp_path, **settings)

    assert failed
    assert failed.model == "x"
    assert "'x', cannot be served: model.toml: no key named 'alias'" in failed.reason
    (tmp_path / "x" / "model.toml").write_text(toml)
    put(tmp_path / "x", model_ubj="{")
    assert started(tmp_path, **settings) is None


@pytest.mark.parametrize("settings", [{}, {"preload": ("good",)}, {"pin": ("good",)}, {"default_model": "good"}])
def test_a_model_that_is_not_required_stops_no_start(tmp_path: Path, settings: dict[str, object]) -> None:
    """Its requests are answered with the cause."""
    xgboost(tmp_path / "good")
    broken(tmp_path / "x", "preload = false")
    put(tmp_path / "y", model_toml=UNREADABLE)

    assert started(tmp_path, **settings) is None


@pytest.mark.peer("sagemaker-hosting")
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_server_that_can_serve_no_model_does_not_start(tmp_path: Path, count: int) -> None:
    """The only model, or every one of several; the reason names the first of them, and has a limited length."""
    for number in range(count):
        put(tmp_path / f"m{number:02}{'x' * 200}", net_tflite="x" * 100)

    failed = started(tmp_path)

    assert failed
    assert "m00" in failed.reason
    assert "unknown kind of model: found net.tflite" in failed.reason
    assert (failed.model is not None) == (count == 1)
    assert len(failed.reason) < 2500
    assert failed.reason.endswith("and 25 more") == (count == 30)


def test_files_at_the_top_of_the_model_directory_are_the_only_model(tmp_path: Path) -> None:
    """As SageMaker unpacks model.tar.gz: weights without their config.json, or a pickle, stop the start."""
    put(tmp_path, model_pkl="")

    failed = started(tmp_path)

    assert failed
    assert failed.reason.startswith("the only model, 'model', cannot be served: model.pkl: a pickle")


def test_a_server_without_models_starts(tmp_path: Path) -> None:
    """A container needs none. An archive may be good: only its first request unpacks it."""
    assert started(tmp_path) is None
    put(tmp_path, a_tar_gz="no archive")
    assert started(tmp_path, preload=("a",)) is None


@pytest.mark.peer("multi-model")
def test_a_multi_model_endpoint_requires_no_model(tmp_path: Path) -> None:
    """Whatever lies in the model directory: the platform loads the models, and must see 200 from /ping with none."""
    broken(tmp_path / "x", "preload = true")

    assert started(tmp_path, multi_model=True) is None


def test_an_alias_that_another_model_has_makes_a_required_model_unservable(tmp_path: Path) -> None:
    """The problem comes after the model's own files were found good."""
    xgboost(tmp_path / "a", 'aliases = ["rings"]')
    xgboost(tmp_path / "b", 'aliases = ["rings"]\npreload = true')

    failed = started(tmp_path)

    assert failed
    assert failed.model == "b"


def test_all_required_models_that_cannot_be_served_are_named(tmp_path: Path) -> None:
    """In one start, not one a start."""
    xgboost(tmp_path / "good")
    for name in "xyz":
        broken(tmp_path / name, "pin = true")

    failed = started(tmp_path)

    assert failed
    assert all(f"{name}: model.toml" in failed.reason for name in "xyz")


def test_names_and_aliases_of_settings_are_those_of_requests(tmp_path: Path) -> None:
    """A type of Hugging Face's as well."""
    hugging(tmp_path / "a", GPT2)
    xgboost(tmp_path / "b", 'aliases = ["rings"]')
    found = at_start(Settings(model_dir=tmp_path))

    assert required(Settings(preload=("gpt2",), default_model="rings"), found) == {"a", "b"}
    assert required(Settings(), Catalog([])) == set()


@pytest.mark.parametrize(
    ("error", "failures", "seconds", "given_up"),
    [
        (ModelUnusable("the weights are corrupt"), 1, 0.1, True),
        (DoesNotFit("out of memory"), 1, 0.1, False),
        (InternalError("loading failed: OSError"), ATTEMPTS - 1, 20, False),
        (RunnerDied("killed by SIGSEGV"), ATTEMPTS, 20, True),
        (DoesNotFit("out of memory"), ATTEMPTS, 20, True),
        (InternalError("timeout: the load took longer than 360 s"), 1, RETRIED_FOR + 1, True),
    ],
)
def test_a_failed_preload_is_retried_unless_its_files_are_at_fault(
    error: InternalError, failures: int, seconds: float, given_up: bool
) -> None:
    """Memory may be of the moment. The last attempt ends before SageMaker's 8 minutes."""
    assert hopeless(error, failures, seconds) == given_up


def test_the_reason_travels_in_the_run_directory(tmp_path: Path) -> None:
    """From the host to the launcher: every part of it."""
    write(tmp_path, FailedStart("the cause", hint="the step", model="é"))

    told = read(tmp_path)

    assert (told.reason, told.hint, told.model) == ("the cause", "the step", "é")

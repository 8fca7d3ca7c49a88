"""SAGEMAKER_PROGRAM and SAGEMAKER_SUBMIT_DIRECTORY decide which code serves a model; no other handler replaces it."""

import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.catalog import model_config, submitted
from serve.catalog.scan import describe, scan
from serve.errors import ModelUnusable
from serve.failed_start import FailedStart
from serve.runner import own_packages
from serve.settings import Settings, read
from tests.unit.model_files import GPT2, hugging, put, xgboost

BUCKET = "s3://bucket/key/sourcedir.tar.gz"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Submitted code, score.py."""
    return put(tmp_path / "submitted", score_py="")


def settings_of(run_dir: Path, directory: str | Path, program: str = "score.py", **more: str) -> Settings:
    environ = {
        "SAGEMAKER_PROGRAM": program,
        "SAGEMAKER_SUBMIT_DIRECTORY": str(directory),
        "SERVE_RUN_DIR": str(run_dir),
    }
    return read({**environ, **more})


MODELS: dict[str, Callable[[Path], Path]] = {
    "XGBoost": xgboost,
    "a pickle": lambda path: put(path, model_joblib="\x80"),
    "Hugging Face": lambda path: hugging(path, GPT2),
    "own code of another name": lambda path: put(path, code__inference_py="", model_ubj="{"),
    "no known file": lambda path: put(path, weights_dat=""),
}


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("form", ["s3", "path", "file"])
def test_submitted_code_serves_every_model(tmp_path: Path, code: Path, kind: str, form: str) -> None:
    """The script that SAGEMAKER_SUBMIT_DIRECTORY names serves each kind of model: a container has one script."""
    directory = {"s3": BUCKET, "path": str(code), "file": f"file://{code}"}[form]
    settings = settings_of(tmp_path, directory)

    config = describe("m", MODELS[kind](tmp_path / "m"), settings)

    assert (config.handler, config.options.program, config.code) == ("custom", "score.py", code)
    assert model_config.decoded(model_config.encoded(config)).code == code


@pytest.mark.parametrize(
    ("toml", "handler", "where"),
    [
        ('handler = "xgboost"', "xgboost", None),
        ('options = {program = "mine.py"}', "custom", "m/code"),
        ('handler = "custom"', "custom", "submitted"),
        ("pin = true", "custom", "submitted"),
    ],
)
def test_a_model_toml_that_chooses_stands_over_submitted_code(
    tmp_path: Path, code: Path, toml: str, handler: str, where: str | None
) -> None:
    """A handler or a program in model.toml is the model's own choice; other keys are none."""
    model = put(tmp_path / "m", model_ubj="{", code__mine_py="", model_toml=toml)

    config = describe("m", model, settings_of(tmp_path, code))

    assert config.handler == handler
    assert where is None or config.code == tmp_path / where


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize("directory", ["", "/opt/ml/model/code", "file:///opt/ml/model/code"])
def test_a_program_that_the_model_lacks_is_not_replaced(tmp_path: Path, directory: str) -> None:
    """A model without code/SAGEMAKER_PROGRAM is not served, by its own algorithm or by another script."""
    settings = settings_of(tmp_path, directory)
    for kind, (name, make) in itertools.product(("score", "score.py"), MODELS.items()):
        with pytest.raises(ModelUnusable, match=r"SAGEMAKER_PROGRAM=score(.py)?: there is no code/score"):
            describe("m", make(tmp_path / kind / name), settings_of(tmp_path, directory, kind))
    found = describe("m", put(tmp_path / "n", code__score_py="", model_ubj="{"), settings)
    assert (found.handler, found.options.program, found.submitted) == ("custom", "score.py", None)


BASE = {"SAGEMAKER_PROGRAM": "score.py", "SAGEMAKER_CONTAINER_LOG_LEVEL": "20", "SAGEMAKER_REGION": "us-east-1"}
# `prepare_container_def` of the SDK 2.257.1: SKLearnModel and XGBoostModel, alone and in a MultiDataModel; and a model
# with network isolation, whose archive is packed again with the code.
SDK = {
    "by default": (BASE | {"SAGEMAKER_SUBMIT_DIRECTORY": "s3://bkt/img-2026/sourcedir.tar.gz"}, "run/submitted"),
    "network isolation": (BASE | {"SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code"}, "m/code"),
}


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize("form", SDK)
def test_the_environment_that_the_sdk_sets_leads_to_the_script(tmp_path: Path, form: str) -> None:
    """The code that serves a model is where the SDK's XGBoostModel and SKLearnModel have put it."""
    environ, where = SDK[form]
    settings = read({**environ, "SERVE_RUN_DIR": str(tmp_path / "run")})

    config = describe("m", put(tmp_path / "m", **{"xgboost-model": "{", "code__score_py": ""}), settings)

    assert (config.handler, config.code, config.options.program) == ("custom", tmp_path / where, "score.py")


def test_requirements_of_submitted_code_are_checked(tmp_path: Path, code: Path) -> None:
    """As those of a model's own code/."""
    put(code, requirements_txt="no-such-package==1")
    settings = settings_of(tmp_path, code)

    with pytest.raises(ModelUnusable, match=r"no-such-package==1 \(not installed\)"):
        own_packages.prepare(describe("m", xgboost(tmp_path / "m"), settings), settings)


@pytest.mark.peer("inference-toolkit")
def test_the_usual_program_may_be_missing(tmp_path: Path) -> None:
    """SAGEMAKER_PROGRAM=inference.py, which SDKs set for every model, leaves a model without code to its kind."""
    for name in ("inference.py", "inference"):
        settings = settings_of(tmp_path, "/opt/ml/model/code", name)
        assert describe("m", xgboost(tmp_path / name), settings).handler == "xgboost"


def test_files_at_the_top_are_one_model_for_a_script(tmp_path: Path, code: Path) -> None:
    """model_fn gets all of the directory, as from AWS's containers; directories alone are several models."""
    settings = settings_of(tmp_path, code)
    one = put(tmp_path / "one", model_joblib="\x80", assets__words_txt="", README_md="")
    two = put(tmp_path / "two", a__model_ubj="{", b__model_ubj="{", README_md="")

    assert [entry.config and entry.config.directory for entry in scan(one, settings).entries.values()] == [one]
    assert {entry.config and entry.config.code for entry in scan(two, settings).entries.values()} == {code}
    assert list(scan(two, settings).entries) == ["a", "b"]


def pack(path: Path, directory: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(directory, ".")
    return path


def test_an_archive_is_unpacked_at_the_start(tmp_path: Path, code: Path) -> None:
    """A local archive, as SAGEMAKER_SUBMIT_DIRECTORY may name; a directory in it stays where it is."""
    packed = pack(tmp_path / "sourcedir.tar.gz", put(tmp_path / "packed", src__score_py=""))
    settings = settings_of(tmp_path / "run", packed, "src/score.py")
    (tmp_path / "run").mkdir()

    submitted.fetch(settings)

    config = describe("m", xgboost(tmp_path / "m"), settings)
    assert (config.code / config.options.program).is_file()


def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "damaged.tar.gz"
    path.write_bytes(b"\x1f\x8b" + bytes(20))
    return path


def hostile(tmp_path: Path) -> Path:
    path = tmp_path / "hostile.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../score.py"))
    return path


@pytest.mark.parametrize(
    ("directory", "more", "cause", "step"),
    [
        (BUCKET, {"SERVE_FETCH_CODE": "false"}, "SERVE_FETCH_CODE is false", "SERVE_FETCH_CODE=true"),
        ("/no/such/place", {}, "there is no directory /no/such/place", "code/ of the model's archive"),
        ("file:///no/such/place", {}, "there is no directory /no/such/place", "code/ of the model's archive"),
        (lambda path: put(path / "c", other_py=""), {}, "no file score.py, only other.py", "SAGEMAKER_PROGRAM"),
        (damaged, {}, "truncated or damaged", "pack plain files again"),
        (hostile, {}, "a path with ..", "pack plain files again"),
    ],
    ids=["setting", "path", "file", "program", "damaged", "hostile"],
)
def test_code_that_cannot_be_had_fails_the_start(tmp_path: Path, directory, more, cause: str, step: str) -> None:  # type: ignore[no-untyped-def]
    """The reason names the missing file, where it was looked for and the cause; the hint is the next step."""
    settings = settings_of(tmp_path, directory(tmp_path) if callable(directory) else directory, **more)

    with pytest.raises(FailedStart) as failed:
        submitted.fetch(settings)

    assert failed.value.reason.startswith(
        f"score.py of SAGEMAKER_SUBMIT_DIRECTORY={settings.submit_directory} is missing"
    )
    assert cause in failed.value.reason
    assert step in failed.value.hint


def test_a_start_without_boto3_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the image boto3 is optional."""
    monkeypatch.setattr(submitted, "find_spec", lambda _: None)
    with pytest.raises(FailedStart, match="boto3 is not installed") as failed:
        submitted.fetch(settings_of(tmp_path, BUCKET))
    assert "sagemaker-serve[s3]" in failed.value.hint

"""The command line of the server: help, mistakes, and what each verb prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve import __version__
from serve.__main__ import PARTS, VERBS, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/sagemaker-serve"])


def ended(*words: str) -> int:
    """The status with which argparse exits."""
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS)])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_goes_to_standard_output(words: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """For the command and for each verb, with exit status 0."""
    assert ended(*words, option) == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["usage: sagemaker-serve", *words]))
    assert err == ""


def test_the_help_lists_the_verbs_and_no_internal_part(capsys: pytest.CaptureFixture[str]) -> None:
    ended("--help")
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert set(VERBS) <= set(listed)
    assert not set(PARTS) & set(listed)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"sagemaker-serve {__version__}\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["srve"], "unknown verb: srve; did you mean serve?"),
        (["setings"], "unknown verb: setings; did you mean settings?"),
        (["xyz"], "unknown verb: xyz; see --help"),
        (["--port", "80"], "unknown option: --port; settings are environment variables, such as SERVE_MODEL_DIR"),
        (["serve", "now"], "unrecognized arguments: now"),
        (["convert", "a"], "the following arguments are required: TARGET"),
    ],
)
def test_a_mistake_is_named(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, with exit status 2."""
    assert ended(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].endswith(f"error: {error}")


def printed(*words: str) -> str:
    """By a process of its own: these verbs set up logging."""
    environ = {**os.environ, "SAGEMAKER_BIND_TO_PORT": "9123"}
    command = [sys.executable, "-m", "serve", *words]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout


def test_each_setting_is_printed_with_its_source() -> None:
    assert ["port", "9123", "SAGEMAKER_BIND_TO_PORT"] in [line.split() for line in printed("settings").splitlines()]


def test_nginx_conf_is_printed() -> None:
    assert "listen 127.0.0.1:9123 " in printed("conf")


MODULES = (
    "serve",
    "deploy",
    "bench",
    "docs.reference",
    "local_test.make_models",
    "local_test.platform",
    "local_test.rehearse",
)
SCRIPTS = ("build_and_push.sh", "local_test/predict.sh", "local_test/serve_local.sh")


@pytest.mark.parametrize("command", [*MODULES, *SCRIPTS])
def test_each_command_of_the_repository_has_help(command: str) -> None:
    """On standard output, with exit status 0."""
    words = [str(ROOT / command)] if command in SCRIPTS else [sys.executable, "-m", command]
    done = subprocess.run([*words, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ") or Path(command).name in done.stdout

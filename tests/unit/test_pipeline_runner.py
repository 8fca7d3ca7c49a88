"""Pipelines on this machine: names of images, the stop of running work, sources of definitions, a new project."""

import json
import os
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.errors import SpecError
from deploy.pipelines import command, project, sources, validation
from local_test.pipelines.function import Running
from local_test.pipelines.runner import with_host


def test_a_stop_ends_running_work_and_work_that_starts_after_it() -> None:
    ended: list[str] = []
    running = Running()
    with running.held(lambda: ended.append("over")):
        pass
    with running.held(lambda: ended.append("first")), running.held(lambda: ended.append("second")):
        running.stop()
        assert ended == ["first", "second"]
    with running.held(lambda: ended.append("late")):
        assert ended == ["first", "second", "late"]


def test_an_image_has_a_name_that_is_not_looked_up_in_ecr() -> None:
    """Each image has its own: concurrent runs with two images do not mix them up."""
    assert with_host("sagemaker-serve") == "localhost/sagemaker-serve"
    assert with_host("mine:v1") == "localhost/mine:v1"
    assert with_host("localhost/mine:v1") == "localhost/mine:v1"


DEFINITION = {"Version": "2020-12-01", "Steps": [{"Name": "F", "Type": "Fail", "Arguments": {"ErrorMessage": "x"}}]}


def module(directory: Path, text: str, name: str = "own.py") -> str:
    path = directory / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        f"pipeline = {DEFINITION!r}",
        f"def definition(): return {DEFINITION!r}",
        f"import json\ndef definition(given): return json.dumps({DEFINITION!r})",
        f"def get_pipeline(region, role=None, default_bucket=None, other=1): return {DEFINITION!r}",
        (
            "import json\nclass P:\n  name = 'own'\n"
            f"  def definition(self): return json.dumps({DEFINITION!r})\npipeline = P()"
        ),
    ],
)
def test_a_module_gives_its_definition_in_the_forms_of_the_sdk_and_of_projects(tmp_path: Path, text: str) -> None:
    source = sources.named(module(tmp_path, text))
    assert source.build(command.NOWHERE) == DEFINITION
    assert source.name == "own"


def test_a_json_file_is_a_definition_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "my_first.json").write_text(json.dumps(DEFINITION))
    source = sources.named(str(tmp_path / "my_first.json"))
    assert (source.name, source.build(command.NOWHERE)) == ("my-first", DEFINITION)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "it has neither `definition` nor `pipeline` nor `get_pipeline`"),
        ("1 / 0", "own.py: ZeroDivisionError: division by zero"),
        ("def definition(a, b): pass", "definition needs a, b; offered: given, role, region, default_bucket"),
        ("def definition(): return open('/nowhere')", "definition: FileNotFoundError"),
        ("pipeline = 3", "a definition must be a table, not int"),
    ],
)
def test_an_unusable_module_is_an_error_with_its_reason(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        sources.named(module(tmp_path, text)).build(command.NOWHERE)
    assert said in str(refused.value)


def test_an_unknown_pipeline_and_action_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (
            ["two-model", "show"],
            "unknown pipeline 'two-model'; did you mean two-models?; or give FILE.json",
        ),
        (["none.py", "show"], "none.py not found"),
        (["two-models", "shw"], "unknown action 'shw'; did you mean show?"),
        (["two-models", "show", "--local"], "--local is an option of run"),
    ):
        assert main(["pipeline", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_local_run_is_the_emulators_command_with_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """deploy imports no module of the emulator: the process is replaced."""
    ran: list[list[str]] = []

    def execute(_: str, words: list[str]) -> None:
        ran.append(words[1:])
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", execute)
    with pytest.raises(SystemExit):
        main(["pipeline", "two-models", "run", "--local", "--param", "RoundsOne=3", "--runtime", "process"])
    assert ran == [["-m", "local_test.pipelines", "two-models", "--param", "RoundsOne=3", "--runtime", "process"]]


def test_a_new_project_has_a_valid_definition_that_show_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not written over a folder that exists."""
    place = tmp_path / "my_project"
    assert main(["pipeline", "new", str(place)]) == 0
    said = capsys.readouterr().out
    assert f"next: python -m deploy pipeline {place}{os.sep}pipeline.py run --local" in said
    source = sources.named(str(place / "pipeline.py"))
    assert source.name == "my-project"
    assert (source.code, source.data) == (place / "code", place / "data")
    validation.check(source.build(command.NOWHERE))
    assert len((place / "data" / "rows.csv").read_text().splitlines()) == project.ROWS
    assert main(["pipeline", str(place / "pipeline.py"), "show"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        *("Preprocess", "Train", "Evaluate", "GoodEnough", "Register", "TooInaccurate"),
    ]
    assert main(["pipeline", "new", str(place)]) == 2
    assert "exists: give the name of a new directory" in capsys.readouterr().err

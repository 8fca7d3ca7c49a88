"""The command line of deploy, and what its modules may import."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cli import VERBS, main
from local_test.pipelines.__main__ import main as run_locally

ROOT = Path(__file__).parents[2]
THIRD_PARTY = {"boto3", "botocore", "msgspec"}  # boto3 with its core, and the base install's msgspec


def modules() -> dict[str, ast.Module]:
    """All modules of deploy, by name."""
    found = {}
    for path in (ROOT / "deploy").rglob("*.py"):
        if "template/code" in path.as_posix():
            continue  # scripts of a new pipeline, which run in containers
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """Every name imported anywhere in a module, in functions too: x of `import x`, x.y of `from x import y`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (f"{node.module}.{each.name}" for each in node.names)


def test_deploy_imports_its_packages_and_serve_alone() -> None:
    """The product never imports the test bench; a new third-party package is a decision."""
    roots = {name.partition(".")[0] for tree in modules().values() for name in imported(tree)}
    assert roots - set(sys.stdlib_module_names) == THIRD_PARTY | {"deploy", "serve"}


def test_no_module_of_deploy_imports_itself_through_others() -> None:
    """Imports in functions count too."""
    trees = modules()

    def owner(name: str) -> str | None:
        return name if name in trees else name.rpartition(".")[0] if name.rpartition(".")[0] in trees else None

    waits = {
        name: {at for each in imported(tree) if (at := owner(each)) and at != name} for name, tree in trees.items()
    }
    while waits:
        free = [name for name, needs in waits.items() if not needs & set(waits)]
        assert free, f"a cycle among {sorted(waits)}"
        for name in free:
            del waits[name]


def in_fresh_process(code: str) -> set[str]:
    """The top-level packages outside the standard library that a program has imported."""
    report = "import json, sys; print(json.dumps(sorted({each.partition('.')[0] for each in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, check=True)
    return set(json.loads(done.stdout)) - set(sys.stdlib_module_names) - {"_distutils_hack", "__main__"}


def test_the_command_line_starts_without_third_party_packages() -> None:
    """So that --help is fast, and a Ctrl-C during the import of boto3 is handled."""
    assert in_fresh_process("import deploy.cli; deploy.cli.parser()") == {"deploy"}


def test_the_lambda_function_needs_boto3_alone() -> None:
    """Lambda's Python has no other package."""
    loaded = in_fresh_process("import deploy.pipelines.lambda_function")
    assert not loaded & {"msgspec", "tqdm", "serve", "numpy"}
    assert "boto3" in loaded


def test_models_are_judged_without_any_framework() -> None:
    loaded = in_fresh_process("import deploy.models.store")
    assert not loaded & {"torch", "transformers", "xgboost", "sklearn", "flask", "numpy", "local_test"}


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_on_stdout_with_exit_code_0(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit codes."""
    with pytest.raises(SystemExit) as ended:
        main([*filter(None, [verb]), "--help"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith(f"usage: python -m deploy {verb}".rstrip())
    assert "exit codes: 0 done or unchanged" in " ".join(out.split())


def test_the_local_pipelines_have_a_help_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_locally(["--help"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith("usage: python -m local_test.pipelines ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: VERB"),
        (["upp"], "invalid choice: 'upp'"),
        (["traffic", "x", "A"], "'A' is not VARIANT=WEIGHT, for example A=9"),
        (["traffic", "x", "A=-1"], "'A=-1' is not VARIANT=WEIGHT"),
        (["up", "x.toml", "--for", "4"], "'4' is not a duration such as 90m, 4h or 2d"),
        (["pipeline", "two-models", "start", "--param", "Image"], "'Image' is not NAME=VALUE"),
    ],
)
def test_an_invalid_command_line_is_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_missing_boto3_is_named_with_the_extra_that_installs_it() -> None:
    """The package installs the command with and without its extra."""
    without = (
        "import sys; sys.modules |= {'boto3': None, 'botocore': None}; from deploy import cli; sys.exit(cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", without, "status", "x"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "boto3 is not installed: pip install 'sagemaker-serve[deploy]'\n"


def test_a_closed_pipe_is_no_traceback() -> None:
    """As with `python -m deploy ... | head`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "deploy", "pipeline", "two-models", "show"],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            stdout=closed,
            stderr=subprocess.PIPE,
        )
    assert (done.returncode, done.stderr) == (1, b"")

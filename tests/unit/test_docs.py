"""README and docs state what the code does: generated tables, keys and verbs, and the commands that no test runs."""

import ast
import contextlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from deploy.cli import VERBS
from deploy.spec import Spec
from docs import reference
from serve.catalog.kinds import HANDLERS
from serve.catalog.model_config import ModelToml
from serve.settings import Settings
from tests.pages import CODE, DOCS, OTHER, PAGES, ROOT, Block, blocks, languages

NOT_RUN = [block for block in blocks() if block.not_run]
SETTINGS = {name for each in fields(Settings) for name, _ in each.metadata.get("sources", ())}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Programs of others, whose words are not checked.
OTHERS_PROGRAMS = {"mkdir", "cp", "cat", "echo", ".", "cd", "sudo"}
VARIABLES = {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "STORM_CALLS"}
ROUTES = (
    r"/(ping|invocations|models(/[^/]+)?(/invoke)?|metrics|execution-parameters"
    r"|v1/((chat/)?completions|embeddings|rerank)|v1/models)"
)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_generated_tables_are_the_code() -> None:
    """`make docs-reference` would change nothing."""
    assert {path.name for path, text in reference.pages().items() if text != path.read_text()} == set()


def test_every_generated_table_has_a_place() -> None:
    """No table is generated for nothing, and none is empty."""
    used = {found[2] for each in PAGES for found in reference.BLOCK.finditer(each.read_text())}
    assert used == set(reference.TABLES)
    assert all(make().count("\n") > 2 for make in reference.TABLES.values())


def test_the_table_of_model_toml_has_every_key() -> None:
    """Each key of a model.toml has a row."""
    section = page("models/index.md").split("\n## model.toml\n")[1].split("\n## ")[0]
    shown = set(re.findall(r"^\| `\[?(\w+)\]?`", section, re.M))
    assert shown == set(ModelToml.__struct_fields__)


def test_the_tables_of_deploy_are_its_verbs_and_the_spec() -> None:
    """Each verb, and each key at the top of a spec."""
    rows = [line.split("|")[1] for line in page("deploy.md").splitlines() if line.startswith("| ")]
    shown = set(re.findall(r"`\[*(\w+)", "".join(rows)))
    keys = {each.metadata.get("key", each.name) for each in fields(Spec)}
    assert shown | {"pipeline"} == {*VERBS, *keys}  # pipelines have a page of their own


def test_the_log_events_are_those_of_the_code() -> None:
    """Each event of the code has a place on the page, and each on the page is one of the code."""
    written = {
        str(call.args[0].value)
        for path in (ROOT / "serve").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant)
        if re.fullmatch(r"log\.(info|warning|error|exception|critical)", ast.unparse(call.func))
    }
    tables = page("operating/log.md").split("\n## Models\n")[1].split("\n## Questions\n")[0]
    rows = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    named = {name.removesuffix(" ...") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert {each.split(": /execution")[0] + ":" * ("/execution" in each) for each in written} == named


def test_every_page_is_in_the_navigation() -> None:
    """And the navigation names no page that is not there; `make docs` checks the links inside."""
    named = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]))
    assert named == {str(each.relative_to(ROOT / "docs")) for each in DOCS}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """To a file of the repository, and to a heading in it; pages of docs/ stay inside docs/, as the web site does."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        assert path not in DOCS or file.is_relative_to(ROOT / "docs"), target
        if anchor:
            titles = re.findall(r"^#+ (.+)", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each.lower()).strip().replace(" ", "-") for each in titles}, target


def test_files_that_the_documentation_names_exist() -> None:
    """Paths below the folders of the code; a page that names a moved file misleads its reader."""
    named = {
        (page.name, path)
        for page in PAGES
        for path in re.findall(
            r"`((?:serve|deploy|local_test|bench|tests|container|docs|examples)/[\w./-]+)`", page.read_text()
        )
    }
    assert named
    assert not [
        each for each in named if not (ROOT / each[1]).exists() and not re.search("local_test/models|NAME", each[1])
    ]


def test_every_fence_is_of_a_language_that_is_tested_or_data() -> None:
    """A `bash` block would escape the tests of commands."""
    assert languages() <= {*CODE, *OTHER}
    assert not [
        str(block) for block in blocks() if block.language == "console" and not (block.not_run or block.emulator)
    ]


@pytest.mark.parametrize("block", [each for each in NOT_RUN if each.language != "python"], ids=str)
def test_a_command_that_is_not_run_could_be(block: Block) -> None:
    """Its programs, files, make targets, verbs, options and settings exist."""
    commands = list(_commands(block))
    assert commands
    for words in commands:
        _check(words)


@pytest.mark.parametrize("block", [each for each in NOT_RUN if each.language == "python"], ids=str)
def test_a_python_example_that_is_not_run_is_what_boto3_takes(block: Block) -> None:
    """Its operations exist, and so does each of their members, at any depth."""
    clients: dict[str, str] = {}
    checked = 0
    for node in ast.walk(ast.parse(block.text)):
        match node:
            case ast.Assign(targets=[made], value=ast.Call(func=call, args=[service])):
                if ast.unparse(call) == "boto3.client":
                    clients[ast.unparse(made)] = ast.literal_eval(service)
    for node in ast.walk(ast.parse(block.text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = clients.get(ast.unparse(node.func.value))
        if name is None or node.func.attr == "get_waiter":
            continue
        model = _service(name).operation_model(_operations(name)[node.func.attr])
        for keyword in node.keywords:
            assert keyword.arg is not None
            _members(model.input_shape.members[keyword.arg], keyword.value)
        checked += 1
    assert checked


def _members(shape: Any, value: ast.expr) -> None:
    if isinstance(value, ast.Dict) and shape.type_name == "structure":
        for key, each in zip(value.keys, value.values, strict=True):
            _members(shape.members[ast.literal_eval(key)], each)  # type: ignore[arg-type]
    if isinstance(value, ast.Dict) and shape.type_name == "map":
        assert {ast.literal_eval(key) for key in value.keys if key} <= SETTINGS  # the environment of a container
    if isinstance(value, ast.List):
        for each in value.elts:
            _members(shape.member, each)


def _commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block as words, without comments, pipes and redirections."""
    lines = block.text.splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("|&;"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def _check(words: list[str]) -> None:
    while match := re.fullmatch(r"([A-Z_]+)=.*", words[0]):
        assert match[1] in SETTINGS | VARIABLES, match[1]
        words = words[1:]
    program, *rest = words
    if program == "make":
        _check_make(rest)
    elif program in ("python", ".venv/bin/python"):
        if rest[0] == "-c":
            ast.parse(rest[1])
        elif rest[:2] == ["-m", "pytest"]:
            assert all((ROOT / word).exists() for word in rest[2:] if "/" in word)
        else:
            assert rest[0] == "-m"
            _check_options(rest[1], rest[2:])
    elif program == "pip":
        assert rest[0] == "install"
        asked = re.findall(r"\.(?:\[([\w,]+)\])?", rest[1])
        assert set(",".join(filter(None, asked)).split(",")) - {""} <= set(PROJECT["optional-dependencies"])
    elif program in PROJECT["scripts"]:
        _check_options(PROJECT["scripts"][program].split(":")[0].removesuffix(".__main__"), rest)
    elif program == "docker":
        _check_docker(rest)
    elif program.endswith(".sh"):
        assert os.access(ROOT / program, os.X_OK), program
    elif program == "curl":
        addresses = [word for word in rest if word.startswith(("localhost:8080", "http://x"))]
        assert [re.fullmatch(rf"(localhost:8080{ROUTES}|http://x/)", each) for each in addresses] != []
    elif program == "aws":
        service, operation, *_ = rest
        assert (service, operation) == ("s3", "mb") or operation.replace("-", "_") in _operations(service)
    elif program == "export":
        assert {word.split("=")[0] for word in rest} <= SETTINGS | VARIABLES
    else:
        assert program in OTHERS_PROGRAMS, f"no check for {program}"


def _check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, assigned, value = word.partition("=")
        if not assigned:
            assert re.search(rf"^{re.escape(word)}:", makefile, re.M), word
        else:
            assert re.search(rf"^{name} \?=|\$\({name}\)", makefile, re.M), name
        if name == "PLATFORM":
            _check_options("local_test.platform", shlex.split(value))


def _check_docker(words: list[str]) -> None:
    if words[0] == "build":
        built = (ROOT / "Dockerfile").read_text()
        given = [words[at + 1].split("=")[0] for at, word in enumerate(words) if word == "--build-arg"]
        assert all(re.search(rf"^ARG {name}\b", built, re.M) for name in given)
    elif words[0] == "run":
        _check_options("serve", words[words.index("sagemaker-serve") + 1 :])
    else:
        assert words[0] in ("tag",)


def _check_options(module: str, words: list[str]) -> None:
    """The module's own --help, below its verb, knows each option."""
    if not words:
        assert importlib.util.find_spec(module), module
        return
    verb = [word for word in words[:1] if module in ("deploy", "serve") and not word.startswith("-")]
    shown = _help(module, *verb)
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"(?<![\w-]){word.split('=')[0]}(?![\w-])", shown), f"{module} has no {word}"


@cache
def _help(module: str, *verb: str) -> str:
    out, before = io.StringIO(), sys.argv
    sys.argv = [module, *verb, "--help"]
    try:
        with contextlib.redirect_stdout(out), warnings.catch_warnings(action="ignore"):
            runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    assert code in (0, None)
    return out.getvalue()


@cache
def _service(name: str) -> Any:
    return botocore.session.get_session().get_service_model(name)


@cache
def _operations(name: str) -> dict[str, str]:
    return {botocore.xform_name(each): each for each in _service(name).operation_names}


@pytest.mark.parametrize("handler", [name for name, place in HANDLERS.items() if ".encoders." in place])
def test_the_parameters_of_a_task_are_on_its_page(handler: str) -> None:
    """Each row names parameters of the task, and each parameter has a row."""
    module, _, cls = HANDLERS[handler].partition(":")
    parameters = getattr(importlib.import_module(module), cls).parameters
    table = page(f"models/{handler.replace('_', '-')}.md").split("| parameter |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    common = {"batch_size", "num_workers"}  # of every task, without effect
    assert set(parameters.__struct_fields__) - common == named

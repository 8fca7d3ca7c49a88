"""The commands of examples/*/README.md, run as they are written, give the output that stands below them.

A block in `sh` is run; a block in `json` or `text` is the output of the one before it; other blocks are for the reader.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.live import tiny
from tests.live.conftest import Start
from tests.live.stack import ROOT, Server
from tests.patience import PATIENCE

pytestmark = pytest.mark.timeout(300)  # a model is made first, in a process that imports its framework
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SERVE = re.compile(r"^SERVE_MODEL_DIR=(\S+) (?:SERVE_PRELOAD='\*' )?python -m serve$", re.M)


def _blocks(example: str) -> list[tuple[str, str]]:
    """Language and text of each block of commands or output of an example's README."""
    found = BLOCK.findall((ROOT / "examples" / example / "README.md").read_text())
    return [block for block in found if block[0]]


def _copied(example: str, work: Path) -> None:
    """The example, and its neighbours, in a directory of the test's own."""
    made = shutil.ignore_patterns("__pycache__", "models") if example not in ("own-inference", "sessions") else None
    shutil.copytree(ROOT / "examples" / example, work / "examples" / example, ignore=made)
    if example != "own-inference":
        _copied("own-inference", work)


def _run(script: str, work: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=work, env=environ, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def _answers(blocks: Sequence[tuple[str, str]], server: Server, work: Path) -> list[str]:
    """What each block of commands prints; where a block of output follows, the two must be alike."""
    printed = []
    for (language, script), (after, expected) in zip(blocks, [*blocks[1:], ("sh", "")], strict=True):
        if language == "sh":
            printed.append(_run(script.replace("localhost:8080", f"localhost:{server.port}"), work))
            if after != "sh":
                assert _alike(_parsed(expected), _parsed(printed[-1])), f"{script}\n{printed[-1]}"
    return printed


def _parsed(text: str) -> Any:
    return json.loads(text) if text.lstrip()[:1] in ("{", "[") else [float(line) for line in text.split()]


def _alike(expected: Any, actual: Any) -> bool:
    """Equal, but for the last digits of numbers and for text that is cut with `...`."""
    if isinstance(expected, dict):
        same = isinstance(actual, dict) and expected.keys() == actual.keys()
        return same and all(_alike(value, actual[key]) for key, value in expected.items())
    if isinstance(expected, list):
        return len(expected) == len(actual) and all(map(_alike, expected, actual))
    if isinstance(expected, float) and isinstance(actual, float):
        return actual == pytest.approx(expected, rel=0.01, abs=0.01)
    if isinstance(expected, str) and expected.endswith("..."):
        return str(actual).startswith(expected.removesuffix("..."))
    return bool(expected == actual)


@pytest.mark.parametrize("example", ["xgboost", "huggingface", "own-inference", "sessions", "several-on-one-endpoint"])
def test_the_commands_of_an_example_print_what_its_readme_shows(example: str, start: Start, tmp_path: Path) -> None:
    """From making the model to the last request."""
    _copied(example, tmp_path)
    (_, beginning), *requests = _blocks(example)
    serve = SERVE.search(beginning)
    assert serve
    _run(SERVE.sub("", beginning), tmp_path)

    assert _answers(requests, start(tmp_path / serve[1]), tmp_path)


def test_the_chat_example_talks_to_a_chat_model(start: Start, tmp_path: Path) -> None:
    """Its requests, sent to a small model of random weights in place of SmolLM2."""
    _copied("llm-chat", tmp_path)
    tiny.chat(tmp_path / "models" / "smollm2")
    server = start(tmp_path / "models", SERVE_PRELOAD="*")
    _making, whole, streamed, conversation = [script for language, script in _blocks("llm-chat") if language == "sh"]

    whole, streamed = _answers([("sh", whole), ("sh", streamed)], server, tmp_path)
    base = f"export BASE_URL=http://localhost:{server.port}/v1\n"
    said = _run(base + conversation, tmp_path)

    assert json.loads(whole)["choices"][0]["message"]["role"] == "assistant"
    assert streamed.rstrip().endswith("data: [DONE]")
    assert [line.split()[0] for line in said.splitlines()] == ["you", "model", "you", "model"]

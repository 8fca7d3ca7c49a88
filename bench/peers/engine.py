"""The side of the bench: starts an engine of .venv-peers and sends it static batches."""

import json
import subprocess
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv-peers"
PYTHON = VENV / "bin" / "python"


class Missing(Exception):
    """The peer cannot run here; the text says why. The bench names it as not run."""


class Engine:
    """An engine with one model; `name` is one of ENGINES in worker.py."""

    def __init__(self, name: str, model: Path, threads: int) -> None:
        """Raises Missing."""
        if not PYTHON.exists():
            raise Missing(f"{name}: not installed (make bench PEERS=1)")
        kind, _, precision = name.partition(" ")
        converted = VENV / "models" / f"{model.name}-{kind}-{precision}"
        command = [*map(str, (PYTHON, HERE / "worker.py", name, model, converted, threads))]
        self._log = (VENV / "log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._name = f"{name} with {model.name}"
        if not self._answer().get("ready"):
            raise Missing(self._failure())

    def seconds(
        self, texts: list[str], new_tokens: list[int], beams: int = 1, settings: dict[str, Any] | None = None
    ) -> float:
        """Answers a static batch, each text with as many new tokens as the longest. Raises Missing."""
        asked = {"texts": texts, "new_tokens": max(new_tokens), "beams": beams, "settings": settings or {}}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not answer:
            raise Missing(self._failure())
        least = len(texts) * (max(new_tokens) - 1)  # an end token may count as one or not
        assert answer.get("tokens", 0) >= least, f"{answer} in place of {least} tokens"
        return float(answer["seconds"])

    def _failure(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["no message"]
        return f"{self._name}: {lines[-1][:120]}"

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

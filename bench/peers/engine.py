"""The side of the bench: starts an engine of .venv-peers and sends it static batches."""

import json
import select
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv-peers"
PYTHON = VENV / "bin" / "python"
LONGEST = 300  # seconds of an answer; a conversion of a model is one


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
        self._name = f"{name} with {model.name}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - close() closes it
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        try:
            self._answer()
        except Missing:
            self.close()
            raise

    def seconds(
        self, texts: list[str], new_tokens: list[int], beams: int = 1, settings: dict[str, Any] | None = None
    ) -> float:
        """Answers a static batch, each text with as many new tokens as the longest. Raises Missing."""
        return float(self._ask(texts, max(new_tokens), beams, settings)["seconds"])

    def tokens(self, text: str, new_tokens: int, beams: int, settings: dict[str, Any] | None = None) -> list[int]:
        """The new tokens of one text. Raises Missing."""
        return [int(token) for token in self._ask([text], new_tokens, beams, settings)["first"]]

    def _ask(self, texts: list[str], new_tokens: int, beams: int, settings: dict[str, Any] | None) -> dict[str, Any]:
        asked = {"texts": texts, "new_tokens": new_tokens, "beams": beams, "settings": settings or {}}
        assert self._process.stdin
        with suppress(BrokenPipeError):  # its process has ended: the answer says so
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        least = new_tokens - 1  # an end token may count as one or not
        if answer["least"] < least or answer["texts"] != len(texts):
            raise Missing(
                f"{self._name}: {answer['least']} tokens for one of {answer['texts']} texts, not {new_tokens}"
            )
        return answer

    def _answer(self) -> dict[str, Any]:
        """A line of the process."""
        stdout = self._process.stdout
        assert stdout
        if not select.select([stdout], [], [], LONGEST)[0]:
            self._process.kill()
            raise Missing(f"{self._name}: no answer within {LONGEST} s")
        line = stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            lines = self._log.read().strip().splitlines() or ["no message"]
            raise Missing(f"{self._name}: {lines[-1][:120]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

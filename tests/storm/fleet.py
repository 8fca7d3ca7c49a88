"""Models of four kinds, each small, each different from the others of its kind; for each call the answer is known.

The expected answers come from the libraries themselves (XGBoost, transformers) or from arithmetic, not from the server.
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.live import tiny
from tests.live.stack import toy

JSON, CSV = "application/json", "text/csv"
ROWS = 200  # known rows of a tabular model
PROMPTS = 12  # known prompts of a text model
OWN_MB = 20


@dataclass(frozen=True, slots=True)
class Question:
    """A request to a model, and whether an answer's body is the right one."""

    model: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    right: Callable[[bytes], bool]


@dataclass(slots=True)
class Fleet:
    """The models of a directory. `ask(name, random)` makes a question of which the answer is known."""

    directory: Path
    names: list[str] = field(default_factory=list)
    _known: dict[str, list[tuple[str, object]]] = field(default_factory=dict)  # name -> (what is asked, the answer)

    def ask(self, name: str, random_: random.Random, seconds: float = 0) -> Question:
        """A random question; `seconds`: how long a model of own code works on it."""
        kind = name.partition("-")[0]
        if kind == "own":
            values, nonce = [random_.randrange(1000) for _ in range(5)], random_.getrandbits(60)
            asked = {"values": values, "nonce": nonce, **({"seconds": seconds} if seconds else {})}
            wanted = {"model": name, "sum": sum(values), "nonce": nonce}
            return self._to(name, asked, JSON, lambda body: _has(body, wanted), random_)
        what, answer = random_.choice(self._known[name])
        if kind == "text":
            asked = {"inputs": what, "parameters": {"max_new_tokens": 4}}
            return self._to(name, asked, JSON, lambda body: _is_text(body, str(answer)), random_)
        return self._to(name, what, CSV, lambda body: _near(body, answer), random_)

    def _to(
        self, name: str, asked: object, content_type: str, right: Callable[[bytes], bool], random_: random.Random
    ) -> Question:
        """By one of the ways to name a model: a header, the path, or (JSON only) the body."""
        headers = {"Content-Type": content_type, "Accept": content_type}
        way = random_.randrange(3 if content_type == JSON else 2)
        path = f"/models/{name}/invoke" if way == 1 else "/invocations"
        if way == 0:
            headers["TargetModel"] = name
        if isinstance(asked, dict):
            body = json.dumps({**asked, **({"model_type": name} if way == 2 else {})})
        else:
            body = str(asked)
        return Question(name, path, headers, body.encode(), right)


def _has(body: bytes, wanted: Mapping[str, object]) -> bool:
    answer = json.loads(body)
    return {key: answer[key] for key in wanted} == wanted


def _is_text(body: bytes, answer: str) -> bool:
    """Whether a text is the expected one, or the part of it that was there at the deadline, and is marked so."""
    (found,) = json.loads(body)
    text = found["generated_text"]
    return text == answer or (found.get("finish_reason") == "deadline" and answer.startswith(text))


def _near(body: bytes, answer: object) -> bool:
    """Whether the one number of a CSV answer is the expected one, but for the rounding of float32."""
    return isinstance(answer, float) and math.isclose(float(body), answer, rel_tol=1e-5, abs_tol=1e-5)


def make(directory: Path, counts: Mapping[str, int]) -> Fleet:
    """A directory with so many models of each kind: own, trees, linear, text."""
    directory.mkdir(parents=True, exist_ok=True)
    fleet = Fleet(directory)
    makers = {"own": _own, "trees": _trees, "linear": _linear, "text": _text}
    for kind, count in counts.items():
        for number in range(count):
            name = f"{kind}-{number}"
            fleet._known[name] = makers[kind](directory / name, number)
    # Neighbours in this list are of different kinds, so that a part of it has all kinds.
    fleet.names = sorted(fleet._known, key=lambda name: (int(name.split("-")[1]), name))
    for path in [directory, *directory.rglob("*")]:  # a container's user is not the user of this process
        path.chmod(0o755 if path.is_dir() else 0o644)
    return fleet


def _own(path: Path, number: int) -> list[tuple[str, object]]:
    toy(path.parent, "known", path.name, {"name.txt": path.name, "mb.txt": str(OWN_MB)})
    return []


def _trees(path: Path, number: int) -> list[tuple[str, object]]:
    import numpy as np
    import xgboost

    generator = np.random.default_rng(number)
    rows = generator.random((ROWS, 4), np.float32)
    data = xgboost.DMatrix(rows, rows.sum(1) + 10 * number, nthread=1)
    booster = xgboost.train({"max_depth": 3, "nthread": 1, "verbosity": 0}, data, 5)
    path.mkdir()
    booster.save_model(path / "model.ubj")
    lines = [",".join(f"{cell:.6f}" for cell in row) for row in rows]
    read = np.array([[float(cell) for cell in line.split(",")] for line in lines], np.float32)
    scores = booster.predict(xgboost.DMatrix(read, nthread=1))
    return [(line, float(score)) for line, score in zip(lines, scores, strict=True)]


def _linear(path: Path, number: int) -> list[tuple[str, object]]:
    import numpy as np
    import skops.io
    from sklearn.linear_model import LinearRegression

    slope = number + 2
    rows = np.array([[0.0], [1.0], [2.0]])
    path.mkdir()
    skops.io.dump(LinearRegression().fit(rows, slope * rows[:, 0] + 1), path / "model.skops")
    return [(f"{value}", float(slope * value + 1)) for value in range(ROWS)]


def _text(path: Path, number: int) -> list[tuple[str, object]]:
    """Greedy texts, as transformers' generate makes them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny.gpt2(path, seed=number)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    random_ = random.Random(number)
    known: list[tuple[str, object]] = []
    for _ in range(PROMPTS):
        prompt = " ".join(f"w{random_.randrange(28)}" for _ in range(random_.randrange(1, 6)))
        tokens = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            made = model.generate(**tokens, max_new_tokens=4, do_sample=False, pad_token_id=1)
        continuation = tokenizer.decode(made[0], skip_special_tokens=True)
        known.append((prompt, continuation))
    return known


def working_set(names: Sequence[str], call: int, *, size: int, every: int) -> list[str]:
    """The models that are asked at the moment of this call: `size` of them; one is replaced every so many calls.

    With a budget for a few more than `size` models, each replacement loads one model and evicts another.
    """
    first = call // every
    return [names[(first + offset) % len(names)] for offset in range(min(size, len(names)))]

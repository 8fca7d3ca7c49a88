"""What a language model is compared with: `generate` in a process of its own, and engines of other projects."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from bench.child import Child
from bench.core import CORES, Bench
from bench.in_process import Generate
from bench.peers.engine import Engine, Missing
from bench.stacks import SAMPLES

T = TypeVar("T")

CHECKED = 16  # tokens


class Limits:
    """`generate` with a sample model, and each peer that is installed. A peer that fails is run no more."""

    def __init__(self, bench: Bench, sample: str, peers: Sequence[str], settings: dict[str, Any]) -> None:
        """`settings` are those of the peers' generation that `generate` reads from the model's own files."""
        directory = SAMPLES / sample
        self.missing: dict[str, str] = {}  # by peer: why it was not run
        self._settings, self._bench, self._sample = settings, bench, sample
        self._generate = bench.start(Child(Generate, directory, threads=CORES))
        self._engines: dict[str, Engine] = {}
        for name in peers if bench.peers else ():
            bench.progress(f"the peer {name}")
            if engine := self._unless_missing(name, partial(Engine, name, directory, CORES)):
                self._engines[name] = bench.start(engine)

    @property
    def names(self) -> list[str]:
        """Those that run."""
        return ["generate", *self._engines]

    def seconds(self, who: str, texts: list[str], new_tokens: list[int], beams: int = 1) -> float | None:
        """Answers a static batch; None if the peer cannot."""
        if who == "generate":
            return float(self._generate.ask("seconds", texts, new_tokens, beams))
        engine = self._engines[who]
        return self._unless_missing(who, lambda: engine.seconds(texts, new_tokens, beams, self._settings))

    def weights(self) -> int:
        """Bytes of the weights that one decoding step multiplies, in float32."""
        return int(self._generate.ask("bytes_of_a_step"))

    def check(self, text: str, beams: int, answer: str) -> None:
        """Compares an answer of this server with CHECKED + 1 tokens, and the tokens of the float32 peers, with those
        of `generate`. The last token is not compared: a model may force its end there."""
        wanted = self._generate.ask("tokens", text, CHECKED + 1, beams)
        answers: dict[str, str] = {"ours": answer, "generate": self._generate.ask("words", wanted)}
        same = "equal" if answers["ours"].strip() == answers["generate"].strip() else "DIFFERENT"
        found = [f"the text of this server is {same}"]
        for name in [name for name in self._engines if name.endswith("float32")]:
            ask = partial(self._engines[name].tokens, text, CHECKED + 1, beams, self._settings)
            if made := self._unless_missing(name, ask):
                found.append(f"{same_at_first(made, wanted[:CHECKED])} tokens of {name}")
        how = f" with {beams} beams" if beams > 1 else ""
        self._bench.checked.append(f"{self._sample}{how}, of {CHECKED} tokens of `generate`: {', '.join(found)}")
        self._bench.progress(self._bench.checked[-1])
        self._bench.raw.setdefault("checked", {})[f"{self._sample}{how}"] = answers

    def _unless_missing(self, name: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except Missing as missing:
            self._bench.progress(f"not run: {missing}")
            self.missing[name] = str(missing)
            self._engines.pop(name, None)
            return None


def same_at_first(made: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens are equal before the first that differs."""
    pairs = zip(made, wanted, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(made), len(wanted)))

"""The limits: the same work in one process, without HTTP. Each class is made in a child process."""

import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.memory import bytes_of_a_step


def median_ms(work: Callable[[], Any], *, rounds: float = 0, seconds: float = 0) -> float:
    """Milliseconds of a call: the median of so many rounds or seconds, after one round that does not count."""
    work()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < rounds or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times) * 1e3


def _threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


class XGBoostAlone:
    def __init__(self, directory: Path) -> None:
        import xgboost

        from serve.catalog.scan import describe
        from serve.handlers.xgboost.handler import XGBoost
        from serve.settings import Settings

        config = describe("m", directory, Settings(threads=_threads()))
        self._make: Callable[[], Any] = lambda: XGBoost(config)
        self._handler = self._make()
        self._booster = xgboost.Booster({"nthread": _threads()}, model_file=str(directory / "model.ubj"))

    def handler_ms(self, body: bytes, batch: int = 1, **duration: float) -> float:
        """The handler alone decodes and predicts a batch of equal CSV requests: HTTP adds the rest of the time."""
        from serve.handlers.base import Request

        sent = Request(body=body, content_type="text/csv")
        handler = self._handler
        return median_ms(lambda: handler.predict([handler.decode(sent) for _ in range(batch)]), **duration)

    def numpy_ms(self, body: bytes, rounds: int) -> float:
        """The code that a program without a server would have: numpy parses, the library predicts, Python formats."""
        import numpy as np

        def once() -> bytes:
            matrix = np.loadtxt(io.BytesIO(body), np.float32, delimiter=",")
            return "\n".join(map(str, self._booster.inplace_predict(matrix).tolist())).encode()

        return median_ms(once, rounds=rounds)

    def load_ms(self) -> float:
        """Builds the handler in this warm process."""
        return median_ms(self._make, rounds=5)


class Generate:
    """transformers' `generate` in float32 on static batches: of a causal or an encoder-decoder model."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        torch.set_num_threads(_threads())
        self._seq2seq: bool = AutoConfig.from_pretrained(directory).is_encoder_decoder
        kind = AutoModelForSeq2SeqLM if self._seq2seq else AutoModelForCausalLM
        self._make: Callable[[], Any] = lambda: kind.from_pretrained(directory, dtype=torch.float32)
        self._model = self._make().eval()
        self._tokenizer = AutoTokenizer.from_pretrained(directory)

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text."""
        return [len(tokens) for tokens in self._tokenizer(texts)["input_ids"]]

    def seconds(self, texts: list[str], new_tokens: list[int], beams: int = 1) -> float:
        """Answers a batch of texts of equal length, each with as many new tokens as the longest."""
        return self._answer(texts, max(new_tokens), beams)[0]

    def tokens(self, text: str, new_tokens: int, beams: int) -> list[int]:
        """The new tokens of one text."""
        return self._answer([text], new_tokens, beams)[1]

    def words(self, tokens: list[int]) -> str:
        """The text of tokens as a server answers it."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def bytes_of_a_step(self) -> int:
        """Bytes of the weights that one decoding step multiplies, in float32."""
        return bytes_of_a_step(self._model)

    def _answer(self, texts: list[str], most: int, beams: int) -> tuple[float, list[int]]:
        """Seconds, and the new tokens of the first text."""
        import torch

        tokens = torch.tensor(self._tokenizer(texts)["input_ids"])
        named = {"min_new_tokens": most, "max_new_tokens": most, "do_sample": False, "num_beams": beams}
        began = time.perf_counter()
        with torch.inference_mode():
            made = self._model.generate(tokens, attention_mask=torch.ones_like(tokens), **named)
        took = time.perf_counter() - began
        prompt = 1 if self._seq2seq else tokens.shape[1]
        assert made.shape == (len(texts), prompt + most), (made.shape, prompt, most)
        return took, made[0, prompt:].tolist()

    def load_ms(self) -> float:
        """`from_pretrained` in this warm process."""
        return median_ms(self._make, rounds=5)


class Encoder:
    """The tokenizer and the model on a padded batch of texts, and nothing else."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(_threads())
        self._model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(directory)

    def texts_per_second(self, texts: list[str], batch: int, seconds: float) -> float:
        """Texts/s of batches that follow each other, each with the next texts."""
        done, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            at = done % (len(texts) - batch + 1)
            self.vectors(texts[at : at + batch])
            done += batch
        return done / took

    def vectors(self, texts: list[str]) -> list[list[float]]:
        """The mean of each text's vectors; padding counts, as the texts have nearly one length."""
        import torch

        given = self._tokenizer(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            made: list[list[float]] = self._model(**given).last_hidden_state.mean(1).tolist()
        return made


class FlaskAlone:
    """A web worker's application, called as gunicorn calls it."""

    def __init__(self, models: Path) -> None:
        from serve import settings
        from serve.catalog.scan import publish
        from serve.slots import Slots
        from serve.web import app

        with tempfile.TemporaryDirectory() as run_dir:
            chosen = settings.read({"SERVE_MODEL_DIR": str(models), "SERVE_RUN_DIR": run_dir})
            Slots(chosen.slots, create=True)
            publish(chosen)
            self._app = app.create(chosen)
            app.take_slot(self._app, 0)

    def invocation_ms(self, body: str, seconds: float) -> float:
        """Routing of a request by its body, and the redirect to the runner."""
        from werkzeug.test import EnvironBuilder

        raw = body.encode()
        base = EnvironBuilder("/invocations", method="POST", data=raw, content_type="application/json").get_environ()
        heads: list[dict[str, str]] = []

        def start(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
            heads.append(dict(headers))

        took = median_ms(
            lambda: list(self._app.wsgi_app({**base, "wsgi.input": io.BytesIO(raw)}, start)), seconds=seconds
        )
        assert heads[-1]["X-Accel-Redirect"]
        return took

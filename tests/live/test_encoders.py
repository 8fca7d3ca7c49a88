"""Hugging Face's encoders behind the whole stack: requests of several callers in one pass, and a model's own code."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Later, Start
from tests.live.stack import Server, wait_until
from tests.unit import tiny_encoders

OWN_CODE = """
from transformers import BertConfig, BertForSequenceClassification

class Config(BertConfig):
    model_type = "counted"

class Network(BertForSequenceClassification):
    config_class = Config
"""


def _with_own_code(directory: Path, toml: str) -> None:
    tiny_encoders.classifier(directory)
    config = json.loads((directory / "config.json").read_text())
    mapped = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Network"}
    config |= {"model_type": "counted", "auto_map": mapped}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text(OWN_CODE)
    (directory / "model.toml").write_text(toml)


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    tiny_encoders.classifier(shared_models / "judge")
    tiny_encoders.sentences(shared_models / "sentences")
    _with_own_code(shared_models / "trusted", "options = {trust_remote_code = true}")
    _with_own_code(shared_models / "unasked", "")
    return start_shared(shared_models, HF_TRUST_REMOTE_CODE="true")


def test_what_several_callers_send_goes_through_the_model_together(server: Server, later: Later) -> None:
    """Eight wait for a model that is stopped: one batch answers them, each as if it had been alone."""
    texts = ["ba be " * (number + 1) for number in range(8)]
    alone = [server.invoke("judge", {"inputs": text}).json for text in texts]
    before = server.loaded("judge")
    (runner,) = server.runners()

    os.kill(runner, signal.SIGSTOP)
    try:
        calls = [later(server.invoke, "judge", {"inputs": text, "parameters": {"top_k": 1}}) for text in texts]
        wait_until(lambda: server.queued("judge") >= len(texts))
    finally:
        os.kill(runner, signal.SIGCONT)
    answers = [call.result().json for call in calls]

    assert answers == [[{"label": each["label"], "score": pytest.approx(each["score"], abs=1e-5)}] for (each,) in alone]
    after = server.loaded("judge")
    assert after["requests"] - before["requests"] == len(texts)
    assert _batches(server, "judge") <= len(texts) + 2  # one each before; together one, or two where nginx was slow


def _batches(server: Server, model: str) -> int:
    lines = server.get("/metrics").body.decode().splitlines()
    (line,) = [line for line in lines if line.startswith("serve_model_batches") and f'"{model}"' in line]
    return int(float(line.rpartition(" ")[2]))


def test_a_sentence_is_a_vector_of_length_one(server: Server) -> None:
    """From a directory in sentence-transformers' layout, by any lane."""
    for answer in (
        server.invoke("sentences", {"inputs": "ba be"}),
        server.invoke(None, {"model_type": "sentences", "inputs": "ba be"}),
        server.invoke(None, {"model_type": "sentence-embeddings", "inputs": "ba be"}),
    ):
        assert answer.status == 200
        assert sum(each * each for each in answer.json) == pytest.approx(1, abs=1e-5)


def test_a_task_of_several_models_names_none(server: Server) -> None:
    """404 with the candidates, on the lane on which the body names the model."""
    answer = server.invoke(None, {"model_type": "sentiment-analysis", "inputs": "ba be"})

    assert answer.status == 404
    assert answer.json["hint"].startswith("several models have the task 'sentiment-analysis': judge, trusted, unasked")


def test_a_models_own_code_runs_when_its_owner_and_the_operator_say_so(server: Server) -> None:
    """And not when only the operator does."""
    answer = server.invoke("trusted", {"inputs": "ba be"})
    assert (answer.status, answer.json) == (200, server.invoke("judge", {"inputs": "ba be"}).json)

    refused: Any = server.invoke("unasked", {"inputs": "ba be"})
    assert refused.status == 424
    assert "auto_map" in refused.json["message"]
    assert "trust_remote_code = true" in refused.json["hint"]

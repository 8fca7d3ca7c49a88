"""/v1/embeddings and /v1/rerank: the vectors and the scores are those of plain transformers."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers

from serve.errors import BadRequest, UnsupportedMediaType
from serve.handlers.base import Reply, Request
from serve.handlers.encoders.feature_extraction import FeatureExtraction
from serve.handlers.encoders.task import Task
from serve.handlers.encoders.text_classification import TextClassification
from serve.http.addresses import EMBEDDINGS, RERANK
from tests.unit import tiny_encoders as tiny
from tests.unit.configs import config_of
from tests.unit.test_encoders import LONG, ONE, TWO, predicted

SIZE = 16  # of a vector


def request(path: str, body: Any, **settings: Any) -> Request:
    return Request(body=msgspec.json.encode(body), path=path, **{"content_type": "application/json", **settings})


def answer(handler: Task, path: str, body: Any) -> Any:
    (made,) = predicted(handler, handler.decode(request(path, body)))
    assert isinstance(made, Reply), made
    return json.loads(made.body)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FeatureExtraction]:
    directory = tiny.sentences(tmp_path_factory.mktemp("vectors"))
    return directory, FeatureExtraction(config_of(FeatureExtraction, name="vectors", directory=directory))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextClassification]:
    directory = cross_encoder(tmp_path_factory.mktemp("ranks"))
    return directory, TextClassification(config_of(TextClassification, name="ranks", directory=directory))


def cross_encoder(directory: Path, **config: Any) -> Path:
    return tiny.classifier(directory, id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0}, **config)


def vectors(directory: Path, *given: str | list[int]) -> Any:
    """The normalized means of the tokens' vectors, of each text or list of tokens alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    network = transformers.AutoModel.from_pretrained(directory, add_pooling_layer=False).eval()
    made = []
    for each in given:
        encoded = tokenizer(each, return_tensors="pt") if isinstance(each, str) else {"input_ids": torch.tensor([each])}
        with torch.no_grad():
            vector = network(**encoded).last_hidden_state[0].mean(0)
        made.append((vector / vector.norm()).numpy())
    return made


@pytest.mark.peer("openai")
@pytest.mark.parametrize(
    ("given", "alone"),
    [
        (ONE, [ONE]),
        ([ONE], [ONE]),
        ([ONE, TWO, "ba"], [ONE, TWO, "ba"]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6, 7], [8]], [[5, 6, 7], [8]]),
    ],
    ids=["text", "list of one", "list", "tokens", "lists of tokens"],
)
def test_each_input_has_its_embedding(embedder: tuple[Path, FeatureExtraction], given: Any, alone: list[Any]) -> None:
    """Texts and tokens of the model's own tokenizer, in order, with the number of tokens that were read."""
    directory, handler = embedder
    made = answer(handler, EMBEDDINGS, {"model": "vectors", "input": given, "user": "somebody"})

    assert [each["index"] for each in made["data"]] == list(range(len(alone)))
    for each, wanted in zip(made["data"], vectors(directory, *alone), strict=True):
        np.testing.assert_allclose(each["embedding"], wanted, atol=1e-6)
    count = sum(len(each) if isinstance(each, list) else len(handler.tokenizer(each).input_ids) for each in alone)
    assert made["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert (made["object"], made["model"], made["data"][0]["object"]) == ("list", "vectors", "embedding")


@pytest.mark.peer("openai")
def test_base64_holds_little_endian_floats(embedder: tuple[Path, FeatureExtraction]) -> None:
    """The same numbers as in the other format, in float32."""
    directory, handler = embedder
    made = answer(handler, EMBEDDINGS, {"input": [ONE, TWO], "encoding_format": "base64"})
    for each, wanted in zip(made["data"], vectors(directory, ONE, TWO), strict=True):
        np.testing.assert_allclose(np.frombuffer(base64.b64decode(each["embedding"]), "<f4"), wanted, atol=1e-6)
    assert made["model"] == "vectors"


@pytest.mark.peer("openai")
@pytest.mark.parametrize("dimensions", [1, 5, SIZE])
def test_dimensions_shorten_a_vector(embedder: tuple[Path, FeatureExtraction], dimensions: int) -> None:
    """To its first numbers, of length 1 again."""
    directory, handler = embedder
    made = answer(handler, EMBEDDINGS, {"input": ONE, "dimensions": dimensions})
    (wanted,) = vectors(directory, ONE)
    np.testing.assert_allclose(
        made["data"][0]["embedding"], wanted[:dimensions] / np.linalg.norm(wanted[:dimensions]), atol=1e-6
    )


def test_a_vector_that_is_not_normalized_is_only_cut(tmp_path: Path) -> None:
    """As sentence-transformers does with truncate_dim."""
    directory = tiny.sentences(tmp_path, normalize=False)
    handler = FeatureExtraction(config_of(FeatureExtraction, directory=directory))
    whole, cut = (
        answer(handler, EMBEDDINGS, {"input": ONE, "dimensions": size})["data"][0]["embedding"] for size in (SIZE, 3)
    )
    assert cut == whole[:3]


def test_a_text_is_cut_where_that_is_asked_for(embedder: tuple[Path, FeatureExtraction]) -> None:
    """By vLLM's truncate_prompt_tokens: to that many tokens, or with -1 to the model's limit. Else it is a 400."""
    directory, handler = embedder
    with pytest.raises(BadRequest, match="the model reads 16 tokens"):
        handler.decode(request(EMBEDDINGS, {"input": LONG}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for most, tokens in ((-1, 16), (5, 5)):
        made = answer(handler, EMBEDDINGS, {"input": LONG, "truncate_prompt_tokens": most})
        ids = tokenizer(LONG, truncation=True, max_length=tokens).input_ids
        np.testing.assert_allclose(made["data"][0]["embedding"], vectors(directory, ids)[0], atol=1e-6)
        assert made["usage"]["total_tokens"] == tokens


@pytest.mark.peer("openai")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "missing required field `input`"),
        ({"input": []}, "length >= 1"),
        ({"input": None}, "missing required field `input`"),
        ({"input": [ONE, 5]}, "mixes kinds"),
        ({"input": [[]]}, "empty list of tokens"),
        ({"input": [5, 99999]}, "unknown tokens"),
        ({"input": [-1]}, "unknown tokens"),
        ({"input": ["ba"] * 5000}, "limit is 4096"),
        ({"input": [5] * 100}, "100 tokens"),
        ({"input": ONE, "dimensions": SIZE + 1}, f"vectors have {SIZE}"),
        ({"input": ONE, "dimensions": 0}, ">= 1"),
        ({"input": ONE, "encoding_format": "int8"}, "encoding_format"),
        ({"input": ONE, "dimension": 3}, "unknown field `dimension`"),
        ([ONE], "not a JSON object"),
    ],
    ids=str,
)
def test_an_invalid_request_for_embeddings_names_the_field(
    embedder: tuple[Path, FeatureExtraction], body: Any, message: str
) -> None:
    """A 400, before any work."""
    with pytest.raises(BadRequest, match=message):
        embedder[1].decode(request(EMBEDDINGS, body))


def test_vectors_of_tokens_are_no_embeddings(tmp_path: Path) -> None:
    """The error names the task that has one vector for each text."""
    handler = FeatureExtraction(config_of(FeatureExtraction, directory=tiny.embedder(tmp_path)))
    for path in (EMBEDDINGS, RERANK):
        with pytest.raises(BadRequest, match="a vector for each token") as refused:
            handler.decode(request(path, {"input": ONE}))
        assert "sentence-embeddings" in refused.value.hint


def test_only_the_trained_dimensions_of_a_matryoshka_model_are_made(tmp_path: Path) -> None:
    """Its config.json lists them, as for vLLM."""
    directory = tiny.sentences(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"matryoshka_dimensions": [4, 8]}))
    handler = FeatureExtraction(config_of(FeatureExtraction, directory=directory))
    assert len(answer(handler, EMBEDDINGS, {"input": ONE, "dimensions": 8})["data"][0]["embedding"]) == 8
    with pytest.raises(BadRequest, match="dimensions is 5"):
        handler.decode(request(EMBEDDINGS, {"input": ONE, "dimensions": 5}))


DOCUMENTS: list[Any] = ["ba be", {"text": "lo lo"}, TWO, "kiki ß dako"]
TEXTS: list[str] = [each if isinstance(each, str) else each["text"] for each in DOCUMENTS]


def check_ranking(made: Any, wanted: list[float], *, shown: bool = True) -> None:
    order = sorted(range(len(wanted)), key=lambda index: -wanted[index])
    assert [each["index"] for each in made["results"]] == order
    np.testing.assert_allclose([each["relevance_score"] for each in made["results"]], sorted(wanted)[::-1], atol=1e-5)
    assert [each.get("document") for each in made["results"]] == [{"text": TEXTS[n]} if shown else None for n in order]


def logits(directory: Path) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        return [float(network(**tokenizer(ONE, text, return_tensors="pt")).logits) for text in TEXTS]


@pytest.mark.peer("transformers")
def test_a_cross_encoder_ranks_documents(reranker: tuple[Path, TextClassification]) -> None:
    """By the sigmoid of its logit for each pair alone, the best first."""
    directory, handler = reranker
    made = answer(handler, RERANK, {"model": "ranks", "query": ONE, "documents": DOCUMENTS})
    check_ranking(made, [1 / (1 + np.exp(-each)) for each in logits(directory)])
    count = sum(len(handler.tokenizer(ONE, text).input_ids) for text in TEXTS)
    assert made["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert made["model"] == "ranks"


@pytest.mark.peer("transformers")
@pytest.mark.parametrize(
    "config",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
    ids=str,
)
def test_a_cross_encoder_without_an_activation_gives_its_logits(tmp_path: Path, config: dict[str, Any]) -> None:
    """As sentence-transformers and vLLM read the same field of config.json."""
    directory = cross_encoder(tmp_path, **config)
    handler = TextClassification(config_of(TextClassification, directory=directory))
    check_ranking(answer(handler, RERANK, {"query": ONE, "documents": DOCUMENTS}), logits(directory))


@pytest.mark.peer("transformers")
def test_a_model_of_embeddings_ranks_documents(embedder: tuple[Path, FeatureExtraction]) -> None:
    """By the cosine of the query's vector and each document's."""
    directory, handler = embedder
    query, *documents = vectors(directory, ONE, *TEXTS)
    made = answer(handler, RERANK, {"query": ONE, "documents": DOCUMENTS, "return_documents": False})
    check_ranking(made, [float(query @ each) for each in documents], shown=False)


def test_top_n_keeps_the_best(reranker: tuple[Path, TextClassification]) -> None:
    """At most as many as there are."""
    whole = answer(reranker[1], RERANK, {"query": ONE, "documents": DOCUMENTS})["results"]
    for top in (1, 3, 99):
        assert (
            answer(reranker[1], RERANK, {"query": ONE, "documents": DOCUMENTS, "top_n": top})["results"] == whole[:top]
        )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": ONE}, "missing required field `documents`"),
        ({"documents": TEXTS}, "missing required field `query`"),
        ({"query": ONE, "documents": []}, "length >= 1"),
        ({"query": ONE, "documents": [{"title": "x"}]}, "missing required field `text`"),
        ({"query": ONE, "documents": TEXTS, "top_n": 0}, ">= 1"),
        ({"query": ONE, "documents": TEXTS, "top_k": 2}, "unknown field `top_k`"),
        ({"query": ONE, "documents": ["ba"] * 5000}, "limit is 4096"),
        ({"query": ONE, "documents": [LONG]}, "tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_ranking_names_the_field(
    embedder: tuple[Path, FeatureExtraction], reranker: tuple[Path, TextClassification], body: Any, message: str
) -> None:
    """By both kinds of models."""
    for handler in (embedder[1], reranker[1]):
        with pytest.raises(BadRequest, match=message):
            handler.decode(request(RERANK, body))


def test_a_classifier_of_several_labels_ranks_nothing(tmp_path: Path) -> None:
    handler = TextClassification(config_of(TextClassification, directory=tiny.classifier(tmp_path)))
    with pytest.raises(BadRequest, match="one label, and this model has 3"):
        handler.decode(request(RERANK, {"query": ONE, "documents": TEXTS}))


def test_only_json_is_read(embedder: tuple[Path, FeatureExtraction]) -> None:
    with pytest.raises(UnsupportedMediaType):
        embedder[1].decode(request(EMBEDDINGS, {"input": ONE}, content_type="text/csv"))

"""Encoder tasks: each answers as transformers' own pipeline does, alone and in any batch."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers
from transformers import CanineConfig, CanineForQuestionAnswering, CanineForTokenClassification, CanineTokenizer
from transformers.pipelines.document_question_answering import select_starts_ends

from serve.errors import (
    BadRequest,
    InternalError,
    ModelUnusable,
    NotAcceptable,
    ServeError,
    TooLate,
    UnsupportedMediaType,
)
from serve.handlers.base import Reply, Request
from serve.handlers.encoders import task
from serve.handlers.encoders.feature_extraction import FeatureExtraction
from serve.handlers.encoders.fill_mask import FillMask
from serve.handlers.encoders.question_answering import QuestionAnswering
from serve.handlers.encoders.task import Task
from serve.handlers.encoders.text_classification import TextClassification
from serve.handlers.encoders.token_classification import TokenClassification
from serve.handlers.encoders.zero_shot import ZeroShotClassification
from tests.patience import PATIENCE
from tests.unit import tiny_encoders as tiny
from tests.unit.configs import config_of

ONE, TWO, LONG = "ba be bobe dako.", "This is lo", "ba " * 500
MASKED = "ba [MASK] bobe"

# task -> its handler and what makes a model for it
TASKS: dict[str, tuple[type[Task], Callable[[Path], Path]]] = {
    "text-classification": (TextClassification, tiny.classifier),
    "roberta": (TextClassification, tiny.roberta),
    "decoder": (TextClassification, tiny.decoder),
    "encoder-decoder": (TextClassification, tiny.inference),
    "token-classification": (TokenClassification, tiny.tagger),
    "fill-mask": (FillMask, tiny.masked),
    "zero-shot-classification": (ZeroShotClassification, tiny.inference),
    "feature-extraction": (FeatureExtraction, tiny.embedder),
    "question-answering": (QuestionAnswering, tiny.answerer),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Task]]:
    """By name, the directory of each model and the handler built from it."""
    every = {}
    for name, (handler, make) in TASKS.items():
        directory = make(tmp_path_factory.mktemp(name))
        task = name if name in ("feature-extraction", "zero-shot-classification") else None
        every[name] = directory, handler(config_of(handler, name=name, directory=directory, task=task))
    return every


def request(body: Any, **settings: Any) -> Request:
    body = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Request(body=body, **{"content_type": "application/json", **settings})


def reply(handler: Task, body: Any, **settings: Any) -> Reply:
    (made,) = predicted(handler, handler.decode(request(body, **settings)))
    assert isinstance(made, Reply), made
    return made


def predicted(handler: Task, *items: Any) -> list[Any]:
    """The outcomes of items that share their turns, as in the runner."""
    outcomes: dict[int, Any] = {}
    while left := [number for number in range(len(items)) if number not in outcomes]:
        done = zip(left, handler.predict([items[number] for number in left]), strict=True)
        outcomes |= {number: outcome for number, outcome in done if outcome is not None}
    return [outcomes[number] for number in range(len(items))]


def ask(handler: Task, inputs: Any, parameters: dict[str, Any] | None = None) -> Any:
    body = {"inputs": inputs} | ({} if parameters is None else {"parameters": parameters})
    return json.loads(reply(handler, body).body)  # type: ignore[arg-type]


def same(ours: Any, theirs: Any) -> bool:
    """Equal keys in equal order, equal types, equal numbers but for a float's last bits."""
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, float | np.floating):
        return isinstance(ours, float) and abs(ours - float(theirs)) < 1e-5
    return type(ours) is type(theirs) and bool(ours == theirs)


CLASSIFIED: list[tuple[Any, Any]] = [
    (ONE, None),
    ([ONE], None),
    ([ONE, TWO], None),
    ("", None),
    (ONE, {"top_k": 1}),
    (ONE, {"top_k": 99}),
    (ONE, {"top_k": None}),
    ([ONE, TWO], {"top_k": 2}),
    ({"text": ONE, "text_pair": TWO}, None),
    ({"text": ONE, "text_pair": TWO}, {"top_k": 2}),
    ([{"text": ONE, "text_pair": TWO}, {"text": TWO}], {"top_k": None}),
    ([[[ONE, TWO]]], None),
    (ONE, {"function_to_apply": "sigmoid"}),
    ([ONE], {"function_to_apply": "NONE", "top_k": None}),
    (ONE, {"truncation": True, "max_length": 4}),
    (ONE, {"batch_size": 8}),
]
AGGREGATED: list[Any] = [
    None,
    {"ignore_labels": []},
    {"aggregation_strategy": "simple", "ignore_labels": ["PER"]},
    {"aggregation_strategy": "first"},
    {"aggregation_strategy": "average"},
    {"aggregation_strategy": "max"},
    {"aggregation_strategy": "simple", "stride": 5},
]
CASES: dict[str, list[tuple[Any, Any]]] = {
    "text-classification": CLASSIFIED,
    "roberta": CLASSIFIED,
    "decoder": CLASSIFIED,
    "encoder-decoder": CLASSIFIED,
    "token-classification": [
        *((text, parameters) for text in (ONE, [ONE, TWO], "Bobe é dako, kiki ß.", LONG) for parameters in AGGREGATED),
        (["ba", "bobe"], {"is_split_into_words": True}),
        ([["ba", "bobe"], ["kiki"]], {"is_split_into_words": True, "delimiter": "_", "aggregation_strategy": "first"}),
    ],
    "fill-mask": [
        (MASKED, None),
        ([MASKED], None),
        ([MASKED, "[MASK] da"], None),
        ("[MASK] ba [MASK] da", None),
        ([MASKED, "[MASK] ba [MASK]"], {"top_k": 2}),
        (MASKED, {"targets": "ba"}),
        (MASKED, {"targets": ["ba", "da", "xyzzy", "bobe"]}),
        (MASKED, {"tokenizer_kwargs": {"truncation": True}}),
    ],
    "zero-shot-classification": [
        (ONE, {"candidate_labels": "ba, da,ko"}),
        (ONE, {"candidate_labels": ["ba"]}),
        ([ONE], {"candidate_labels": ["ba", "da"], "hypothesis_template": "lo {} is"}),
        ([ONE, TWO], {"candidate_labels": ["ba", "da", "ko"], "multi_label": True}),
    ],
    "feature-extraction": [
        (ONE, None),
        ([ONE], {"truncation": True}),
        ([ONE, TWO], {"tokenize_kwargs": {"truncation": True, "max_length": 4}}),
    ],
}


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_the_answer_is_that_of_the_librarys_pipeline(made: dict[str, tuple[Path, Task]], name: str) -> None:
    """Of version 5, on the same files: shapes, keys and their order, numbers."""
    directory, handler = made[name]
    pipeline = transformers.pipeline(
        name if name in CASES and name not in ("roberta", "decoder", "encoder-decoder") else "text-classification",
        model=str(directory),
        tokenizer=str(directory),
    )
    for inputs, parameters in CASES[name]:
        theirs = pipeline(inputs, **{key: parameters[key] for key in parameters} if parameters else {})
        ours = ask(handler, inputs, parameters)
        assert same(ours, theirs), (inputs, parameters, ours, theirs)


def test_all_scores_come_as_version_4_gave_them(made: dict[str, tuple[Path, Task]]) -> None:
    """In the order of the labels; many callers still ask so."""
    handler = made["text-classification"][1]
    best = {each["label"]: each for each in ask(handler, ONE, {"top_k": None})}
    assert ask(handler, ONE, {"return_all_scores": True}) == [[best["BAD"], best["SO-SO"], best["GOOD"]]]


@pytest.mark.peer("transformers")
@pytest.mark.parametrize(
    ("config", "total"),
    [({"problem_type": "regression", "num_labels": 1}, None), ({"problem_type": "multi_label_classification"}, "each")],
    ids=str,
)
def test_the_kind_of_problem_chooses_the_function(tmp_path: Path, config: dict[str, Any], total: str | None) -> None:
    """As the pipeline has it: none for a regression, a sigmoid for many labels at once."""
    labels = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}} if "num_labels" in config else {}
    directory = tiny.classifier(tmp_path, **{key: config[key] for key in config if key != "num_labels"}, **labels)
    pipeline = transformers.pipeline("text-classification", model=str(directory), tokenizer=str(directory))
    handler = TextClassification(config_of(TextClassification, name="x", directory=directory))
    assert same(ask(handler, ONE, {"top_k": None}), pipeline(ONE, top_k=None))


def windows(directory: Path, question: str, context: str, window: int, stride: int) -> list[dict[str, Any]]:
    """Each window's best span, by the library's own arithmetic on a pass of its own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    network = transformers.AutoModelForQuestionAnswering.from_pretrained(directory).eval()
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=window, stride=stride, return_overflowing_tokens=True
    )
    found = []
    for encoding in encoded.encodings:
        with torch.no_grad():
            output = network(torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids]))
        outside = np.array([[part != 1 for part in encoding.sequence_ids]])
        outside[0, 0] = False
        starts, ends, scores, null = select_starts_ends(
            output.start_logits.numpy(), output.end_logits.numpy(), outside, None, handle_impossible_answer=True
        )
        begins, over = encoding.offsets[starts[0]][0], encoding.offsets[ends[0]][1]
        found.append({"score": float(scores[0]), "start": begins, "end": over, "null": null})
    return found


@pytest.mark.parametrize("words", [3, 30, 150])
def test_an_answer_is_the_best_span_of_all_windows(made: dict[str, tuple[Path, Task]], words: int) -> None:
    """A context of several windows is read whole, and its offsets are those of the whole context."""
    directory, handler = made["question-answering"]
    syllables = [*tiny.SYLLABLES, "bobe", "dako,", "ß"]
    context = " ".join(syllables[(7 * number * number + number) % len(syllables)] for number in range(words))
    parameters = {"max_seq_len": 40, "doc_stride": 10, "align_to_words": False}
    best = max(windows(directory, "ba bobe?", context, 40, 10), key=lambda each: float(each["score"]))

    body = {"question": "ba bobe?", "context": context}
    answer = ask(handler, body, parameters)

    assert (answer["start"], answer["end"]) == (best["start"], best["end"])
    assert answer["answer"] == context[best["start"] : best["end"]]
    assert answer["score"] == pytest.approx(best["score"], abs=1e-6)


def test_no_answer_is_an_answer_where_that_is_asked_for(made: dict[str, tuple[Path, Task]]) -> None:
    """With the least probability that any window gave it."""
    directory, handler = made["question-answering"]
    context = "ba bobe ki. " * 12
    null = min(each["null"] for each in windows(directory, "lo?", context, 40, 10))
    parameters = {"max_seq_len": 40, "doc_stride": 10, "handle_impossible_answer": True, "top_k": 99}
    answers = ask(handler, {"question": "lo?", "context": context}, parameters)
    (none,) = [each for each in answers if not each["answer"]]
    assert none == {"score": pytest.approx(null, abs=1e-6), "start": 0, "end": 0, "answer": ""}
    assert answers == sorted(answers, key=lambda each: each["score"], reverse=True)


def test_words_are_not_cut_in_two(made: dict[str, tuple[Path, Task]]) -> None:
    """Unless align_to_words is false; the same answer found twice is one."""
    handler = made["question-answering"][1]
    context = "bobekiki dakolalo bibobabe kikokike"
    answers = ask(handler, {"question": "ba", "context": context}, {"top_k": 20})
    assert {each["start"] for each in answers} <= {0, 9, 18, 27}
    assert len({each["answer"] for each in answers}) == len(answers)


@pytest.mark.peer("transformers")
def test_a_question_is_asked_in_any_of_the_pipelines_forms(made: dict[str, tuple[Path, Task]]) -> None:
    """Bare, in inputs, in a list; several questions of one context; as CSV with its header."""
    handler = made["question-answering"][1]
    one = {"question": "ba?", "context": ONE}
    wanted = ask(handler, one)
    assert wanted.keys() == {"score", "start", "end", "answer"}
    assert json.loads(reply(handler, one).body) == wanted  # type: ignore[arg-type]
    assert ask(handler, [one]) == wanted  # the pipeline's own oddity
    assert same(ask(handler, [one, one]), [wanted, wanted])
    assert same(ask(handler, {"question": ["ba?", "ba?"], "context": ONE}), [wanted, wanted])
    made_of_rows = reply(handler, f"question,context\r\nba?,{ONE}\r\nba?,{ONE}\r\n".encode(), content_type="text/csv")
    assert same(json.loads(made_of_rows.body), [wanted, wanted])  # type: ignore[arg-type]


BODIES: dict[str, list[tuple[Any, Any]]] = {
    **{name: CASES[name] for name in CASES},
    "question-answering": [
        ({"question": "ba?", "context": "ba bobe ki. " * 12}, {"max_seq_len": 30, "doc_stride": 5}),
        ({"question": "ba be bi bo?", "context": ONE}, {"top_k": 3}),
    ],
}


@pytest.mark.parametrize("name", BODIES)
def test_an_answer_does_not_depend_on_the_other_requests(made: dict[str, tuple[Path, Task]], name: str) -> None:
    """Requests with other lengths and other parameters share one pass, and each gets what it gets alone."""
    handler = made[name][1]
    items = [
        handler.decode(request({"inputs": inputs} | ({"parameters": parameters} if parameters else {})))
        for inputs, parameters in BODIES[name]
    ]
    alone = [ask(handler, inputs, parameters) for inputs, parameters in BODIES[name]]
    assert len({handler.compatible(item) for item in items}) == 1

    passes: list[int] = []

    def count(network: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        passes.append(len(inputs["input_ids"]))

    handle = handler.encoder.network.register_forward_pre_hook(count, with_kwargs=True)
    together = predicted(handler, *items)
    handle.remove()

    rows = sum(len(item.rows) for item in items)
    assert sum(passes) == rows
    assert name == "decoder" or len(passes) < rows  # a decoder without a padding token is read row by row
    for answer, wanted in zip(together, alone, strict=True):
        assert isinstance(answer, Reply)
        assert same(json.loads(answer.body), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "inputs"), [("text-classification", ONE), ("fill-mask", MASKED)])
def test_a_long_list_takes_turns_with_other_requests(
    made: dict[str, tuple[Path, Task]], name: str, inputs: str
) -> None:
    """One text is answered in the first turn, and in the end each of the hundred is what it is alone."""
    handler = made[name][1]
    many = handler.decode(request({"inputs": [inputs] * 100}))
    one = handler.decode(request({"inputs": inputs}))

    first, other = handler.predict([many, one])
    (rest,) = predicted(handler, many)

    assert first is None
    assert isinstance(other, Reply)
    assert same(json.loads(rest.body), json.loads(reply(handler, {"inputs": [inputs, inputs]}).body)[:1] * 100)  # type: ignore[arg-type]


def test_a_long_request_runs_in_slices_beside_others(
    made: dict[str, tuple[Path, Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shares no pass; its slices have a size, a smaller one while others come; the answer is as in one pass."""
    handler = made["feature-extraction"][1]
    whole = json.loads(reply(handler, {"inputs": [ONE, TWO] * 10}).body)  # type: ignore[arg-type]
    longest = max(len(row.ids) for row in handler.decode(request({"inputs": [ONE, TWO]})).rows)
    sizes: list[int] = []
    run = handler.encoder.run

    def noted(rows: Any, extract: Any) -> None:
        sizes.append(sum(len(row.ids) for row in rows))
        run(rows, extract)

    monkeypatch.setattr(handler, "_slice", 4 * longest)
    monkeypatch.setattr(handler, "_others_at", float("-inf"))
    monkeypatch.setattr(task, "SLICE", 4 * longest)
    monkeypatch.setattr(task, "BESIDE_OTHERS", 2 * longest)
    monkeypatch.setattr(task, "RECENT", PATIENCE)
    monkeypatch.setattr(handler.encoder, "run", noted)
    many, one = handler.decode(request({"inputs": [ONE, TWO] * 10})), handler.decode(request({"inputs": ONE}))

    assert (handler.compatible(many), handler.compatible(one)) == (many, None)
    assert handler.predict([many]) == [None]
    assert 2 * longest < sizes.pop() <= 4 * longest
    handler.predict([one])
    sizes.clear()
    (answer,) = predicted(handler, many)

    assert max(sizes) <= 2 * longest
    assert isinstance(answer, Reply)
    assert same(json.loads(answer.body), whole)  # type: ignore[arg-type]


def test_a_text_has_only_so_many_masks(made: dict[str, tuple[Path, Task]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass makes a vocabulary of numbers for each."""
    monkeypatch.setattr("serve.handlers.encoders.fill_mask.MAX_MASKS", 2)
    assert ask(made["fill-mask"][1], "[MASK] [MASK]")
    with pytest.raises(BadRequest, match="has 3 mask tokens; the limit is 2"):
        ask(made["fill-mask"][1], "[MASK] [MASK] [MASK]")


def test_tokens_vectors_of_several_lengths_are_no_array(made: dict[str, tuple[Path, Task]]) -> None:
    """One text's are; for the rest JSON is offered."""
    handler = made["feature-extraction"][1]
    array = np.load(io.BytesIO(reply(handler, {"inputs": ONE}, accept="application/x-npy").body))  # type: ignore[arg-type]
    assert array.shape == np.shape(ask(handler, ONE))
    (refused,) = handler.predict([handler.decode(request({"inputs": [ONE, TWO]}, accept="application/x-npy"))])
    assert isinstance(refused, NotAcceptable)


def test_csv_goes_in_and_comes_out_with_a_header(made: dict[str, tuple[Path, Task]]) -> None:
    """A column named inputs, other columns beside it unread; one row out for each row in."""
    handler = made["text-classification"][1]
    wanted = ask(handler, [ONE, "lo, ka"])
    answer = reply(handler, f'id,inputs\n1,{ONE}\n2,"lo, ka"\n'.encode(), content_type="text/csv", accept="text/csv")
    assert answer.content_type == "text/csv"
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))  # type: ignore[union-attr]
    assert same([{"label": row["label"], "score": float(row["score"])} for row in rows], wanted)
    (nested,) = handler.predict(
        [handler.decode(request({"inputs": [ONE, TWO], "parameters": {"top_k": 2}}, accept="text/csv"))]
    )
    assert isinstance(nested, NotAcceptable)


def test_a_text_may_come_plain_or_bare(made: dict[str, tuple[Path, Task]]) -> None:
    """JSON's own string or list, text/plain, and without any type at all."""
    handler = made["text-classification"][1]
    wanted = ask(handler, ONE)
    for body, content_type in [
        (ONE.encode(), "text/plain"),
        (ONE.encode(), ""),
        (msgspec.json.encode(ONE), "application/json"),
        (msgspec.json.encode([ONE]), ""),
        (msgspec.json.encode({"inputs": ONE, "options": {"wait_for_model": True}, "model_type": "x"}), ""),
    ]:
        assert json.loads(reply(handler, body, content_type=content_type).body) == wanted  # type: ignore[arg-type]


def test_json_is_compact_and_keeps_what_is_not_ascii(made: dict[str, tuple[Path, Task]]) -> None:
    """As the toolkit writes it."""
    answer = reply(made["token-classification"][1], {"inputs": "é ß", "parameters": {"ignore_labels": []}})
    assert "é".encode() in answer.body
    assert b", " not in answer.body
    assert b'": ' not in answer.body


@pytest.mark.parametrize(
    ("name", "inputs", "parameters"),
    [
        ("text-classification", LONG, None),
        ("roberta", LONG, None),
        ("roberta", "ba " * (tiny.POSITIONS - 1), None),
        ("fill-mask", LONG + "[MASK]", None),
        ("feature-extraction", LONG, None),
        ("feature-extraction", "ba " * 100_000, {"truncation": False}),
    ],
)
def test_a_text_that_is_too_long_is_refused_unless_it_may_be_cut(
    made: dict[str, tuple[Path, Task]], name: str, inputs: str, parameters: Any
) -> None:
    """400 with both numbers, where the pipeline has an index error; truncation is its own parameter."""
    handler = made[name][1]
    with pytest.raises(BadRequest, match=rf"^inputs has \d+ \w+; the model reads {tiny.POSITIONS} tokens$"):
        ask(handler, inputs, parameters)
    key = "tokenizer_kwargs" if name == "fill-mask" else None
    cut = {"truncation": True}
    inputs = "[MASK] " + inputs if name == "fill-mask" else inputs
    assert ask(handler, inputs, {key: cut} if key else cut)


@pytest.mark.parametrize(("name", "inputs"), [("token-classification", LONG), ("zero-shot-classification", LONG)])
def test_where_the_pipeline_cuts_so_do_we(made: dict[str, tuple[Path, Task]], name: str, inputs: str) -> None:
    """Taggers and zero-shot classifiers read what fits."""
    parameters = {"candidate_labels": "ba,da"} if name.startswith("zero") else {}
    assert ask(made[name][1], inputs, parameters)


ANSWERS = {"question": "ba?", "context": ONE}


@pytest.mark.parametrize(
    ("name", "body", "message", "hint"),
    [
        ("text-classification", {"inputs": ONE, "parameters": {"topk": 1}}, "`topk`", "did you mean top_k? known are"),
        ("text-classification", {"inputs": ONE, "parameters": {"zzz": 1}}, "`zzz`", "known are: batch_size"),
        ("text-classification", {"inputs": ONE, "parameters": {"top_k": "1"}}, "at `parameters.top_k`", ""),
        ("text-classification", {"inputs": ONE, "parameters": {"top_k": 0}}, ">= 1 - at `parameters.top_k`", ""),
        ("text-classification", {"inputs": ONE, "parameters": {"function_to_apply": "x"}}, "is 'x'", "it must be"),
        ("text-classification", {"inputs": ONE, "parameters": []}, "at `parameters`", ""),
        ("text-classification", {"inputs": 3}, "at `inputs`", ""),
        ("text-classification", {"inputs": []}, "inputs is an empty list", ""),
        ("text-classification", {"inputs": [[ONE, TWO]]}, "a list in place of a text", 'a pair is {"text"'),
        ("text-classification", {"inputs": {"text": ONE, "txt": TWO}}, "unknown field `txt`", ""),
        ("text-classification", {"input": ONE}, "unknown key 'input'", "did you mean inputs?"),
        ("text-classification", {}, "inputs is missing", ""),
        ("text-classification", b"", "", ""),
        ("text-classification", b'{"inputs": NaN}', "the body is not JSON", ""),
        ("text-classification", b"[" * 100_000, "the body's JSON is nested too deeply", ""),
        ("token-classification", {"inputs": [3]}, "at `inputs[0]`", ""),
        ("token-classification", {"inputs": []}, "inputs is an empty list", ""),
        ("token-classification", {"inputs": ONE, "parameters": {"aggregation_strategy": "x"}}, "Invalid enum", ""),
        ("token-classification", {"inputs": ONE, "parameters": {"stride": 9}}, "needs an aggregation_strategy", ""),
        (
            "token-classification",
            {"inputs": ONE, "parameters": {"stride": 62, "aggregation_strategy": "simple"}},
            "stride is 62: it must be under 62",
            "",
        ),
        ("token-classification", {"inputs": ONE, "parameters": {"is_split_into_words": True}}, "at `inputs[0]`", ""),
        ("fill-mask", {"inputs": ONE}, "no mask token ([MASK])", "put [MASK]"),
        ("fill-mask", {"inputs": MASKED, "parameters": {"targets": []}}, "at `parameters.targets`", ""),
        ("fill-mask", {"inputs": MASKED, "parameters": {"targets": " "}}, "none is in the model's vocabulary", ""),
        ("zero-shot-classification", {"inputs": ONE}, "candidate_labels is missing", "send {"),
        (
            "zero-shot-classification",
            {"inputs": ONE, "parameters": {"candidate_labels": "a", "hypothesis_template": "x"}},
            "no {} for the label",
            "",
        ),
        (
            "zero-shot-classification",
            {"inputs": "ba", "parameters": {"candidate_labels": "ba " * 80}},
            "the text cannot be truncated to 64 tokens",
            "",
        ),
        (
            "feature-extraction",
            {"inputs": ONE, "parameters": {"return_tensors": True}},
            "return_tensors is not supported over HTTP",
            "set Accept: application/x-npy",
        ),
        ("question-answering", {"inputs": "ba?"}, "an object of question and context", ""),
        ("question-answering", {"inputs": []}, "inputs is an empty list", ""),
        ("question-answering", {"inputs": {"question": "ba?"}}, "an object of question and context", ""),
        ("question-answering", {"inputs": {"question": "", "context": ONE}}, "question is empty", ""),
        ("question-answering", {"inputs": {"question": ["a", "b"], "context": [ONE] * 3}}, "list of 2 and", ""),
        ("question-answering", {"inputs": {"question": LONG, "context": ONE}}, "leaves no room", "shorten it"),
        ("question-answering", {"inputs": ANSWERS, "parameters": {"doc_stride": 999}}, "doc_stride is 999", ""),
        ("question-answering", {"inputs": ANSWERS, "parameters": {"max_answer_len": 0}}, "max_answer_len", ""),
        (
            "question-answering",
            {"inputs": {"question": "a", "context": "ba " * 400_000}},
            "the limit is 1048576",
            "send it",
        ),
        # What would take minutes, or gigabytes.
        (
            "question-answering",
            {
                "inputs": {"question": "ba", "context": "ba " * 9000},
                "parameters": {"max_seq_len": 40, "doc_stride": 35},
            },
            "need 9000 windows or more; the limit of a request is 4096",
            "send less text at once",
        ),
        ("question-answering", {"inputs": {"question": ["ba"] * 5000, "context": ONE}}, "need 4097 windows", "send"),
        (
            "question-answering",
            {"inputs": ANSWERS, "parameters": {"top_k": 10**6}},
            "the limit of their product is 65536",
            "lower",
        ),
        (
            "token-classification",
            {"inputs": "ba " * 9000, "parameters": {"stride": 61, "aggregation_strategy": "simple"}},
            "need 9000 windows or more",
            "",
        ),
        (
            "fill-mask",
            {"inputs": ["[MASK]"] * 2000, "parameters": {"top_k": 999}},
            "proposals; the limit of a request",
            "",
        ),
        (
            "zero-shot-classification",
            {"inputs": ["ba"] * 65, "parameters": {"candidate_labels": ["da"] * 64}},
            "65 texts times 64 candidate_labels are over the limit of 4096",
            "send several",
        ),
        (
            "zero-shot-classification",
            {"inputs": "ba", "parameters": {"candidate_labels": ["da" * 9000], "hypothesis_template": "{}" * 9000}},
            "inputs has a hypothesis of 162018000 characters",
            "",
        ),
    ],
)
def test_a_bad_request_names_the_place(
    made: dict[str, tuple[Path, Task]], name: str, body: Any, message: str, hint: str
) -> None:
    """Before any pass of the model."""
    with pytest.raises(BadRequest) as refused:
        made[name][1].decode(request(body))
    assert message in refused.value.message
    assert refused.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"ba,be\nba,be\n", "is not a header"),
        (b"inputs\n", "inputs is an empty list"),
        (b"inputs,id\nba\n", "row 2 of the CSV has 1 cells, its header has 2"),
        (b'inputs\n"ba', "the body is not CSV"),
        (b"inputs\n\xff\n", "the body is not valid utf-8"),
        (b"", "is not a header"),
    ],
)
def test_an_invalid_table_is_refused(made: dict[str, tuple[Path, Task]], body: bytes, message: str) -> None:
    """400 with the row."""
    with pytest.raises(BadRequest, match=message):
        made["text-classification"][1].decode(request(body, content_type="text/csv"))


@pytest.mark.parametrize(
    ("name", "settings", "error"),
    [
        ("text-classification", {"content_type": "image/png"}, UnsupportedMediaType),
        ("zero-shot-classification", {"content_type": "text/csv"}, UnsupportedMediaType),
        ("text-classification", {"accept": "application/x-npy"}, NotAcceptable),
        ("text-classification", {"deadline": 0.0}, TooLate),
    ],
)
def test_an_unsupported_type_or_a_late_request_is_refused(
    made: dict[str, tuple[Path, Task]], name: str, settings: dict[str, Any], error: type[ServeError]
) -> None:
    """415, 406, 503."""
    with pytest.raises(error):
        made[name][1].decode(request({"inputs": ONE}, **settings))


def test_a_late_request_does_not_hold_up_the_others(
    made: dict[str, tuple[Path, Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 for the request whose deadline has passed; it takes no pass."""
    handler = made["text-classification"][1]
    wanted = ask(handler, ONE)
    items = [handler.decode(request({"inputs": ONE}, deadline=deadline)) for deadline in (float("inf"), 1e12)]
    monkeypatch.setattr("serve.handlers.encoders.forward.time.monotonic", lambda: 1e13)
    good, late = handler.predict(items)
    assert isinstance(good, Reply)
    assert json.loads(good.body) == wanted  # type: ignore[arg-type]
    assert isinstance(late, TooLate)


def test_numbers_that_json_cannot_represent_are_an_error(tmp_path: Path) -> None:
    """500, and never null or NaN in an answer."""
    handler = TextClassification(config_of(TextClassification, name="x", directory=tiny.classifier(tmp_path)))
    handler.encoder.network.classifier.register_forward_hook(lambda _layer, _input, scores: scores * float("nan"))
    (failed,) = handler.predict([handler.decode(request({"inputs": ONE}))])
    assert isinstance(failed, InternalError)
    assert "NaN" in failed.message


def characters(directory: Path, kind: Any) -> Path:
    """CANINE, whose tokenizer has no tokenizer.json and no files: it knows neither words nor offsets."""
    config = CanineConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_hash_buckets=64,
        max_position_embeddings=64,
        local_transformer_stride=16,
    )
    kind(config).save_pretrained(directory)
    CanineTokenizer().save_pretrained(directory)
    return directory


def test_a_tokenizer_without_offsets_answers_no_questions(tmp_path: Path) -> None:
    """Its model fails at the load, and not at each request."""
    directory = characters(tmp_path, CanineForQuestionAnswering)
    with pytest.raises(ModelUnusable, match="CanineTokenizer does not tell the characters"):
        QuestionAnswering(config_of(QuestionAnswering, directory))


def test_a_tokenizer_without_words_tags_its_tokens(tmp_path: Path) -> None:
    """What needs words is a 400."""
    handler = TokenClassification(config_of(TokenClassification, characters(tmp_path, CanineForTokenClassification)))
    assert len(ask(handler, "ba be", {"ignore_labels": []})) == len("ba be")
    for parameters in ({"aggregation_strategy": "first"}, {"aggregation_strategy": "simple", "stride": 4}):
        with pytest.raises(BadRequest, match="parameters: "):
            handler.decode(request({"inputs": "ba be", "parameters": parameters}))

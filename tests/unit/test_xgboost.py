"""XGBoost models answer what the library predicts, to the last digit, in the shapes of SageMaker's own container."""

import io
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xgboost

from serve.errors import BadRequest, ModelUnusable, NotAcceptable, ServeError, UnsupportedMediaType
from serve.handlers.base import Reply, Request
from serve.handlers.xgboost import file_formats
from serve.handlers.xgboost import handler as xgboost_handler
from serve.handlers.xgboost.handler import XGBoost
from tests.unit.configs import config_of

WIDTH = 5
CLASSES = 3
OBJECTIVES: list[dict[str, Any]] = [
    {"objective": "reg:squarederror"},
    {"objective": "reg:squaredlogerror"},
    {"objective": "reg:logistic"},
    {"objective": "reg:pseudohubererror"},
    {"objective": "reg:absoluteerror"},
    {"objective": "reg:quantileerror", "quantile_alpha": 0.3},
    {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]},
    {"objective": "reg:gamma"},
    {"objective": "reg:tweedie"},
    {"objective": "count:poisson"},
    {"objective": "survival:cox"},
    {"objective": "survival:aft", "aft_loss_distribution": "logistic"},
    {"objective": "rank:pairwise"},
    {"objective": "rank:ndcg"},
    {"objective": "rank:map"},
    {"objective": "binary:logistic"},
    {"objective": "binary:logitraw"},
    {"objective": "binary:hinge"},
    {"objective": "multi:softprob", "num_class": CLASSES},
    {"objective": "multi:softmax", "num_class": CLASSES},
    {"objective": "reg:squarederror", "booster": "gblinear", "feature_selector": "cyclic", "updater": "coord_descent"},
    {"objective": "multi:softprob", "num_class": CLASSES, "booster": "gblinear", "updater": "coord_descent"},
    {"objective": "binary:logistic", "booster": "dart"},
    {"objective": "multi:softprob", "num_class": CLASSES, "booster": "dart", "rate_drop": 0.5},
    {"objective": "reg:squarederror", "num_parallel_tree": 3, "subsample": 0.5},
    {"objective": "reg:squarederror", "targets": 2},
    {"objective": "reg:squarederror", "targets": 2, "multi_strategy": "multi_output_tree", "tree_method": "hist"},
    {"objective": "binary:logistic", "targets": 3},
    {"objective": "reg:squarederror", "categories": True},
    {"objective": "binary:logistic", "categories": True, "booster": "dart"},
]
generator = np.random.default_rng(0)
ROWS = generator.normal(size=(400, WIDTH)).astype(np.float32)
ROWS[generator.random(ROWS.shape) < 0.1] = np.nan


def train(rounds: int = 8, targets: int = 1, categories: bool = False, **parameters: Any) -> xgboost.Booster:
    objective = parameters.get("objective", "")
    labels = generator.integers(0, CLASSES if "num_class" in parameters else 2, (len(ROWS), targets)) + np.float32(0)
    if objective in ("reg:gamma", "reg:tweedie") or objective.startswith("survival:"):
        labels = labels + 1
    kinds = ["c", *["q"] * (WIDTH - 1)] if categories else None
    data = xgboost.DMatrix(rows_of(categories), labels, feature_types=kinds, enable_categorical=categories)
    if objective.startswith("rank:"):
        data.set_group([10] * (len(ROWS) // 10))
    if objective == "survival:aft":
        data.set_float_info("label_lower_bound", labels[:, 0])
        data.set_float_info("label_upper_bound", labels[:, 0] + 1)
    return xgboost.train({"max_depth": 3, "nthread": 1, "seed": 0, "verbosity": 0, **parameters}, data, rounds)


def rows_of(categories: bool) -> Any:
    """The rows, of which the first column may be a category."""
    rows = ROWS.copy()
    if categories:
        rows[:, 0] = np.abs(rows[:, 0]).round()
    return rows


@pytest.fixture(scope="module")
def logistic() -> xgboost.Booster:
    return train(objective="binary:logistic")


@pytest.fixture
def served(tmp_path: Path) -> Callable[..., XGBoost]:
    def serve(booster: xgboost.Booster, **settings: Any) -> XGBoost:
        booster.save_model(tmp_path / "model.ubj")
        return XGBoost(config_of(XGBoost, name="trees", directory=tmp_path, **settings))

    return serve


def csv(rows: Any) -> bytes:
    return "".join(
        ",".join("" if np.isnan(value) else str(value) for value in row) + "\n" for row in rows.tolist()
    ).encode()


def ask(handler: XGBoost, body: bytes, content_type: str = "text/csv", accept: str = "") -> Reply:
    item = handler.decode(Request(body=body, content_type=content_type, accept=accept))
    while (reply := handler.predict([item])[0]) is None:
        pass
    assert isinstance(reply, Reply)
    return reply


@pytest.mark.peer("xgboost")
@pytest.mark.parametrize("parameters", OBJECTIVES, ids=lambda each: "-".join(map(str, each.values())))
def test_scores_are_those_of_the_library_to_the_last_digit(
    served: Callable[..., XGBoost], parameters: dict[str, Any]
) -> None:
    """For each objective, for one row and for many, in CSV and in JSON."""
    booster = train(**parameters)
    categories = parameters.get("categories", False)
    kinds = booster.feature_types if categories else None
    handler = served(booster)
    for count in (1, 7, len(ROWS)):
        rows = rows_of(categories)[:count]
        wanted = booster.predict(xgboost.DMatrix(rows, feature_types=kinds, enable_categorical=categories))
        body = csv(rows)

        lines = [",".join(map(str, np.atleast_1d(each))) for each in wanted]
        assert ask(handler, body) == Reply(body=("\n".join(lines) + "\n").encode(), content_type="text/csv")

        scores = [f"[{', '.join(map(str, each))}]" if each.ndim else str(each) for each in wanted]
        objects = ", ".join(f'{{"score": {each}}}' for each in scores)
        assert ask(handler, body, accept="application/json") == Reply(
            body=f'{{"predictions": [{objects}]}}'.encode(), content_type="application/json"
        )
        assert ask(handler, body, accept="application/jsonlines") == Reply(
            body="".join(f'{{"score": {each}}}\n' for each in scores).encode(), content_type="application/jsonlines"
        )


def test_every_format_of_a_row_gives_the_same_answer(served: Callable[..., XGBoost], logistic: xgboost.Booster) -> None:
    """Content types may be missing: commas make it CSV, else it is libsvm."""
    handler = served(logistic)
    row = ROWS[:1]
    values = [None if np.isnan(value) else float(value) for value in row[0]]
    libsvm = b"1 " + b" ".join(b"%d:%b" % (n, str(v).encode()) for n, v in enumerate(values) if v is not None)
    wanted = ask(handler, csv(row))
    for body, content_type in [
        (csv(row), ""),
        (libsvm, ""),
        (libsvm, "text/libsvm"),
        (libsvm, "text/x-libsvm"),
        (libsvm, "libsvm"),
        (msgspec.json.encode(values), "application/json"),
        (msgspec.json.encode({"instances": [{"features": values}]}), "application/json"),
        (msgspec.json.encode({"model_type": "trees", "inputs": [values]}), "application/json"),
        (msgspec.json.encode(values) + b"\n", "application/jsonlines"),
    ]:
        assert ask(handler, body, content_type) == wanted


def test_a_batch_answers_each_request_with_its_own_rows(
    served: Callable[..., XGBoost], logistic: xgboost.Booster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One prediction for all; formats, row counts and missing features of each are kept apart."""
    monkeypatch.setattr(xgboost_handler, "PIECE_ROWS", (1 << 20, 1 << 20))
    handler = served(logistic)
    requests = [
        Request(body=csv(ROWS[:1]), content_type="text/csv"),
        Request(body=csv(ROWS[1:300]), content_type="text/csv", accept="application/json"),
        Request(body=csv(ROWS[300:303]), content_type="text/csv", accept="application/jsonlines"),
    ]
    rows = 110_000  # so many that they stay sparse
    sparse = [Request(body=b"1 1:0.5\n0 2:1\n" * rows, content_type="text/libsvm") for _ in range(2)]
    for batch in (requests, sparse):
        alone = [handler.predict([handler.decode(each)])[0] for each in batch]
        items = [handler.decode(each) for each in batch]

        assert len({handler.compatible(item) for item in items}) == 1
        assert handler.predict(items) == alone
    assert handler.compatible(handler.decode(requests[0])) != handler.compatible(handler.decode(sparse[0]))


def test_libsvm_may_be_narrower_than_the_model(served: Callable[..., XGBoost], logistic: xgboost.Booster) -> None:
    """What is not named is missing."""
    row = np.full((1, WIDTH), np.nan, np.float32)
    row[0, 1] = 0.5
    handler = served(logistic)
    assert ask(handler, b"0 1:0.5 0:nan", "text/libsvm") == ask(handler, csv(row))


def test_a_libsvm_line_alone_has_the_answer_that_it_has_among_others(
    served: Callable[..., XGBoost], logistic: xgboost.Booster
) -> None:
    """So lines may be read one by one, where a placeholder takes the place of each bad one."""
    handler = served(logistic)
    lines = [b"1 0:0.5 2:1", b"0 1:2 4:-1", b"1", b"3:0.5"]
    alone = [ask(handler, line, "text/libsvm").body for line in lines]
    assert [ask(handler, b"\n".join(lines), "text/libsvm").body] == [
        b"".join(each for each in alone if isinstance(each, bytes))
    ]
    assert {"text/csv", "text/libsvm", "text/x-libsvm", "libsvm"} == set(handler.records)


@pytest.mark.peer("xgboost-container")
def test_an_empty_body_is_answered_by_204(served: Callable[..., XGBoost], logistic: xgboost.Booster) -> None:
    """As the container of SageMaker answers it."""
    assert ask(served(logistic), b"") == Reply(body=b"", content_type="text/csv", status=204)


def test_only_the_rounds_up_to_the_best_are_used(served: Callable[..., XGBoost]) -> None:
    """A model that was stopped early predicts as at its best round."""
    booster = train(rounds=8, objective="binary:logistic")
    booster.set_attr(best_iteration="2")
    wanted = booster.predict(xgboost.DMatrix(ROWS[:3]), iteration_range=(0, 3))
    assert ask(served(booster), csv(ROWS[:3])).body == "".join(str(each) + "\n" for each in wanted).encode()


@pytest.mark.parametrize("best", ["99", "-5", "9" * 30, "four", "\u0664"])
def test_a_best_round_that_the_file_has_not_is_passed_over(served: Callable[..., XGBoost], best: str) -> None:
    """As a model keeps it of which only the first rounds were saved."""
    booster = train(rounds=3, objective="binary:logistic")
    wanted = booster.predict(xgboost.DMatrix(ROWS[:1]))
    booster.set_attr(best_iteration=best)
    assert ask(served(booster), csv(ROWS[:1])).body == f"{wanted[0]!s}\n".encode()


def test_a_large_request_may_use_the_threads_of_the_model(
    served: Callable[..., XGBoost], logistic: xgboost.Booster
) -> None:
    """The answer is the same, for it and for the small one after it."""
    handler = served(logistic, threads=2)
    small = ask(handler, csv(ROWS[:1])).body
    rows = np.tile(ROWS, (30, 1))
    wanted = logistic.predict(xgboost.DMatrix(rows))
    assert ask(handler, csv(rows)).body == "".join(str(each) + "\n" for each in wanted).encode()
    assert ask(handler, csv(ROWS[:1])).body == small


@pytest.mark.parametrize("kind", ["text/csv", "application/x-npy"])
def test_a_large_request_is_scored_in_slices_beside_others(
    served: Callable[..., XGBoost], logistic: xgboost.Booster, kind: str
) -> None:
    """It shares no batch, and a small request is answered between two slices; the answer is the same."""
    handler = served(logistic)
    rows = np.tile(ROWS, (6000 // len(ROWS) + 1, 1))
    file = io.BytesIO()
    np.save(file, rows)
    body = csv(rows) if kind == "text/csv" else file.getvalue()
    wanted = logistic.predict(xgboost.DMatrix(rows))
    small = handler.decode(Request(body=csv(ROWS[:1]), content_type="text/csv"))
    large = handler.decode(Request(body=body, content_type=kind))
    assert large.large
    assert handler.compatible(large) is large
    assert handler.compatible(small) is not small

    turns = 0
    while True:
        (between,) = handler.predict([small])
        assert isinstance(between, Reply)
        (reply,) = handler.predict([large])
        turns += 1
        if reply is not None:
            break
    assert turns > 1
    assert isinstance(reply, Reply)
    assert reply.body == "".join(str(each) + "\n" for each in wanted).encode()


def test_a_large_csv_is_refused_with_the_number_of_its_row(
    served: Callable[..., XGBoost], logistic: xgboost.Booster
) -> None:
    """Once it is reached; before, where the runner asks for that."""
    handler = served(logistic)
    good = csv(ROWS)
    times = 2 * xgboost_handler.LARGE // len(good)
    body = good * times + b"1,x\n" + good
    message = re.escape(f"row {len(ROWS) * times + 1} has 2 columns")
    with pytest.raises(BadRequest, match=message):
        ask(handler, body)
    handler.slices = False
    with pytest.raises(BadRequest, match=message):
        handler.decode(Request(body=body, content_type="text/csv"))


@pytest.mark.peer("xgboost-container", differs="NaN and infinity are not JSON.")
def test_a_score_that_json_cannot_write_is_null(served: Callable[..., XGBoost]) -> None:
    """An overflown prediction is `inf` in CSV; JSON has no such number."""
    data = xgboost.DMatrix(ROWS, np.full(len(ROWS), 3e38, np.float32))
    booster = xgboost.train({"objective": "reg:gamma", "base_score": 1.6e38, "learning_rate": 5}, data, 1)
    rows = ROWS[:1]
    assert ask(served(booster), csv(rows)).body == b"inf\n"
    assert ask(served(booster), csv(rows), accept="application/json").body == b'{"predictions": [{"score": null}]}'


def test_the_default_accept_of_the_server_is_honoured_where_it_can_be(
    served: Callable[..., XGBoost], logistic: xgboost.Booster
) -> None:
    """Without Accept, or with any; an unknown default leaves CSV."""
    for default, wanted in [("application/json", "application/json"), ("image/png", "text/csv"), (None, "text/csv")]:
        handler = served(logistic, default_accept=default)
        for accept in ("", "*/*"):
            assert ask(handler, csv(ROWS[:1]), accept=accept).content_type == wanted


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "error", "message"),
    [
        (b"1,2,3\n", "text/csv", "", BadRequest, "row 1 has 3 columns; the model has 5 features"),
        (b"[[1, 2]]", "application/json", "", BadRequest, "row 1 has 2 columns; the model has 5 features"),
        (
            b"1 5:1",
            "text/libsvm",
            "",
            BadRequest,
            "a row has feature number 5; the model has 5 features, numbered from 0",
        ),
        (b"a,b,c,d,e\n1,2,3,4,5\n", "text/csv", "", BadRequest, "row 1, column 1: 'a' is not a number"),
        (b"1,2,3,4,5", "text/csv", "image/png", NotAcceptable, "Accept 'image/png' matches no format"),
        (b"\x00", "image/png", "", UnsupportedMediaType, "unsupported Content-Type: 'image/png'"),
        (
            b"PAR1",
            "application/x-parquet",
            "",
            UnsupportedMediaType,
            "unsupported Content-Type: 'application/x-parquet'",
        ),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(
    served: Callable[..., XGBoost],
    logistic: xgboost.Booster,
    body: bytes,
    content_type: str,
    accept: str,
    error: type[ServeError],
    message: str,
) -> None:
    """Before anything is predicted."""
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        served(logistic).decode(Request(body=body, content_type=content_type, accept=accept))


@pytest.mark.parametrize("name", ["model.ubj", "trees.json", "xgboost-model"])
def test_each_usual_name_of_a_model_file_loads(tmp_path: Path, logistic: xgboost.Booster, name: str) -> None:
    """Beside JSON files that are no models, hidden files and code."""
    kind = "json" if name.endswith("json") else "ubj"
    (tmp_path / name).write_bytes(bytes(logistic.save_raw(raw_format=kind)))
    for other in ("config.json", ".hidden.ubj", "model.toml"):
        (tmp_path / other).write_text("{}")
    (tmp_path / "code").mkdir()
    wanted = logistic.predict(xgboost.DMatrix(ROWS[:1]))[0]
    assert (
        ask(XGBoost(config_of(XGBoost, name="trees", directory=tmp_path)), csv(ROWS[:1])).body
        == str(wanted).encode() + b"\n"
    )


@pytest.mark.peer("xgboost-container", differs="A pickle can run code; allow_pickle or convert reads its booster.")
def test_a_pickle_is_refused_and_never_opened(tmp_path: Path, logistic: xgboost.Booster) -> None:
    """By its first byte, whatever its name and protocol; the message says the command that converts it."""

    class Trap:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("sprung").touch, ())

    for name in ("xgboost-model", "model.ubj", "model.pkl"):
        for protocol in (0, 1, 2, 4, 5):
            path = tmp_path / name
            path.write_bytes(pickle.dumps(Trap(), protocol))
            with pytest.raises(ModelUnusable, match=rf"^{name} is a pickle") as refused:
                XGBoost(config_of(XGBoost, name="trees", directory=tmp_path))
            assert f"python -m serve convert {name} model.ubj" in refused.value.hint
            path.unlink()
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_no_whole_model_is_named(tmp_path: Path, logistic: xgboost.Booster) -> None:
    """Cut short, empty, foreign."""
    ubj, json = (bytes(logistic.save_raw(raw_format=each)) for each in ("ubj", "json"))
    for name, content in [
        ("model.ubj", ubj[:-100]),
        ("model.ubj", ubj[:20]),
        ("model.ubj", b""),
        ("model.ubj", b"binf" + b"\0" * 100),
        ("model.json", json[:-100]),
        ("model.json", ubj[:-100]),
        ("model.json", b'{"learner": 3}'),
        ("model.json", b"{}"),
        ("xgboost-model", b"hello"),
        ("xgboost-model", json[:-1]),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ModelUnusable, match=rf"^{name} is not (a whole|an) XGBoost model"):
            XGBoost(config_of(XGBoost, name="trees", directory=tmp_path))
        path.unlink()


def test_a_binary_model_cut_anywhere_is_told_before_the_library_reads_it(logistic: xgboost.Booster) -> None:
    """The library's own reader runs past the end and may take the process with it."""
    whole = bytes(logistic.save_raw(raw_format="ubj"))
    file_formats.check(whole)
    for end in range(1, len(whole), 7):
        with pytest.raises(ValueError, match=r"^the file is truncated$"):
            file_formats.check(whole[:end])
    for wrong in (whole + b"}", b"{L" + b"\x7f" * 8, b"[" * 100_000, b"?", b"[$SL", b'{"learner": 3}'):
        with pytest.raises(ValueError, match=r"^(the file is|invalid byte|\d+ bytes follow)"):
            file_formats.check(wrong)


def test_a_directory_without_a_model_is_told_the_names_looked_for(tmp_path: Path) -> None:
    """What to save, and as what."""
    with pytest.raises(ModelUnusable, match=r"^there is no model.ubj, model.json or xgboost-model$"):
        XGBoost(config_of(XGBoost, name="trees", directory=tmp_path))


def test_importing_the_handlers_starts_no_thread() -> None:
    """A process that forks imports them; a thread there, or a tensor, would be lost in its children."""
    script = (
        "from serve.host.forkserver import import_framework;"
        "names = 'xgboost.handler', 'seq2seq.handler', 'huggingface.first_load', 'custom.handler', 'arrays.sklearn';"
        "modules = ['serve.handlers.' + name for name in names] + ['sklearn.pipeline'];"
        "[import_framework(module, modules) for module in modules];"
        "import sys, torch, pathlib;"
        "print(len(list(pathlib.Path('/proc/self/task').iterdir())), 'pyarrow' in sys.modules,"
        " torch.cuda.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout == "1 False False\n"

"""A model's own code is called as SageMaker's toolkits call it, and what it raises becomes the right error."""

import io
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from textwrap import dedent
from typing import Any

import joblib  # noqa: F401 - before each test has sys.modules of its own
import numpy as np
import pytest
import sklearn  # noqa: F401

from serve.errors import (
    BadRequest,
    DoesNotFit,
    InternalError,
    ModelUnusable,
    NotAcceptable,
    QueueFull,
    ServeError,
)
from serve.handlers.base import Reply, Request
from serve.handlers.custom import advice
from serve.handlers.custom.handler import Custom
from tests.unit.configs import config_of

TOYS = Path(__file__).parents[1] / "toys"


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner holds one model; the tests hold many, and must not see each other's code on sys.path."""
    import sys

    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "modules", sys.modules.copy())


@pytest.fixture
def served(tmp_path: Path) -> Callable[..., Custom]:
    def serve(code: str, **settings: Any) -> Custom:
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / "inference.py").write_text(dedent(code))
        return Custom(config_of(Custom, name="mine", directory=tmp_path, **settings))

    return serve


def outcome(handler: Custom, body: bytes = b"{}", content_type: str = "application/json", accept: str = "") -> Any:
    request = Request(body=body, content_type=content_type, accept=accept, id="7", headers={"x-a": "b"})
    return handler.predict([handler.decode(request)])[0]


def stream(reply: Any) -> list[bytes]:
    assert isinstance(reply, Reply)
    assert isinstance(reply.body, Iterator)
    return list(reply.body)


def toy(name: str, **options: Any) -> Custom:
    return Custom(config_of(Custom, name=name, directory=TOYS / name, options=options))


def json(text: str) -> Reply:
    return Reply(body=text.encode(), content_type="application/json")


@pytest.mark.peer("inference-toolkit")
def test_the_four_functions_are_called_in_turn(served: Callable[..., Custom], tmp_path: Path) -> None:
    """model_fn once with the directory, then input, predict and output with what the one before returned."""
    handler = served("""
        def model_fn(model_dir): return ["model", model_dir]
        def input_fn(body, content_type): return [body, content_type]
        def predict_fn(data, model): return [data, model]
        def output_fn(prediction, accept): return repr([prediction, accept])
    """)
    assert outcome(handler, b"{}", accept="text/csv, */*;q=0.1") == Reply(
        body=repr([[["{}", "application/json"], ["model", str(tmp_path)]], "text/csv"]).encode(),
        content_type="text/csv",
    )


@pytest.mark.peer("inference-toolkit")
def test_transform_fn_stands_for_three(served: Callable[..., Custom]) -> None:
    """With the model, the body, its type and the type asked for."""
    handler = served("""
        def model_fn(model_dir): return "m"
        def transform_fn(model, body, content_type, accept): return repr([model, body, content_type, accept])
    """)
    assert outcome(handler, b"\x00", "image/png") == json("['m', b'\\x00', 'image/png', 'application/json']")
    assert outcome(handler, b"1,2", "text/csv", "text/csv") == Reply(
        body=b"['m', '1,2', 'text/csv', 'text/csv']", content_type="text/csv"
    )


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ("data, model", False),
        ("data, model, context", True),
        ("data, model, ctx=None", True),
        ("data, model, anything", True),
        ("data, model, device='cpu'", False),
        ("*args", False),
        ("data, model=None", False),
    ],
)
def test_a_context_is_passed_to_those_that_ask_for_it(
    served: Callable[..., Custom], parameters: str, told: bool
) -> None:
    """A third parameter that must be given, or is named so; a default of another meaning is left alone."""
    handler = served(f"""
        def predict_fn({parameters}):
            last = list(locals().values())[-1]
            context = last if hasattr(last, "request_id") else None
            return [context.model_name, context.request_id, context.headers["x-a"]] if context else None
    """)
    assert outcome(handler) == json('["mine","7","b"]' if told else "null")


@pytest.mark.peer("inference-toolkit")
def test_every_function_may_take_a_context(served: Callable[..., Custom]) -> None:
    """As the last argument."""
    handler = served(
        """
        def model_fn(model_dir, context): return [context.options["size"], context.request_id]
        def input_fn(body, content_type, context): return context.request_id
        def predict_fn(data, model, context): return [data, model, context.request_id]
        def output_fn(prediction, accept, context): return repr([prediction, context.request_id])
        """,
        options={"size": 3},
    )
    assert outcome(handler) == json("[['7', [3, ''], '7'], '7']")


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        (b'{"a": [1, null]}', "application/json", "{'a': [1, None]}"),
        (b'{"a": 1}', "", "{'a': 1}"),
        (b'{"a": 1}', "application/ld+json", "{'a': 1}"),
        (b"1,2\n3,4.5\n", "text/csv", "array([[1. , 2. ],\n       [3. , 4.5]])"),
        ("ä".encode(), "text/plain", "'ä'"),
        (b"\x00\xff", "image/png", "b'\\x00\\xff'"),
    ],
)
def test_without_input_fn_the_usual_types_are_read(
    served: Callable[..., Custom], body: bytes, content_type: str, shown: str
) -> None:
    """JSON to objects, CSV to an array, text to str, the rest to bytes."""
    handler = served("def predict_fn(data, model): return repr(data)")
    assert outcome(handler, body, content_type, "text/plain").body == shown.encode()


@pytest.mark.peer("inference-toolkit", differs="the toolkits unpickle a request, which runs code of the caller")
def test_an_npy_is_read_without_pickle(served: Callable[..., Custom]) -> None:
    """Numbers of any shape, writable; objects are refused."""
    handler = served("""
        def predict_fn(data, model):
            data += 1
            return data
    """)
    numbers, objects = io.BytesIO(), io.BytesIO()
    np.save(numbers, np.zeros((2, 1, 2), np.int16))
    np.save(objects, np.array([None]), allow_pickle=True)
    assert outcome(handler, numbers.getvalue(), "application/x-npy") == json("[[[1,1]],[[1,1]]]")
    with pytest.raises(BadRequest, match="numbers are needed"):
        outcome(handler, objects.getvalue(), "application/x-npy")


@pytest.mark.parametrize(
    ("prediction", "accept", "body"),
    [
        ("{'a': np.float32(0.5), 'b': np.arange(2), 'c': 'ä'}", "", '{"a":0.5,"b":[0,1],"c":"ä"}'),
        ("np.array([[1, 2], [3, 4]])", "text/csv", "1,2\n3,4\n"),
        ("[0.5, 'a,b']", "text/csv", '0.5\n"a,b"\n'),
        ("7", "text/csv", "7\n"),
        ("'plain'", "text/plain", "plain"),
    ],
)
def test_without_output_fn_the_usual_types_are_written(
    served: Callable[..., Custom], prediction: str, accept: str, body: str
) -> None:
    """Arrays and numpy's scalars are written as numbers."""
    handler = served(f"""
        import numpy as np
        def predict_fn(data, model): return {prediction}
    """)
    assert outcome(handler, accept=accept) == Reply(body=body.encode(), content_type=accept or "application/json")


def test_an_npy_is_written(served: Callable[..., Custom]) -> None:
    """And reads back as the same array."""
    handler = served("def predict_fn(data, model): return [[1.5, 2]]")
    found = np.load(io.BytesIO(outcome(handler, accept="application/x-npy").body), allow_pickle=False)
    assert np.array_equal(found, np.array([[1.5, 2]]))


@pytest.mark.peer("inference-toolkit")
def test_output_fn_may_name_the_content_type(served: Callable[..., Custom]) -> None:
    """By a pair."""
    handler = served("""
        def predict_fn(data, model): return b"png"
        def output_fn(prediction, accept): return prediction, "image/png"
    """)
    assert outcome(handler) == Reply(body=b"png", content_type="image/png")


@pytest.mark.parametrize(
    ("yields", "accept", "content_type", "chunks"),
    [
        ("'a', 'b'", "", "text/plain", [b"a", b"b"]),
        ("b'a', b'b'", "", "application/octet-stream", [b"a", b"b"]),
        ("{'a': 1}, [2]", "", "application/jsonlines", [b'{"a":1}\n', b"[2]\n"]),
        ("'data: x'", "text/event-stream", "text/event-stream", [b"data: x"]),
    ],
)
def test_a_generator_is_a_stream(
    served: Callable[..., Custom], yields: str, accept: str, content_type: str, chunks: list[bytes]
) -> None:
    """From predict_fn as from transform_fn; a chunk for each item."""
    transform = f"""
        def transform_fn(model, body, content_type, accept):
            for each in [{yields}]: yield each
    """
    predict = f"""
        def predict_fn(data, model):
            for each in [{yields}]: yield each
        def output_fn(prediction, accept): return prediction
    """
    for code in (transform, predict):
        reply = outcome(served(code), accept=accept)
        assert reply.content_type == content_type
        assert stream(reply) == chunks


def test_a_stream_that_is_dropped_closes_its_generator(served: Callable[..., Custom], tmp_path: Path) -> None:
    """What the code holds for it is released when the caller hangs up."""
    handler = served(f"""
        from pathlib import Path
        def predict_fn(data, model):
            try:
                while True: yield "x"
            finally:
                Path({str(tmp_path)!r}, "closed").touch()
    """)
    body = outcome(handler).body
    assert next(body) == b"x"
    body.close()
    assert (tmp_path / "closed").exists()


def test_an_error_before_the_first_chunk_is_an_error(served: Callable[..., Custom]) -> None:
    """After it the stream breaks off, for the loop to cut."""
    handler = toy("stream")
    early = outcome(handler, b'{"chunks": 2, "fail_after": 0}')
    assert isinstance(early, InternalError)
    assert early.message == "inference.py predict_fn raised RuntimeError: broke off"
    late = outcome(handler, b'{"chunks": 2, "fail_after": 1}').body
    assert next(late) == b"chunk 0\n"
    with pytest.raises(RuntimeError, match="broke off"):
        next(late)


@pytest.mark.peer("inference-toolkit", differs="the toolkits answer 500; a ValueError of input_fn is about the request")
@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        ("ValueError('no such column')", BadRequest, "inference.py input_fn: ValueError: no such column"),
        ("KeyError('inputs')", BadRequest, "inference.py input_fn: KeyError: 'inputs'"),
        ("TypeError('a list is needed')", BadRequest, "inference.py input_fn: TypeError: a list is needed"),
        ("RuntimeError", InternalError, "inference.py input_fn raised RuntimeError"),
        ("QueueFull('later')", QueueFull, "later"),
    ],
)
def test_what_input_fn_raises_is_the_callers_fault_if_it_is_about_values(
    served: Callable[..., Custom], raised: str, error: type[ServeError], message: str
) -> None:
    """Else it is ours; our own errors pass through."""
    handler = served(f"""
        from serve.errors import QueueFull
        def input_fn(body, content_type): raise {raised}
        def predict_fn(data, model): return data
    """)
    with pytest.raises(error) as refused:
        outcome(handler)
    assert (type(refused.value), refused.value.message) == (error, message)


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        ("1 / 0", InternalError, "inference.py predict_fn raised ZeroDivisionError: division by zero"),
        ("raise ValueError('x')", InternalError, "inference.py predict_fn raised ValueError: x"),
        ("raise MemoryError('5 GB')", DoesNotFit, "inference.py predict_fn: out of memory: MemoryError: 5 GB"),
        ("raise BadRequest('inputs is empty')", BadRequest, "inputs is empty"),
    ],
)
def test_what_predict_fn_raises_is_named_without_a_traceback(
    served: Callable[..., Custom], raised: str, error: type[ServeError], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The traceback is in the log."""
    handler = served(f"""
        from serve.errors import BadRequest
        def predict_fn(data, model): {raised}
    """)
    failed = outcome(handler)
    assert (type(failed), failed.message) == (error, message)
    assert [bool(record.exc_info) for record in caplog.records] == ([] if error is BadRequest else [True])


def test_what_output_fn_gets_wrong_is_named(served: Callable[..., Custom]) -> None:
    """An error, or a value that is no body."""
    handler = served("""
        def predict_fn(data, model): return data
        def output_fn(prediction, accept): return None if prediction else 1 / 0
    """)
    assert outcome(handler, b"1").message == (
        "inference.py output_fn raised TypeError: returned None; a body is needed: bytes, str, or a value to write"
    )
    assert outcome(handler, b"0").message == "inference.py output_fn raised ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "error"),
    [
        (b"[" * 10_000, "application/json", "", BadRequest),
        (b"{", "application/json", "", BadRequest),
        (b'"\xff"', "application/json", "", BadRequest),
        (b"\xff", "text/plain", "", BadRequest),
        (b"a,b\n1,2\n", "text/csv", "", BadRequest),
        (b"1,2\n3\n", "text/csv", "", BadRequest),
        (b"", "text/csv", "", BadRequest),
        (b"{}", "application/json", "image/png", NotAcceptable),
    ],
)
def test_a_request_that_cannot_be_read_is_refused(
    served: Callable[..., Custom], body: bytes, content_type: str, accept: str, error: type[ServeError]
) -> None:
    """Before the model's code is called."""
    handler = served("def predict_fn(data, model): return data")
    with pytest.raises(error):
        handler.decode(Request(body=body, content_type=content_type, accept=accept))


def test_a_prediction_that_is_no_table_is_not_written_as_csv(served: Callable[..., Custom]) -> None:
    """406 rather than Python's own notation."""
    assert isinstance(outcome(served("def predict_fn(data, model): return {'a': 1}"), accept="text/csv"), NotAcceptable)


def test_predict_batch_fn_runs_a_batch(served: Callable[..., Custom]) -> None:
    """Requests share one call, and each gets its own answer."""
    handler = toy("batch")
    items = [
        handler.decode(Request(body=b'{"id": %d}' % number, content_type="application/json")) for number in range(3)
    ]
    assert len({handler.compatible(item) for item in items}) == 1
    assert handler.predict(items) == [json(f'{{"pid":{os.getpid()},"batch":3,"id":{number}}}') for number in range(3)]


def test_a_batch_that_fails_raises_for_the_loop_to_try_one_by_one(served: Callable[..., Custom]) -> None:
    """So does one that returns too few predictions."""
    with pytest.raises(InternalError, match="predict_batch_fn raised ValueError: told to fail"):
        outcome(toy("batch"), b'{"fail": true}')
    with pytest.raises(InternalError, match="returned 0 predictions for 1 requests"):
        outcome(served("def predict_batch_fn(batch, model): return []"))


def test_without_predict_batch_fn_requests_run_alone(served: Callable[..., Custom]) -> None:
    """So that each is answered as soon as it is done."""
    handler = served("def predict_fn(data, model): return data")
    items = [handler.decode(Request(body=b"1", content_type="application/json")) for _ in range(2)]
    assert handler.compatible(items[0]) != handler.compatible(items[1])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def predict_fn(data): ...", "inference.py predict_fn(data) cannot be called with (data, model)"),
        ("def predict_fn(a, b, c, d): ...", "inference.py predict_fn(a, b, c, d) cannot be called with (data, model)"),
        ("x = 1", "the code has no predict_fn, predict_batch_fn or transform_fn, and there is no model_fn"),
        (
            "def model_fn(d): return [1]",
            "the code has no predict_fn, predict_batch_fn or transform_fn, and model_fn",
        ),
        ("def modle_fn(d): ...\ndef predict_fn(data, model): ...", "inference.py has a function modle_fn"),
        (
            "def transform_fn(m, b, c, a): ...\ndef input_fn(b, c): ...",
            "inference.py has transform_fn and also input_fn",
        ),
        ("import no_such_module", "code/inference.py cannot be imported: ModuleNotFoundError: No module named"),
        ("def", "code/inference.py cannot be imported: SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "code/inference.py cannot be imported: SystemExit: 3"),
        (
            "def model_fn(d): raise ValueError('weights are corrupt')\ndef predict_fn(data, model): ...",
            "inference.py model_fn raised ValueError: weights are corrupt",
        ),
    ],
)
def test_code_that_cannot_serve_makes_the_model_unusable(
    served: Callable[..., Custom], code: str, message: str
) -> None:
    """At load, naming the file and the function."""
    with pytest.raises(ModelUnusable) as refused:
        served(code)
    assert refused.value.message.startswith(message)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("import no_such_module.part", "put no-such-module into code/lib (pip install --target code/lib ...)"),
        ("from PIL import Image", "put pillow into code/lib"),
        ("from sklearn.externals import joblib", f"sklearn {metadata.version('scikit-learn')} is installed"),
        ("import sagemaker_inference.no_such_part", "the server's sagemaker_inference has only"),
        ("from sagemaker_inference import no_such_part", "the server's sagemaker_inference has only"),
        ("import os\nos.environ['SM_CHANNEL_TRAINING']", "the log has the traceback"),
        ("def model_fn(d): import no_such_module\ndef predict_fn(data, model): ...", "put no-such-module into"),
        (
            "import io, joblib\ndef model_fn(d): joblib.load(io.BytesIO(b'x'))\ndef predict_fn(data, model): ...",
            "a pickle needs the package versions that wrote it",
        ),
    ],
)
def test_what_an_import_lacks_is_told_with_where_to_put_it(served: Callable[..., Custom], code: str, hint: str) -> None:
    """By the name of its package, and in which version it is here, if it is; no such advice for other errors."""
    with pytest.raises(ModelUnusable) as refused:
        served(code)
    assert hint in refused.value.hint


def test_frameworks_that_an_image_may_have_are_told_with_how_it_gets_them(
    served: Callable[..., Custom], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every image has been built with scikit-learn."""
    monkeypatch.setattr(advice, "find_spec", lambda _: None)
    with pytest.raises(ModelUnusable) as refused:
        served("raise ModuleNotFoundError('No module named joblib', name='joblib')")
    assert refused.value.hint.endswith(
        "; or install it for all models: pip install 'sagemaker-serve[sklearn]', "
        'or build the image with --build-arg EXTRAS="sklearn"'
    )


def test_packages_for_another_python_are_named(served: Callable[..., Custom], tmp_path: Path) -> None:
    """Vendored where another one runs: what the import says itself would lead nowhere."""
    (tmp_path / "code" / "lib" / "fast").mkdir(parents=True)
    (tmp_path / "code" / "lib" / "fast" / "_c.cpython-39-x86_64-linux-gnu.so").touch()
    (tmp_path / "code" / "lib" / "fast" / "__init__.py").write_text("from fast import _c")
    with pytest.raises(ModelUnusable) as refused:
        served("import fast")
    assert refused.value.hint.startswith("code/lib/fast/_c.cpython-39-x86_64-linux-gnu.so is for another Python")


def test_a_helper_with_a_name_like_a_functions_is_left_alone(served: Callable[..., Custom]) -> None:
    """Where the function itself is there, or the name is private."""
    handler = served("""
        def predict_fn(data, model): return inputs_fn(_output_fn(data))
        def input_fn(body, content_type): return 1
        def inputs_fn(data): return data
        def _output_fn(data): return data
    """)
    assert outcome(handler) == json("1")


def test_memory_that_model_fn_lacks_is_not_the_models_fault(served: Callable[..., Custom]) -> None:
    """An ENOMEM of the system is the same thing said otherwise."""
    with pytest.raises(DoesNotFit):
        served("def model_fn(d): raise MemoryError\ndef predict_fn(data, model): ...")
    with pytest.raises(DoesNotFit):
        served("def model_fn(d): raise OSError(12, 'Cannot allocate memory')\ndef predict_fn(data, model): ...")


def test_code_may_have_another_name_and_modules_beside_it(tmp_path: Path) -> None:
    """`program` of the options names it; code/ and code/lib/ are on its path."""
    (tmp_path / "code" / "lib").mkdir(parents=True)
    (tmp_path / "code" / "beside_it.py").write_text("A = 1")
    (tmp_path / "code" / "lib" / "in_its_lib.py").write_text("B = 2")
    (tmp_path / "code" / "entry.py").write_text(
        "import beside_it, in_its_lib\ndef predict_fn(data, model): return beside_it.A + in_its_lib.B"
    )
    handler = Custom(config_of(Custom, name="mine", directory=tmp_path, options={"program": "entry.py"}))
    assert outcome(handler) == json("3")
    with pytest.raises(ModelUnusable, match=r"^there is no code/inference.py$"):
        Custom(config_of(Custom, name="mine", directory=tmp_path))


def test_the_toys_do_what_their_names_say(tmp_path: Path) -> None:
    """The live tests rely on them; those that kill their process are tried there."""
    pid = os.getpid()
    assert outcome(toy("echo"), b"abc", "image/png") == Reply(body=b"%d:abc" % pid, content_type="image/png")
    assert outcome(toy("echo", reverse=True), b"abc", "text/x").body == b"%d:cba" % pid
    assert outcome(toy("slow"), b'{"seconds": 0.01}') == json(f'{{"pid":{pid},"seconds":0.01}}')
    assert outcome(toy("hungry")) == json(f'{{"pid":{pid},"mb":64}}')
    assert outcome(toy("crash"), b'{"crash": false}') == json(f'{{"pid":{pid},"data":{{"crash":false}}}}')
    assert outcome(toy("stuck")) == json(f'{{"pid":{pid}}}')
    assert stream(outcome(toy("stream"), b'{"chunks": 2}')) == [b"chunk 0\n", b"chunk 1\n"]
    with pytest.raises(ModelUnusable, match=r"^inference.py model_fn raised ValueError: weights are corrupt$"):
        toy("badload")

"""The `context` of model code: the names of multi-model-server and TorchServe, and what its use makes of the answer."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from serve.errors import InternalError, ModelRefused
from serve.handlers.base import Reply, Request
from serve.handlers.custom.context import HOP_BY_HOP, MOST, OURS, Context, RequestProcessor
from serve.handlers.custom.handler import Custom
from tests.unit.configs import config_of

# Recorded from mms/context.py of multi-model-server 1.1.11 and ts/context.py of TorchServe 0.12.0.
CONTEXT = """get_all_request_header get_request_header get_request_id get_response_content_type get_response_headers
get_response_status get_sequence_id header_key_sequence_end header_key_sequence_id header_key_sequence_start manifest
metrics model_name model_yaml_config request_ids request_processor set_all_response_status set_response_content_type
set_response_header set_response_status stopping_criteria system_properties"""
PROCESSOR = """add_response_property get_request_properties get_request_property get_response_header
get_response_headers get_response_status_code get_response_status_phrase report_status"""
METRICS = """add_counter add_error add_metric add_metric_to_cache add_percent add_size add_time cache get_metric
model_name request_ids set_request_ids store"""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Custom]:
    import sys

    monkeypatch.setattr(sys, "path", sys.path.copy())

    def serve(code: str, **settings: Any) -> Custom:
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / "inference.py").write_text(dedent(code))
        return Custom(config_of(Custom, name="mine", directory=tmp_path, **settings))

    return serve


def outcomes(handler: Custom, *bodies: bytes, headers: dict[str, str] | None = None) -> list[Any]:
    requests = [
        Request(body=body, content_type="application/json", id=str(number), headers=headers or {})
        for number, body in enumerate(bodies)
    ]
    return list(handler.predict([handler.decode(request) for request in requests]))


def of_peers() -> Context:
    """A context of two requests, made as both servers make theirs."""
    context = Context("m", "/d", {"a": 1}, 2, None, "1")
    context.request_ids = {0: "r0", 1: "r1"}
    context.request_processor = [RequestProcessor({"Accept": "a/b"}), RequestProcessor({})]
    return context


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("which", "names"),
    [("Context", CONTEXT), ("Context of a load", CONTEXT), ("RequestProcessor", PROCESSOR), ("metrics", METRICS)],
)
def test_each_public_name_of_the_model_servers_is_there(served: Callable[..., Custom], which: str, names: str) -> None:
    """Every public method and attribute of mms.context, ts.context and their metrics exists in `context`."""
    loading = served("def predict_fn(data, model): ...")._context
    found = {
        "Context": of_peers(),
        "Context of a load": loading,
        "RequestProcessor": of_peers().request_processor[0],
        "metrics": loading.metrics,
    }[which]
    assert [name for name in names.split() if not hasattr(found, name)] == []


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("steps", "result"),
    [
        ("c.get_response_status(0)", (200, None)),
        ("c.set_response_status(404, 'no such user', 1); c.get_response_status(1)", (404, "no such user")),
        ("c.set_response_status(404); (c.get_response_status(0), c.get_response_status(1))", ((404, ""), (200, None))),
        ("c.set_all_response_status(503, 'x'); [c.get_response_status(i) for i in (0, 1)]", [(503, "x")] * 2),
        ("c.set_response_status(None); c.get_response_status(0)", (None, "")),
        ("c.request_processor[0].report_status(418); c.get_response_status(0)", (418, None)),
        ("c.get_response_headers(0)", {}),
        (
            "c.set_response_header(0, 'A', 'b'); (c.get_response_headers(0), c.get_response_headers(1))",
            ({"A": "b"}, {}),
        ),
        ("c.set_response_content_type(0, 'a/b'); c.get_response_headers(0)", {"content-type": "a/b"}),
        ("c.set_response_header(0, 'content-type', 'a/b'); c.get_response_content_type(0)", "a/b"),
        ("c.set_response_header(0, 'Content-Type', 'a/b'); c.get_response_content_type(0)", None),
        (
            "c.request_processor[1].add_response_property('K', 'v'); c.request_processor[1].get_response_header('K')",
            "v",
        ),
        ("c.request_processor[1].get_response_header('k')", None),
        ("(c.get_request_id(), c.get_request_id(1), c.get_request_id(2))", ("r0", "r1", None)),
        ("(c.get_request_header(0, 'Accept'), c.get_request_header(1, 'Accept'))", ("a/b", None)),
        ("c.get_all_request_header(0)", {"Accept": "a/b"}),
        ("c.request_processor[0].get_request_properties()", {"Accept": "a/b"}),
        ("c.request_processor[0].get_request_property('None')", None),
        ("c.get_sequence_id(0)", None),
        ("c.get_request_header(2, 'Accept')", IndexError),
        ("c.set_response_status(200, '', 2)", IndexError),
        ("c.request_processor = None; c.set_response_status(500); c.request_processor", None),
        ("c.request_processor = None; c.set_all_response_status(500)", TypeError),
        ("c.request_ids = None; c.get_request_id(0)", None),
        ("c.manifest", {"a": 1}),
        ("c.system_properties['batch_size'], c.system_properties['server_name']", (2, "MMS")),
    ],
)
def test_a_context_behaves_as_those_of_the_model_servers(steps: str, result: Any) -> None:
    """Each method has the results that multi-model-server's and TorchServe's give for the same calls."""
    *before, last = steps.split("; ")
    scope = {"c": of_peers()}
    for each in before:
        exec(each, scope)
    if isinstance(result, type):
        with pytest.raises(result):
            eval(last, scope)  # noqa: S307
    else:
        assert eval(last, scope) == result  # noqa: S307


SET = """
    context.set_response_status(code=404, phrase="no such user")
    context.set_response_header(0, "X-Amzn-SageMaker-Closed-Session-Id", "abc")
    context.request_processor[0].add_response_property("Cache-Control", "no-store")
"""
ANSWER = {
    "status": 404,
    "reason": "no such user",
    "headers": {"X-Amzn-SageMaker-Closed-Session-Id": "abc", "Cache-Control": "no-store"},
}


def setting(definition: str, returns: str) -> str:
    return f"def {definition}:{dedent(SET)}".replace("\n", "\n    ") + f"\n    return {returns}\n"


PREDICT = "def predict_fn(data, model): return data\n"
FUNCTIONS = {
    "input_fn": setting("input_fn(body, content_type, context)", "[1]") + PREDICT,
    "predict_fn": setting("predict_fn(data, model, context)", "data"),
    "output_fn": PREDICT + setting("output_fn(prediction, accept, context)", "'[1]'"),
    "a pair": PREDICT + setting("output_fn(prediction, accept, context)", "'[1]', 'application/json'"),
    "transform_fn": setting("transform_fn(model, body, content_type, accept, context)", "'[1]'"),
    "predict_batch_fn": setting("predict_batch_fn(data, model, context)", "data"),
}


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_status_and_headers_that_the_code_sets_are_those_of_the_answer(
    served: Callable[..., Custom], function: str
) -> None:
    """Whichever function sets them, the answer has the status, its phrase and the headers, and keeps its body."""
    expected = Reply(body=b"[1]", content_type="application/json", **ANSWER)  # type: ignore[arg-type]
    assert outcomes(served(FUNCTIONS[function]), b"[1]") == [expected]


@pytest.mark.peer("inference-toolkit")
def test_a_status_is_that_of_one_request(served: Callable[..., Custom]) -> None:
    """One request's status is not the next one's; predict_batch_fn sets each by its index, or all."""
    alone = served("""
        def predict_fn(data, model, context):
            if data: context.set_response_status(code=data)
            return data
    """)
    assert [each.status for body in (b"404", b"0", b"503") for each in outcomes(alone, body)] == [404, 200, 503]
    together = served("""
        def predict_batch_fn(data, model, context):
            context.set_all_response_status(202)
            context.set_response_status(404, "", 1)
            size = context.system_properties["batch_size"]
            return [[context.get_request_id(index), size] for index in range(len(data))]
    """)
    assert [(each.status, json.loads(each.body)) for each in outcomes(together, b"1", b"2", b"3")] == [
        (202, ["0", 3]),
        (404, ["1", 3]),
        (202, ["2", 3]),
    ]


def test_a_stream_has_the_status_and_the_headers(served: Callable[..., Custom]) -> None:
    """They count if they are set before the first chunk."""
    handler = served("""
        def predict_fn(data, model, context):
            context.set_response_status(206)
            context.set_response_header(0, "X-A", "b")
            yield "c"
    """)
    (reply,) = outcomes(handler, b"0")
    assert (reply.status, reply.headers, isinstance(reply.body, Iterator)) == (206, {"X-A": "b"}, True)


def test_a_status_without_a_body_has_none(served: Callable[..., Custom]) -> None:
    """HTTP has no body with 204 and 304."""
    handler = served("""
        def predict_fn(data, model, context):
            context.set_response_status(data)
            return data
    """)
    assert [each.body for status in (b"204", b"205", b"304", b"200") for each in outcomes(handler, status)] == [
        b"",
        b"",
        b"",
        b"200",
    ]


SETS = {
    "the context": """
        def predict_fn(data, model, context):
            context.set_response_header(0, {name!r}, {value!r})
            return data
    """,
    "a response of Flask": """
        from sagemaker_containers.beta.framework import worker
        def predict_fn(data, model): return data
        def output_fn(prediction, accept):
            response = worker.Response("1")
            response.headers._list.append(({name!r}, {value!r}))
            return response
    """,
}
ORDERS = ["X-Accel-Redirect", "x-accel-buffering", "X-Accel-Anything", "X-Serve-Socket", "x-serve-tried"]


@pytest.mark.parametrize("way", SETS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, "1") for name in (*sorted(HOP_BY_HOP), "Transfer-Encoding", *ORDERS)],
        *[(name, "1") for name in ("", "a b", "a:b", "a\r\nb", "ä", "a\0")],
        *[("X-A", value) for value in ("a\r\nX-B: c", "a\nb", "a\0", "日本", "a\x7f")],
        ("X-A", "a" * MOST),
    ],
)
def test_a_header_that_model_code_must_not_set_is_refused(
    served: Callable[..., Custom], way: str, name: str, value: str
) -> None:
    """Hop-by-hop headers, orders to nginx, names and values that would end the header: 500, with the reason."""
    (failed,) = outcomes(served(dedent(SETS[way]).format(name=name, value=value)), b"1")
    assert isinstance(failed, InternalError)
    assert "header" in failed.message


def test_a_header_that_the_server_sets_is_refused_or_its_own(served: Callable[..., Custom]) -> None:
    """Flask adds some of them to each response: they are left out there."""
    for name in OURS:
        (failed,) = outcomes(served(dedent(SETS["the context"]).format(name=name, value="1")), b"1")
        assert f"the header {name} cannot be set" in failed.message
        (reply,) = outcomes(served(dedent(SETS["a response of Flask"]).format(name=name, value="1")), b"1")
        assert (reply.body, reply.headers) == (b"1", {})


@pytest.mark.parametrize("status", [0, 100, 199, 600, -1, True, "404", 404.0])
def test_a_status_that_is_not_one_is_refused(served: Callable[..., Custom], status: Any) -> None:
    """500, which names the value."""
    handler = served(f"""
        def predict_fn(data, model, context):
            context.set_response_status({status!r})
            return data
    """)
    (failed,) = outcomes(handler, b"1")
    assert f"{status!r} is no final status of HTTP" in failed.message


@pytest.mark.parametrize(
    "sets",
    [
        "context.set_response_content_type(0, 'text/x\\r\\nX-B: c')",
        "context.set_response_header(0, 'Content-Type', 'text/x\\nb')",
        "return 'a', 'text/x\\r\\nX-B: c'",
    ],
)
def test_a_content_type_cannot_end_its_header(served: Callable[..., Custom], sets: str) -> None:
    """Whichever way the code states it."""
    handler = served(f"""
        def predict_fn(data, model): return data
        def output_fn(prediction, accept, context):
            {sets}
            return "a"
    """)
    (failed,) = outcomes(handler, b"1")
    assert "content type" in failed.message


def test_the_request_headers_are_found_in_any_case(served: Callable[..., Custom]) -> None:
    """The server has lost their case; code looks them up as its SDK spells them."""
    handler = served("""
        def predict_fn(data, model, context):
            found = context.request_processor[0].get_request_properties()
            names = ["X-Amzn-SageMaker-Session-Id", "x-amzn-sagemaker-session-id", "X-Amzn-Sagemaker-Session-Id"]
            asked = lambda name: context.get_request_header(0, name)
            return [[found[name], found.get(name), name in found, asked(name)] for name in names]
    """)
    (reply,) = outcomes(handler, b"0", headers={"x-amzn-sagemaker-session-id": "abc"})
    assert json.loads(reply.body) == [["abc", "abc", True, "abc"]] * 3


@pytest.mark.parametrize(("error", "status"), [(403, 403), (409, 409), (422, 422), (429, 429), (501, 501), (503, 503)])
def test_an_error_of_a_toolkit_has_any_status(served: Callable[..., Custom], error: int, status: int) -> None:
    """Also one that no error of the server has."""
    handler = served(f"""
        from sagemaker_inference import errors
        def predict_fn(data, model): raise errors.GenericInferenceToolkitError({error}, "as told")
    """)
    (failed,) = outcomes(handler, b"0")
    assert (type(failed), failed.status, failed.message) == (ModelRefused, status, "as told")


@pytest.mark.peer("inference-toolkit")
def test_metrics_are_log_events(served: Callable[..., Custom], caplog: pytest.LogCaptureFixture) -> None:
    """context.metrics takes the calls of both servers; each value is in the log with model and request."""
    handler = served("""
        from mms.metrics.dimension import Dimension
        def model_fn(model_dir, context): context.metrics.add_time("Load", 1.5, None, "s")
        def predict_fn(data, model, context):
            metrics = context.metrics
            metrics.add_counter("Rows", 3, 0, [Dimension("Kind", "csv")])
            metrics.add_size("Size", 2, unit="kB")
            metrics.add_percent("Hits", 50)
            metrics.add_error("Bad", "text")
            metrics.add_metric("A", 1, 0, "bytes")
            metrics.add_metric("B", 1, "bytes", 0)
            metrics.add_metric_to_cache("C", "count", ["Kind"]).add_or_update(7, ["x"])
            metrics.get_metric("C").add_or_update(8, ["y"], "r")
            return data
    """)
    with caplog.at_level(logging.INFO):
        handler = served(Path(handler._context.model_dir, "code", "inference.py").read_text())
        outcomes(handler, b"0")
    found = [vars(record) for record in caplog.records if record.getMessage() == "metric"]
    assert [(each["metric"], each["value"], each["unit"], each["dimensions"]) for each in found] == [
        ("Load", 1.5, "s", {}),
        ("Rows", 3, "count", {"Kind": "csv"}),
        ("Size", 2, "kB", {}),
        ("Hits", 50, "percent", {}),
        ("Bad", "text", "", {}),
        ("A", 1, "bytes", {}),
        ("B", 1, "bytes", {}),
        ("C", 7, "count", {"Kind": "x"}),
        ("C", 8, "count", {"Kind": "y"}),
    ]
    assert {each["model"] for each in found} == {"mine"}
    assert [each["request_id"] for each in found] == ["", *["0"] * 6, "", "r"]


def test_a_manifest_is_that_of_the_archive(served: Callable[..., Custom], tmp_path: Path) -> None:
    """MAR-INF/MANIFEST.json, else one for a directory."""
    code = "def predict_fn(data, model, context): return context.manifest"
    assert json.loads(outcomes(served(code), b"0")[0].body)["model"]["modelName"] == "mine"
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text('{"runtime": "python3"}')
    assert json.loads(outcomes(served(code), b"0")[0].body) == {"runtime": "python3"}

"""Any JSON body to a Hugging Face model gets an answer or a 4xx, from decoding or from the model."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import ServeError, TooLate
from serve.handlers.base import Reply, Request
from serve.handlers.generation import openai, parameters
from serve.handlers.seq2seq.handler import Seq2Seq
from serve.handlers.seq2seq.request import Seq2SeqParameters
from serve.http.addresses import CHAT, COMPLETIONS, INVOCATIONS
from tests.live import tiny
from tests.unit.configs import config_of
from tests.unit.test_encoders import TASKS
from tests.unit.test_generation_toys import Asked, handler_of, save_toy

NUMBERS = [0, 1, 2, 3, 64, 1024, 2**31 - 1, 2**63, 10**30, -1, 0.0, 0.5, 1.0, 1.5, 1e-300, 1e308, -0.5]
TEXTS = ["", "ab", "ba be", "[MASK] ba", "w1 w2", "\0", "é", "ba " * 200, "first", "simple", "sigmoid", "ba,da", "{} x"]
ODD = [
    {"text": "ba", "text_pair": "be"},
    {"question": "ba", "context": "be bi"},
    {"question": ["ba"], "context": ["b"]},
]
PAIRS = [[[[1, 2], 0.5]], [2, 1.5], [[1, 2]], {"truncation": True, "max_length": 1}, {"greenlist_ratio": 0.5}]
VALUES = st.recursive(
    st.sampled_from([None, True, False, *NUMBERS, *TEXTS, *ODD, *PAIRS]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "role", "content", "a"]), inner)
    ),
    max_leaves=4,
)
GOOD = {"inputs": "ba be", "messages": [{"role": "user", "content": "ab"}], "prompt": "ab"}


def asked(kind: type, field: str, inside: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies of one to three fields of `kind`, most of them with a good `field` beside."""
    fields = st.dictionaries(st.sampled_from(kind.__struct_fields__), VALUES, min_size=1, max_size=3)  # type: ignore[attr-defined]
    given = st.just(GOOD[field]) | st.just(GOOD[field]) | VALUES
    if not inside:
        return st.builds(lambda more, first: {field: first, "max_tokens": 3} | more, fields, given)
    return st.builds(lambda more, first: {field: first, "parameters": more}, fields | VALUES, given)


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    toy = save_toy(tmp_path_factory.mktemp("toy"))
    (toy / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}")
    tiny.bart(bart := tmp_path_factory.mktemp("bart"))
    made: dict[str, Any] = {
        "generation": handler_of(toy, max_batch=4),
        "seq2seq": Seq2Seq(config_of(Seq2Seq, name="bart", directory=bart)),
    }
    for name, (handler, make) in TASKS.items():
        task = name if name in ("feature-extraction", "zero-shot-classification") else None
        made[name] = handler(config_of(handler, name=name, directory=make(tmp_path_factory.mktemp(name)), task=task))
    return made


def answered(handler: Any, request: Request) -> Any:
    item = handler.decode(request)
    while (outcome := handler.predict([item])[0]) is None:
        pass
    return outcome


def generated(handler: Any, request: Request) -> Any:
    times: dict[str, Any] = {"deadline": request.deadline, "stream_deadline": request.deadline}
    job = Asked(handler, request.body, path=request.path, **times)
    handler.join(job)
    while not job.done:
        handler.step()
    return job.failed or job.replied or Reply(body=b"".join(job.chunks), content_type=job.started)


BODIES: dict[str, tuple[str, st.SearchStrategy[dict[str, Any]], str, Callable[[Any, Request], Any]]] = {
    "generation": ("generation", asked(parameters.GenerationParameters, "inputs", True), INVOCATIONS, generated),
    "chat": ("generation", asked(openai.ChatBody, "messages", False), CHAT, generated),
    "completion": ("generation", asked(openai.CompletionBody, "prompt", False), COMPLETIONS, generated),
    "seq2seq": ("seq2seq", asked(Seq2SeqParameters, "inputs", True), INVOCATIONS, generated),
    **{name: (name, asked(TASKS[name][0].parameters, "inputs", True), INVOCATIONS, answered) for name in TASKS},
}


@pytest.mark.parametrize("name", BODIES)
@given(data=st.data())
def test_any_body_is_answered_or_refused(handlers: dict[str, Any], name: str, data: st.DataObject) -> None:
    """Never a 5xx, except where the deadline passed."""
    model, bodies, path, ask = BODIES[name]
    body = json.dumps(data.draw(bodies)).encode()
    request = Request(body=body, content_type="application/json", path=path, deadline=time.monotonic() + 2)

    try:
        outcome = ask(handlers[model], request)
    except ServeError as error:
        outcome = error

    if isinstance(outcome, ServeError):
        assert outcome.status < 500 or isinstance(outcome, TooLate), outcome
        assert outcome.message
    else:
        assert isinstance(outcome, Reply)

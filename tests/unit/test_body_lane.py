"""The body lane: where nginx takes the model from a body by itself, a web worker would choose the same one.

A real nginx sends each request to a model's socket or to the web workers. Behind all of these sockets stands the
application of the web workers, which answers with the model that it would have chosen.
"""

import io
import json
import os
import random
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from flask import Flask
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import create as wsgi_create

from local_test.ports import free_port
from serve import nginx, settings
from serve.catalog.catalog import Catalog, Entry
from serve.http import wire
from serve.http.addresses import socket_name
from serve.slots import Slots
from serve.web import app as web_app
from tests.patience import PATIENCE

MODELS = ("m", "gpt2.v1-a_b", "m2.tar.gz", "A" * 64, "a model")
CLOSED = "closed"  # a model whose socket the host has not opened
FIELDS = {"/invocations": "model_type", "/v1/chat/completions": "model", "/v1/completions": "model"}
CASES = int(os.environ.get("FUZZ_EXAMPLES", "0")) or 4000
JSON = ("Content-Type", "application/json")
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """Where nginx sent a request, and what the application answers to it there."""

    at: str  # the file name of the socket
    chosen: str  # the same, of the model that the application chooses; "" for an error
    body: bytes


class Upstreams:
    """All sockets behind nginx. Each request is answered with its own `Arrived`."""

    def __init__(self, app: Flask, sockets: Path, web: Path) -> None:
        self._app = app
        self._config = Config()
        # As in container/gunicorn.conf.py: nginx has refused longer ones.
        for setting in ("limit_request_line", "limit_request_field_size"):
            self._config.set(setting, 0)
        self._selector = selectors.DefaultSelector()
        self._end, ended = socket.socketpair()
        self._selector.register(ended, selectors.EVENT_READ)
        for file in (web, *(sockets / socket_name(model) for model in (*MODELS, CLOSED))):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(file))
            listener.listen(64)
            file.chmod(0o600 if file.name == f"{CLOSED}.sock" else 0o700)
            self._selector.register(listener, selectors.EVENT_READ, file.name)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                connection, _ = key.fileobj.accept()  # type: ignore[union-attr]
                with connection:
                    shown = self._answer(connection, key.data)
                    connection.sendall(wire.answer(200, "application/json", json.dumps(shown).encode(), {}))

    def _answer(self, connection: socket.socket, at: str) -> dict[str, str]:
        message = next(RequestParser(self._config, connection, ""))
        _, environ = wsgi_create(message, connection, "", "", self._config)
        body = environ["wsgi.input"].read()
        with self._app.request_context({**environ, "wsgi.input": io.BytesIO(body)}):
            response = self._app.full_dispatch_request()
        return {"at": at, "chosen": response.headers.get("X-Serve-Socket", ""), "body": body.hex()}

    def stop(self) -> None:
        self._end.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]


class Lanes:
    """nginx with our configuration, and one connection to it that stays open."""

    def __init__(self, run_dir: Path, **changes: Any) -> None:
        chosen = replace(settings.read({}), run_dir=run_dir, port=free_port(), web_workers=1, **changes)
        chosen.sockets.mkdir()
        catalog = Catalog([Entry(name=name, path=Path(name), archive=True) for name in (*MODELS, CLOSED)])
        catalog.publish(chosen.catalog)
        Slots(chosen.slots, create=True)
        app = web_app.create(chosen)
        web_app.take_slot(app, 0)
        self._upstreams = Upstreams(app, chosen.sockets, run_dir / "web.sock")
        (run_dir / "large.sock").symlink_to(run_dir / "web.sock")
        (run_dir / "nginx.conf").write_text(nginx.rendered(chosen, catalog))
        self._log = run_dir / "log"
        where = ["-e", "stderr", "-p", str(run_dir), "-c", str(run_dir / "nginx.conf")]
        command = [nginx.program(), *where, "-g", "daemon off;"]
        with self._log.open("wb") as log:
            self._nginx = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        self._connection = HTTPConnection("127.0.0.1", chosen.port, timeout=PATIENCE)
        while self._nginx.poll() is None:
            try:
                self._connection.connect()
                return
            except ConnectionRefusedError:
                pass
        raise AssertionError(self._log.read_text())

    def send(
        self, body: bytes, headers: Headers = (JSON,), path: str = "/invocations", *, chunked: bool = False
    ) -> Arrived | None:
        """POST a body. None where nginx itself has refused the request."""
        self._connection.putrequest("POST", path, skip_accept_encoding=True)
        for name, value in (*headers, ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", len(body))):
            self._connection.putheader(name, value)
        self._connection.endheaders(body, encode_chunked=chunked)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            return None
        shown = json.loads(content)
        return Arrived(at=shown["at"], chosen=shown["chosen"], body=bytes.fromhex(shown["body"]))

    def stop(self) -> str:
        """What nginx has logged."""
        self._connection.close()
        self._nginx.terminate()
        self._nginx.wait(PATIENCE)
        self._upstreams.stop()
        return self._log.read_text()


@contextmanager
def started(**changes: Any) -> Iterator[Lanes]:
    with TemporaryDirectory(prefix="l-") as run_dir:  # the path of a socket is short
        lanes = Lanes(Path(run_dir), **changes)
        try:
            yield lanes
        finally:
            logged = lanes.stop()
        assert logged == ""  # nginx logs a match that takes too many steps, or too much of the stack


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    with started() as lanes:
        yield lanes


def object_naming(field: str, rest: str) -> bytes:
    return f'{{"{field}":"m",{rest}}}'.encode()


# Plain bodies, as clients send them: without the body lane each of them would cost five times as much.
PLAIN = {
    "one row": b'{"model_type":"m","instances":[[1,-2.5e-3,0]]}',
    "the field at the end": b'{"inputs": "x", "model_type": "m"}',
    "white space": b' {\r\n\t"model_type" :\n"m" , "x" : [ 1 , { } , [ ] ] } \n',
    "only the field": b'{"model_type":"m"}',
    "every escape": rb'{"model_type":"m","x":"\"\\\/\b\f\n\r\t\u00e4\u0000\uD83D\uDE00"}',
    "UTF-8": '{"model_type":"m","x":"ä€😀\ud7ff\ue000\U0010ffff\x7f"}'.encode(),
    "every kind of value": b'{"x":true,"y":false,"z":null,"":0.10E+05,"model_type":"m","n":-0}',
    "a value that looks like the field": b'{"x":"model_type","y":{"model_type":"other"},"model_type":"m"}',
    "keys that look like the field": b'{"model_typ":1,"model_types":2,"Model_type":3,"model":"o","model_type":"m"}',
    "a name of 64": b'{"model_type":"' + b"A" * 64 + b'"}',
    "a name with all signs": b'{"model_type":"gpt2.v1-a_b"}',
    "as deep as it may be": object_naming("model_type", '"x":' + "[" * nginx.NESTING + "]" * nginx.NESTING),
    "99,000 bytes of text": object_naming("model_type", f'"x":"{"é" * 49_000}"'),
    "49,000 numbers": object_naming("model_type", f'"x":[{",".join("0" * 49_000)}]'),
    "6,000 fields": object_naming("model_type", ",".join(f'"k{each}":[{{}}]' for each in range(6000))),
}


@pytest.mark.parametrize("body", PLAIN.values(), ids=PLAIN)
def test_nginx_takes_the_model_from_a_plain_body(lanes: Lanes, body: bytes) -> None:
    """A web worker does not see the request, and the model gets all of its body."""
    name = json.loads(body)["model_type"]
    arrived = lanes.send(body)
    assert arrived == Arrived(at=f"{name}.sock", chosen=f"{name}.sock", body=body)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/rerank"])
def test_on_openais_paths_the_field_is_theirs(lanes: Lanes, path: str) -> None:
    """`model` names the model there, and the field of /invocations does not."""
    body = (
        b'{"model":"gpt2.v1-a_b","messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"model_type":"m"}'
    )
    arrived = lanes.send(body, path=path)
    assert arrived
    assert arrived.at == arrived.chosen == "gpt2.v1-a_b.sock"


HOSTILE = {
    "not JSON": b"{",
    "two values": b'{"model_type":"m"}{}',
    "two fields": b'{"model_type":"m","model_type":"m"}',
    "two fields, one escaped": rb'{"model_type":"m","model\u005ftype":"gpt2.v1-a_b"}',
    "an escaped field": rb'{"model\u005ftype":"m"}',
    "an escaped name": rb'{"model_type":"\u006d"}',
    "a number": b'{"model_type":7}',
    "null": b'{"model_type":null}',
    "an empty name": b'{"model_type":""}',
    "a list": b'[{"model_type":"m"}]',
    "a list of the name": b'{"model_type":["m"]}',
    "a field deeper": b'{"x":{"model_type":"m"}}',
    "a name that is not plain": b'{"model_type":"a model"}',
    "a path": b'{"model_type":"../s/m"}',
    "a name of 65": b'{"model_type":"' + b"A" * 65 + b'"}',
    "an archive's name": b'{"model_type":"m.tar.gz"}',
    "an unknown name": b'{"model_type":"unknown"}',
    "a closed socket": b'{"model_type":"closed"}',
    "a BOM": b'\xef\xbb\xbf{"model_type":"m"}',
    "UTF-16": '{"model_type":"m"}'.encode("utf-16"),
    "a NUL behind": b'{"model_type":"m"}\0',
    "a NUL in a string": b'{"model_type":"m","x":"\0"}',
    "a NUL in the name": b'{"model_type":"m\0"}',
    "a line break in a string": b'{"model_type":"m","x":"\n"}',
    "invalid UTF-8": b'{"model_type":"m","x":"\xff"}',
    "overlong UTF-8": b'{"model_type":"m","x":"\xc0\xaf\xe0\x80\xaf"}',
    "a surrogate in UTF-8": b'{"model_type":"m","x":"\xed\xa0\x80"}',
    "beyond Unicode": b'{"model_type":"m","x":"\xf4\x90\x80\x80"}',
    "half of a surrogate pair": rb'{"model_type":"m","x":"\ud83d"}',
    "the wrong half": rb'{"model_type":"m","x":"\ude00\ud83d"}',
    "a comma behind": b'{"model_type":"m",}',
    "a comment": b'{"model_type":"m"/**/}',
    "single quotes": b"{'model_type':'m'}",
    "NaN": b'{"model_type":"m","x":NaN}',
    "a leading zero": b'{"model_type":"m","x":01}',
    "a plus": b'{"model_type":"m","x":+1}',
    "a point without digits": b'{"model_type":"m","x":1.}',
    "white space of Unicode": '{"model_type":\u00a0"m"}'.encode(),
    "a form feed": b'{"model_type":\f"m"}',
    "deeper than nginx looks": object_naming("model_type", '"x":' + "[" * 9 + "]" * 9),
    "40,000 levels": object_naming("model_type", '"x":' + "[" * 40_000 + "]" * 40_000),
    "40,000 levels, open": b'{"model_type":"m","x":' + b'{"":' * 20_000,
    "100,000 bytes": object_naming("model_type", f'"x":"{"a" * 100_000}"'),
    "nothing": b"",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_any_other_body_goes_to_a_web_worker(lanes: Lanes, body: bytes) -> None:
    """With all of its bytes, so that the answer is the same as without the body lane."""
    arrived = lanes.send(body)
    assert arrived
    assert (arrived.at, arrived.body) == ("web.sock", body)


OTHER_HEADERS: dict[str, Headers] = {
    "no model is named by an empty header": [JSON, ("TargetModel", "")],
    "a header names another model": [JSON, ("TargetModel", "gpt2.v1-a_b")],
    "a header names a model that is not plain": [JSON, ("TargetModel", "a model")],
    "two headers name models": [JSON, ("TargetModel", ""), ("TargetModel", "gpt2.v1-a_b")],
    "the platform's header": [JSON, ("X-Amzn-SageMaker-Target-Model", "gpt2.v1-a_b")],
    "attributes": [JSON, ("X-Amzn-SageMaker-Custom-Attributes", "model_type=gpt2.v1-a_b")],
    "two types": [JSON, ("Content-Type", "text/csv")],
    "two types, the other way round": [("Content-Type", "text/csv"), JSON],
    "a compressed body": [JSON, ("Content-Encoding", "gzip")],
    "perhaps a compressed body": [JSON, ("Content-Encoding", ""), ("Content-Encoding", "gzip")],
    "no type": [],
    "an empty type": [("Content-Type", "")],
    "a type of JSON that nginx leaves to Flask": [("Content-Type", "application/ld+json")],
    "text": [("Content-Type", "text/plain; x=application/json")],
    "another charset": [("Content-Type", "application/json; charset=utf-16")],
}


@pytest.mark.parametrize("headers", OTHER_HEADERS.values(), ids=OTHER_HEADERS)
def test_headers_count_as_on_the_flask_lane(lanes: Lanes, headers: Headers) -> None:
    """A header names the model before the body does; nginx looks at a body only if Flask would read it as JSON."""
    arrived = lanes.send(b'{"model_type":"m"}', headers)
    assert arrived
    assert arrived.at in ("web.sock", arrived.chosen), arrived


def random_value(chance: random.Random, depth: int) -> str:
    """The text of a JSON value."""
    kind = chance.randrange(7 if depth else 4)

    def blank() -> str:
        return chance.choice(["", "", " ", "\n\t"])

    if kind == 0:
        return chance.choice(["0", "-1", "2.50", "1e5", "-0.0E-2", "true", "false", "null", "1e999", "9" * 30])
    if kind < 4:
        return '"' + "".join(chance.choices([*"ab :,[]{}", "\\n", "\\u00e9", "\\\\", '\\"', "é", "😀"], k=3)) + '"'
    parts = [random_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind == 4:
        parts = [f'"{chance.choice(["a", "", "model", "model_type"])}"{blank()}:{blank()}{part}' for part in parts]
    opened, closed = ("{", "}") if kind == 4 else ("[", "]")
    return opened + blank() + f"{blank()},{blank()}".join(parts) + blank() + closed


KEYS = ["model_type", "model", r"model\u005ftype", r"mode\u006c", "model_typ", "model_type ", "Model", "x", "", "é"]
NAMES = ["m"] * 12 + [*MODELS, CLOSED, "unknown", "m.tar.gz", r"\u006d", "", "é", "m ", "../m", "m\\n"]
SENT = [*MODELS, CLOSED, "unknown"]
NOISE = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xff", b"\xc3", b" ", b"\xef\xbb\xbf", b"\n", b"0"]


def random_body(chance: random.Random, field: str) -> bytes:
    """A JSON object that may name a model, in half of the cases with some bytes changed."""
    members = [f'"{chance.choice(KEYS)}":{random_value(chance, 10)}' for _ in range(chance.choice([0, 0, 1, 2]))]
    for _ in range(chance.choice([0, 1, 1, 1, 1, 1, 2])):
        named = f'"{chance.choice(NAMES)}"' if chance.random() < 0.9 else random_value(chance, 2)
        members.append(f'"{field if chance.random() < 0.9 else chance.choice(KEYS)}":{named}')
    chance.shuffle(members)
    body = bytearray("{" + ",".join(members) + "}", "utf-8", "surrogatepass")
    for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
        at = chance.randrange(len(body) + 1)
        body[at : at + chance.choice([0, 0, 1, 1, 5])] = chance.choice([*NOISE, b""])
    return bytes(body)


TYPES = ["application/json"] * 12 + [
    "Application/JSON; charset=UTF-8",
    "application/json;charset=utf-8",
    "application/json; charset=utf-16",
    "application/json; charset=latin-1; charset=utf-8",
    "application/json , text/csv",
    "application/json;",
    'application/json; charset="utf-8"',
    "json",
    "text/json",
    "application/x+json",
    "text/csv",
    "",
]


def random_headers(chance: random.Random) -> Headers:
    headers = [("Content-Type", chance.choice(TYPES))] if chance.random() < 0.95 else []
    more = [
        ("Content-Type", chance.choice(TYPES)),
        ("Content-Encoding", chance.choice(["", "identity", "gzip"])),
        ("TargetModel", chance.choice(SENT)),
        ("X-Amzn-SageMaker-Target-Model", chance.choice(["", *SENT])),
        ("X-Amzn-SageMaker-Custom-Attributes", chance.choice(["a=1", "model_type=m", "model_type=unknown"])),
    ]
    chosen = chance.sample(more, chance.choice([0, 0, 0, 0, 0, 1, 2]))
    return [*headers, *((name, value.encode("utf-8").decode("latin-1")) for name, value in chosen)]


def test_nginx_and_a_web_worker_choose_the_same_model_for_any_request(lanes: Lanes) -> None:
    """Thousands of bodies and headers, most of them broken: whatever nginx decides by itself, Flask would as well."""
    taken = named = 0
    for number in range(CASES):
        chance = random.Random(number)
        path = chance.choice(list(FIELDS))
        body, headers = random_body(chance, FIELDS[path]), random_headers(chance)
        chunked = chance.random() < 0.05
        arrived = lanes.send(body, headers, path, chunked=chunked)
        if arrived is None:
            continue
        shown = (number, path, body, headers, chunked, arrived)
        assert arrived.body == body or (arrived.at, arrived.body) == ("web.sock", b""), shown
        assert arrived.at in ("web.sock", arrived.chosen), shown
        taken += arrived.at != "web.sock"
        named += bool(arrived.chosen)
    assert CASES / 8 < taken < named < CASES / 2, (taken, named)


@pytest.mark.parametrize("field", ["it's", "a.b*", "$uri", "#x y", "ä", "x" * 100, "{{run}}"])
def test_the_field_may_have_any_name(field: str) -> None:
    """nginx reads it from its configuration as it is, or leaves its bodies to the web workers."""
    with started(model_field=field) as lanes:
        arrived = lanes.send(json.dumps({field: "m", "axb": 1}, ensure_ascii=False).encode())
    plain = field.isascii() and len(field) < 65 and " " not in field
    assert arrived
    assert (arrived.at, arrived.chosen) == ("m.sock" if plain else "web.sock", "m.sock")

"""Inputs that no careful client sends: an endless, reproducible series, and the check of what the server makes of each.

An answer is explained if it is a success, or an error in the server's own shape that is not its own fault. Silence is
explained only where the input itself breaks the connection off.
"""

import gzip
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.storm.callers import error_type

TIMEOUT = 90.0
SLOW_PIECES, SLOW_PAUSE = 8, 0.05  # of a slow sender
NO_ANSWER = "no answer"
BOMB = 25 << 20  # bytes that 25 kB of gzip unfold to


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes to send, in pieces with a pause after each; `then` is what the client does next."""

    kind: str
    pieces: Sequence[bytes]
    pause: float = 0.0
    then: str = "read"  # or: close, reset, half-close, read-one-byte


@dataclass(frozen=True, slots=True)
class Result:
    kind: str
    status: int  # 0: no answer
    began: float  # time.monotonic()
    ended: float
    problem: str  # "" if the result is explained


def inputs(seed: int, models: Callable[[], Sequence[str]]) -> Iterator[Input]:
    """The series of a seed, to the models of the moment. Bombs are rare: one takes a processor for a while."""
    random_ = random.Random(seed)
    makers: list[tuple[Callable[[random.Random, Sequence[str]], Input], float]] = [
        (_garbage, 10),
        (_header, 15),
        (_wrong_length, 12),
        (_chunks, 12),
        (_slow, 3),
        (_aborted, 12),
        (_gzip, 8),
        (_encoding, 10),
        (_mutated, 25),
        (_deep, 5),
        (_name, 8),
        (_method, 5),
        (_bomb, 0.3),
    ]
    weights = [weight for _, weight in makers]
    while True:
        (maker, _), *_ = random_.choices(makers, weights)
        yield maker(random_, models())


def send(port: int, given: Input) -> Result:
    """Sends an input on a connection of its own and judges what comes back."""
    began = time.monotonic()
    data, refused = b"", ""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
            data = _exchange(sock, given)
    except ConnectionRefusedError:
        refused = "no server listens"
    except TimeoutError:
        refused = f"no answer within {TIMEOUT:g} s"
    except OSError:
        pass  # the server has closed a connection that it cannot use
    status, problem = judge(given, data)
    return Result(given.kind, status, began, time.monotonic(), refused or problem)


def _exchange(sock: socket.socket, given: Input) -> bytes:
    try:
        for piece in given.pieces:
            sock.sendall(piece)
            if given.pause:
                time.sleep(given.pause)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before all was sent; the answer may be there
    if given.then == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return b""
    if given.then == "close":
        return b""
    if given.then == "half-close":
        sock.shutdown(socket.SHUT_WR)
    if given.then == "read-one-byte":
        return sock.recv(1)
    received = bytearray()
    try:
        while piece := sock.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def judge(given: Input, data: bytes) -> tuple[int, str]:
    """The status, and what is wrong with the answer ("": nothing)."""
    silent = given.then != "read"
    if not data.startswith(b"HTTP/1.1 "):
        return 0, "" if silent else f"{NO_ANSWER}: {data[:80]!r}"
    status = int(data[9:12])
    head, _, body = data.partition(b"\r\n\r\n")
    if silent or status < 300:
        return status, ""
    if b"transfer-encoding: chunked" in head.lower():
        body = body.partition(b"\r\n")[2].rpartition(b"\r\n0\r\n")[0]
    if given.pieces[0].startswith(b"HEAD"):
        return status, ""
    kind = error_type(body)
    if not kind:
        return status, f"{status} in another shape: {body[:200]!r}"
    if kind == "InternalServerException" and b"inference.py" not in body:  # an exception in the model's own code
        return status, f"{status} {kind}: {body[:300]!r}"
    return status, ""


# What is sent.

_GOOD = {
    "own": (b'{"values": [1, 2, 3], "nonce": 1}', "application/json"),
    "trees": (b"0.1,0.2,0.3,0.4\n", "text/csv"),
    "linear": (b"1.5\n", "text/csv"),
    "text": (b'{"inputs": "w1 w2", "parameters": {"max_new_tokens": 2}}', "application/json"),
}


def _good(random_: random.Random, models: Sequence[str]) -> tuple[str, bytes, str]:
    name = random_.choice(models)
    body, content_type = _GOOD[name.partition("-")[0]]
    return name, body, content_type


def _post(name: str, body: bytes, content_type: str, *lines: str, length: int | str | None = None) -> bytes:
    head = [
        "POST /invocations HTTP/1.1",
        "Host: x",
        "Connection: close",
        f"TargetModel: {name}",
        f"Content-Type: {content_type}",
        *lines,
    ]
    if length != "":
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode("latin-1", "replace") + body


def _garbage(random_: random.Random, models: Sequence[str]) -> Input:
    data = random_.choice(
        [
            random_.randbytes(random_.randrange(1, 200)) + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random_.randbytes(40),
            b"GET\r\n\r\n",
            b"POST /invocations HTTP/9.9\r\n\r\n",
            b"POST /invocations\r\n\r\n",
            b"\r\n" * random_.randrange(1, 50) + b"x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
    )
    return Input("no HTTP", [data], then="half-close")


def _header(random_: random.Random, models: Sequence[str]) -> Input:
    name, body, content_type = _good(random_, models)
    line = random_.choice(
        [
            "X-Long: " + "x" * random_.choice([5_000, 20_000, 70_000]),
            "X-Nul: a\0b",
            "X-Amzn-SageMaker-Custom-Attributes: " + "c" * random_.choice([10, 2_000]),
            f"X-Amzn-SageMaker-Target-Model: {random_.choice(['../x', 'a/b', '%2e%2e', 'x' * 3_000, ''])}",
            f"X-Request-Id: {random_.choice(['<script>', 'x' * 500, '', '%00'])}",
            f"Accept: {random_.choice(['image/png', 'text/csv;q=x', ';;;', 'x' * 9_000, '*/*;q=0'])}",
            f"Expect: {random_.choice(['100-continue', '200-maybe'])}",
            f"Transfer-Encoding: {random_.choice(['gzip, chunked', 'identity', 'chunked, chunked', 'x'])}",
            "X-Serve-Tried: 502\r\nX-Serve-Socket: host.sock\r\nX-Serve-Connected: 0.1",
            "X-Accel-Redirect: @host",
            "X-Serve-Clock: 1 1 1",
            "Range: bytes=9-1",
            "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
            "no colon at all",
            " folded: line",
            "\r\n".join(f"X-{number}: x" for number in range(random_.choice([50, 300]))),
        ]
    )
    return Input("header", [_post(name, body, content_type, line)])


def _wrong_length(random_: random.Random, models: Sequence[str]) -> Input:
    name, body, content_type = _good(random_, models)
    lengths: list[int | str] = [1, len(body) + 1, len(body) + 10_000, len(body) - 1, 0, -1, 1 << 62, 1 << 70]
    length = random_.choice([*lengths, "two", "1e3", " 3 4"])
    data = _post(name, body, content_type, length=length)
    if random_.random() < 0.3:
        data = _post(name, body, content_type, f"Content-Length: {len(body) + 7}")  # two lengths
    return Input("wrong length", [data], then="half-close")


def _chunks(random_: random.Random, models: Sequence[str]) -> Input:
    name, body, content_type = _good(random_, models)
    head = _post(name, b"", content_type, "Transfer-Encoding: chunked", length="")
    whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    data, then = random_.choice(
        [
            (whole[: random_.randrange(len(whole))], "half-close"),
            (whole[: random_.randrange(len(whole))], "reset"),
            (b"zz\r\n" + body + b"\r\n0\r\n\r\n", "half-close"),
            (b"-5\r\n" + whole, "half-close"),
            (b"ffffffffffffffffff\r\n" + body, "half-close"),
            (b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n", "read"),
            (b"%x;%b\r\n%b\r\n0\r\n\r\n" % (len(body), b"e" * 5_000, body), "half-close"),
            (b"%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(body), body), "half-close"),
            (whole, "read"),
        ]
    )
    return Input("chunks", [head, data], then=then)


def _slow(random_: random.Random, models: Sequence[str]) -> Input:
    name, body, content_type = _good(random_, models)
    data = _post(name, body, content_type)
    step = max(1, len(data) // SLOW_PIECES)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    if random_.random() < 0.5:
        return Input("slow sender", pieces[: random_.randrange(1, len(pieces))], SLOW_PAUSE, "close")
    return Input("slow sender", pieces, SLOW_PAUSE)


def _aborted(random_: random.Random, models: Sequence[str]) -> Input:
    name, body, content_type = _good(random_, models)
    data = _post(name, body, content_type)
    cut = random_.choice([len(data), len(data) - 1, random_.randrange(1, len(data))])
    then = (
        random_.choice(["close", "reset", "read-one-byte"]) if cut == len(data) else random_.choice(["close", "reset"])
    )
    return Input("aborted caller", [data[:cut]], then=then)


def _gzip(random_: random.Random, models: Sequence[str]) -> Input:
    name, body, content_type = _good(random_, models)
    packed = gzip.compress(body, mtime=0)
    data, encoding = random_.choice(
        [
            (packed, "gzip"),
            (packed[: random_.randrange(len(packed))], "gzip"),
            (packed[:-8] + random_.randbytes(8), "gzip"),
            (gzip.compress(packed, mtime=0), "gzip"),
            (packed + random_.randbytes(20), "gzip"),
            (packed + packed, "gzip"),
            (zlib.compress(body), "deflate"),
            (packed, random_.choice(["br", "zstd", "gzip, gzip", "x", ""])),
            (body, "gzip"),
            (b"", "gzip"),
        ]
    )
    return Input("gzip", [_post(name, data, content_type, f"Content-Encoding: {encoding}")])


def _encoding(random_: random.Random, models: Sequence[str]) -> Input:
    name, body, content_type = _good(random_, models)
    data, charset = random_.choice(
        [
            (body.decode().encode("utf-16"), "utf-16"),
            (body.decode().encode("utf-16"), "utf-8"),
            (body.replace(b"1", b"\xff"), "utf-8"),
            (b"\xef\xbb\xbf" + body, "utf-8"),
            (body, "no-such-charset"),
            (body, "hex"),
            (body, "x" * 500),
            (body.replace(b"2", "\u0662".encode()), "utf-8"),
            (body.replace(b" ", b"\0"), "utf-8"),
            (random_.randbytes(300), "utf-8"),
        ]
    )
    kind = random_.choice(
        [content_type, content_type, "text/plain", "application/x-npy", "application/x-recordio-protobuf"]
    )
    return Input("encoding", [_post(name, data, f"{kind}; charset={charset}")])


def _mutated(random_: random.Random, models: Sequence[str]) -> Input:
    """A good body with a few changes, or in another format."""
    name, body, content_type = _good(random_, models)
    data = bytearray(body)
    for _ in range(random_.randrange(1, 6)):
        at = random_.randrange(len(data) + 1)
        change = random_.randrange(4)
        if change == 0 and at < len(data):
            data[at] = random_.randrange(256)
        elif change == 1:
            del data[at : at + random_.randrange(1, 5)]
        elif change == 2:
            data[at:at] = random_.choice([b"NaN", b"1e999", b"null", b"-", b"[[", b"9" * 400, b'"', b",", b"\n", b"{}"])
        else:
            data[at:at] = data[: random_.randrange(len(data) + 1)]
        data = data or bytearray(b"x")
    types = [content_type] * 6 + [
        "application/json",
        "text/csv",
        "text/libsvm",
        "application/x-npy",
        "application/jsonlines",
        "application/x-recordio-protobuf",
        "text/plain",
        "application/octet-stream",
        "image/png",
        "",
        ";",
        "text/" + "x" * 300,
    ]
    return Input("changed body", [_post(name, bytes(data), random_.choice(types))])


def _deep(random_: random.Random, models: Sequence[str]) -> Input:
    name = random_.choice(models)
    many = random_.choice([500, 20_000])
    data, content_type = random_.choice(
        [
            (b"[" * many + b"]" * many, "application/json"),
            (b'{"inputs":' * many, "application/json"),
            (b'{"inputs": "' + b"w1 " * many + b'"}', "application/json"),
            (b'{"inputs": "w1", "parameters": {"max_new_tokens": 999999999999}}', "application/json"),
            (b'{"inputs": ["w1", 5, null, {"a": [1]}]}', "application/json"),
            (b'{"instances": ' + json.dumps([[1] * 4] * 500).encode() + b"}", "application/json"),
            (b"," * many, "text/csv"),
            (b"1,2\n3,4,5\n" * (many // 10), "text/csv"),
            (b"0 4000000000:1\n", "text/libsvm"),
            (b"0 1:1 1:1 0:nan -5:2\n", "text/libsvm"),
            (
                b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 4), }",
                "application/x-npy",
            ),
            (struct.pack("<II", 0xCED7230A, 0x7FFFFFFF) + b"x" * 10, "application/x-recordio-protobuf"),
        ]
    )
    return Input("deep or wide", [_post(name, data, content_type)])


def _name(random_: random.Random, models: Sequence[str]) -> Input:
    _, body, content_type = _good(random_, models)
    name = random_.choice(
        ["../x", "..", "%2e%2e", "a/../../b", "host.sock", "x" * 9_000, "'\"<b>", "no-such", " ", "\xff"]
    )
    if random_.random() < 0.5:
        return Input("name of a model", [_post(name, body, content_type)])
    path = name.encode("latin-1").replace(b" ", b"%20")
    head = b"POST /models/%b/invoke HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}" % path
    return Input("name of a model", [head])


def _method(random_: random.Random, models: Sequence[str]) -> Input:
    method = random_.choice(["GET", "PUT", "DELETE", "TRACE", "CONNECT", "HEAD", "A" * 300, "get", "OPTIONS", "PATCH"])
    path = random_.choice(
        ["/invocations", "/models", "/models/x", "/ping/x", "/-/malformed", "/" + "x" * 9_000, "*", "//"]
    )
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    return Input("method or path", [head.encode()], then="half-close")


_bombs: dict[str, bytes] = {}


def _bomb(random_: random.Random, models: Sequence[str]) -> Input:
    """25 kB that unfold to 25 MB, which the model's reader would accept as far as it can know."""
    name = random_.choice(models)
    kind = name.partition("-")[0]
    if kind not in _bombs:
        texts = {
            "own": b'{"values": [' + b"1, " * (BOMB // 3) + b'1], "nonce": 1}',
            "trees": b"0.1,0.2,0.3,0.4\n" * (BOMB // 16),
            "linear": b"1.5\n" * (BOMB // 4),
            "text": b'{"inputs": "' + b"w1 " * (BOMB // 3) + b'"}',
        }
        _bombs[kind] = gzip.compress(texts[kind], mtime=0)
    return Input("gzip bomb", [_post(name, _bombs[kind], _GOOD[kind][1], "Content-Encoding: gzip")])

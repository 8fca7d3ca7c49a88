"""The configuration of nginx: the template nginx.conf, filled in from the settings."""

import os
import re
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

from serve import errors
from serve.catalog.catalog import Catalog
from serve.errors import (
    BadRequest,
    DoesNotFit,
    MethodNotAllowed,
    NotReady,
    PayloadTooLarge,
    ServeError,
    UnsupportedTransferEncoding,
)
from serve.http.addresses import OPENAI_FIELD, PLAIN, socket_name
from serve.settings import MB, Settings, nginx_limit
from serve.web.health import TIMEOUT_MS

TEMPLATE = Path(__file__).with_name("nginx.conf")
BLOCK = re.compile(r"^{{block (\w+)}}\n(.*?)^{{end}}\n", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"{{(\w+)}}")
WEB_LIMIT = 10.0  # seconds for an answer of a web worker; it bounds its own questions to the host (web/host_client.py)
# Statuses that stand for a jump between locations: "error_page 418 = @web". No upstream's answer is treated so.
GOTO_WEB, GOTO_WEB_WITHOUT_BODY, GOTO_BODY, GOTO_WEB_LARGE = "418", "419", "420", "422"
NESTING = 8  # levels of arrays and objects within a field, beyond which the Flask lane decides


def rendered(settings: Settings, catalog: Catalog) -> str:
    """The configuration as text."""
    limit = f"{settings.payload_bytes / MB:g} MB"
    only = next(iter(catalog.entries.values())) if len(catalog.entries) == 1 else None
    # NAME.tar.gz means NAME, except on a multi-model endpoint, where the platform's names are opaque.
    suffix = "" if settings.multi_model else r"(\.tar\.gz)?"
    values = {
        # As root, nginx would run its workers as an unprivileged user, who cannot open the sockets.
        "user": "user root;" if os.geteuid() == 0 else "",
        "workers": str(settings.web_workers),  # each carries 10,000 requests/s, so that the cores are left to models
        # A request takes two connections, to the client and to the model. The launcher has raised the limit on files.
        "connections": str(min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)),
        "run": str(settings.run_dir),
        "ping_socket": str(settings.ping_socket),
        "ping_ms": str(TIMEOUT_MS),
        "sockets": str(settings.sockets),
        # By default nginx listens on `::` for IPv6 alone.
        "listen": settings.listens + (" ipv6only=off" if settings.bind == "::" else ""),
        "goto_web": GOTO_WEB,
        "goto_web_without_body": GOTO_WEB_WITHOUT_BODY,
        "goto_body": GOTO_BODY,
        "goto_web_large": GOTO_WEB_LARGE,
        "body_naming_model": _quoted(body_naming_model(settings.model_field)),
        "openai_body_naming_model": _quoted(body_naming_model(OPENAI_FIELD)),
        "payload_bytes": str(settings.payload_bytes),
        "model_field": re.escape(settings.model_field),
        "default_socket": socket_name(only.name) if only and not only.problem else "",
        "suffix": suffix,
        # For a load, which may take the one, and an unload, which waits for requests in flight, which take the other.
        "host_ms": str(int(max(settings.load_limit, settings.request_limit) * 1000) + 10_000),
        "read_ms": str(int(nginx_limit(settings.request_limit) * 1000)),
        # For a web worker, which may wait for the cause of a crash longer than a short time limit of models allows.
        "web_ms": str(int(WEB_LIMIT * 1000)),
        "access_log": "/dev/stdout events if=$logged" if _writable("/dev/stdout") else "off",
        "error_down": _json(NotReady("the web workers do not answer", hint="retry: the server is starting or full")),
        "error_large": _json(
            PayloadTooLarge(
                f"the body is larger than the limit of {limit}",
                hint="raise SERVE_MAX_PAYLOAD_MB; SageMaker's limits: 25 MB, batch transform 100 MB, asynchronous 1 GB",
            )
        ),
        "error_disk": _json(
            DoesNotFit("out of disk space for the request's body", hint=f"free space in {settings.run_dir}")
        ),
        "error_malformed": _json(BadRequest("invalid HTTP request", hint="check the path and the headers")),
        "error_method": _json(MethodNotAllowed("unsupported method: TRACE or CONNECT", hint="use GET or POST")),
        "error_transfer_encoding": _json(
            UnsupportedTransferEncoding(
                "unsupported Transfer-Encoding", hint="send Content-Length, or the chunked encoding alone"
            )
        ),
    }
    return _filled(TEMPLATE.read_text(), values)


def body_naming_model(field: str) -> str:
    """A regular expression of PCRE for the JSON bodies that name a model plainly; its group `in_body` is the name.

    Such a body is an object in UTF-8 with exactly one key that equals `field`, whose value is a plain name. For each of
    them the Flask lane finds the same name (`peek` in serve/http/addresses.py). It decides all others: the expression
    does not match bodies that are not JSON (RFC 8259), keys with escapes beside the field, and deeper nesting.

    No repetition gives characters back and no group contains itself, so that a match takes 10 ns a byte at most, and a
    stack that does not grow with the body.
    """
    if not re.fullmatch(r"[!#-\[\]-~]{1,64}", field):  # a key with escapes, or of several bytes a character
        return r"(?!)"
    deepest, member = 3 + NESTING, r"(?1)(?2)(?1):"
    values = "".join(
        rf"((?3)|\[(?>{value}(?:,{value})*+|(?1))\]|\{{(?>{member}{value}(?:,{member}{value})*+|(?1))\}})"
        for value in (rf"(?1)(?{below})(?1)" for below in range(3, deepest))
    )
    key = rf'(?1)"{re.escape(field)}"'
    other = rf'(?!{key})(?1)"[ !#-\[\]-\x7f]*+"(?1):(?1)(?{deepest})(?1)'
    return (
        r"(?(DEFINE)"
        r"([ \t\n\r]*+)"  # 1: white space
        r'("(?:[ !#-\[\]-\x7f]++'  # 2: a string; of two escaped surrogates the second belongs to the first
        r'|\\(?:["\\/bfnrt]|u(?:(?![dD][89a-fA-F])[0-9a-fA-F]{4}|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))'
        r"|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
        r"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
        r')*+")'
        r"((?2)|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+|true|false|null)"  # 3: a value without parts
        rf"{values})"  # 4 and more: with parts, each of one level less
        rf'\A(?1)\{{(?:{other},)*+{key}(?1):(?1)"(?<in_body>{PLAIN.pattern})"(?1)(?:,{other})*+\}}(?1)\z'
    )


def _quoted(pattern: str) -> str:
    """A regular expression as the content of a single-quoted string of nginx."""
    return pattern.replace("\\", "\\\\").replace("'", "\\'")


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its blocks and values in place of their names. Raises KeyError for an unknown name."""
    blocks: dict[str, str] = {}
    for name, lines in BLOCK.findall(template):  # a block may contain blocks that are defined before it
        blocks[name] = NAME.sub(lambda found: blocks.get(found[1], found[0]), lines.strip())
    text = NAME.sub(lambda found: blocks.get(found[1], found[0]), BLOCK.sub("", template))
    return NAME.sub(lambda found: values[found[1]], text)


def program() -> str:
    """The path of nginx. Raises FileNotFoundError."""
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not found:
        raise FileNotFoundError("nginx is not installed: run apt-get install nginx-light (or nginx)")
    return found


def _json(error: ServeError) -> str:
    """The error's body as the content of a single-quoted string of nginx, which inserts the request id."""
    return errors.body(error, "$rid").decode().replace("\\", "\\\\").replace("'", "\\'")


def _writable(path: str) -> bool:
    """Whether nginx can open its log. It cannot on a pipe of another user."""
    try:
        with Path(path).open("ab"):
            return True
    except OSError:
        return False

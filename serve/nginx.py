"""nginx.conf, filled in from the settings."""

import os
import re
import resource
import shutil
from pathlib import Path

from serve import errors
from serve.catalog.catalog import Catalog
from serve.errors import BadRequest, DoesNotFit, NotReady, PayloadTooLarge, ServeError
from serve.http.addresses import socket_name
from serve.settings import MB, Settings, nginx_limit

TEMPLATE = Path(__file__).with_name("nginx.conf")


def rendered(settings: Settings, catalog: Catalog) -> str:
    """The configuration as text. Raises KeyError for a name in the template that has no value here."""
    limit = f"{settings.payload_bytes / MB:g} MB"
    only = next(iter(catalog.entries.values())) if len(catalog.entries) == 1 else None
    # NAME.tar.gz is NAME, but the platform's own names are opaque.
    suffix = "" if settings.multi_model else r"(\.tar\.gz)?"
    values = {
        # Two, like the web workers: each carries ten thousand requests/s, and a core more is a core less for models.
        # One user for all, so that the sockets are open to nobody else: as root nginx would make its workers `nobody`.
        "user": "user root;" if os.geteuid() == 0 else "",
        "workers": str(settings.web_workers),
        # A request takes two: the client's and the model's. The launcher has raised the limit as far as it goes.
        "connections": str(min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)),
        "run": str(settings.run_dir),
        "sockets": str(settings.sockets),
        "port": str(settings.port),
        "payload_bytes": str(settings.payload_bytes),
        "model_field": re.escape(settings.model_field),
        "default_socket": socket_name(only.name) if only and not only.problem else "",
        "suffix": suffix,
        # A load may take the one, an unload, which waits for what is in flight, the other.
        "host_ms": str(int(max(settings.load_limit, settings.request_limit) * 1000) + 10_000),
        "read_ms": str(int(nginx_limit(settings.request_limit) * 1000)),
        "access_log": "/dev/stdout events if=$logged" if _writable("/dev/stdout") else "off",
        "error_down": _json(NotReady("the web tier does not answer", hint="starting or overloaded: try again")),
        "error_large": _json(
            PayloadTooLarge(
                f"the body is larger than the limit of {limit}",
                hint="SERVE_MAX_PAYLOAD_MB moves it; the platform itself takes 25 MB, 100 in batch, 1 GB async",
            )
        ),
        "error_disk": _json(
            DoesNotFit(
                "there is no room on the disk for the request's body", hint=f"free some under {settings.run_dir}"
            )
        ),
        "error_malformed": _json(BadRequest("not an HTTP request this server reads", hint="check path and headers")),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], TEMPLATE.read_text())


def program() -> str:
    """Where nginx is. Raises FileNotFoundError saying how to get it."""
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not found:
        raise FileNotFoundError("nginx is not installed: apt-get install nginx-light (or nginx)")
    return found


def _json(error: ServeError) -> str:
    """The error's body, quoted as nginx's single-quoted strings want it; nginx itself puts the request id in."""
    return errors.body(error, "$rid").decode().replace("\\", "\\\\").replace("'", "\\'")


def _writable(path: str) -> bool:
    """Whether nginx will be able to open its log: as another user on a pipe it may not."""
    try:
        with Path(path).open("ab"):
            return True
    except OSError:
        return False

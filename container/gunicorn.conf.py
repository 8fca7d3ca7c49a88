"""The configuration of gunicorn, which runs the web workers. The numbers that vary come from serve.settings."""

import gc
import socket
from http import HTTPStatus
from typing import Any

import gunicorn
from gunicorn import util
from gunicorn.glogging import Logger

from serve import log, settings
from serve.children import die_with_parent
from serve.http import media, wire
from serve.web import wsgi
from serve.web.bodies import THREADS

_settings = settings.read()
assert _settings.run_dir is not None

# gunicorn has no setting for the Server header. It copies this name when a worker first imports gunicorn.http.
gunicorn.SERVER = wire.SERVER
wsgi_app = "serve.web.wsgi:create()"
preload_app = True
# One worker more, to which nginx sends the requests whose bodies are large or compressed: the others never wait for it.
LARGE_BODIES = f"{_settings.run_dir}/large.sock"
bind = [f"unix:{_settings.run_dir}/web.sock", f"unix:{LARGE_BODIES}"]
umask = 0o077  # of the sockets too, which no model's user may open
workers = _settings.web_workers + 1
# A web worker chooses a model in well under a millisecond. But it waits for nginx to hang up after each answer, and for
# the host if it asks why a connection broke: hence threads. Measured in docs/decisions/0002-worker-class.md.
worker_class = "gthread"
threads = THREADS
backlog = 2048
worker_tmp_dir = str(_settings.run_dir)  # gunicorn's heartbeat file; serverless inference has no /dev/shm
control_socket_disable = True
timeout = 30
graceful_timeout = 5
# nginx has refused longer headers (large_client_header_buffers), with an error in the server's own shape. Flask refuses
# unknown methods. gunicorn's own errors are HTML, so it refuses nothing that nginx accepts.
limit_request_line = 0
limit_request_field_size = 1 << 17
limit_request_fields = 32768  # the most that gunicorn allows; nginx's 64 kB hold half of that
permit_unconventional_http_method = True
secure_scheme_headers: dict[str, str] = {}  # X-Forwarded-Proto and its kin, which a client may set to contradict
loglevel = "warning"
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "serve.log.JsonLines", "process": "gunicorn"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"gunicorn.error": {"handlers": ["stderr"], "level": "WARNING", "propagate": False}},
}


class logger_class(Logger):  # noqa: N801 (the name of the setting)
    """A logger without an access log, which nginx writes: gunicorn would format each line and drop it."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        pass


def write_error(sock: socket.socket, status: int, reason: str, message: str) -> None:
    """Refuse a request that gunicorn cannot parse: nginx answers it, in the shape of every error.

    In place of gunicorn's own function, which writes HTML. gunicorn has no setting for its errors.
    """
    place = "@down" if status == HTTPStatus.INTERNAL_SERVER_ERROR else "/-/malformed"
    util.write_nonblock(sock, wire.answer(status, media.JSON, b"", {"X-Accel-Redirect": place}))


util.write_error = write_error


def pre_fork(server: Any, worker: Any) -> None:
    """Keep the garbage collector of the workers from writing to, and so copying, the pages that they share.

    And choose the socket of the worker: `WORKERS` has those that run.
    """
    gc.collect()
    gc.freeze()
    worker.reads_large = not any(each.reads_large for each in server.WORKERS.values())


def post_fork(server: Any, worker: Any) -> None:
    """Give the worker its own slot and the server's log format, and let it exit with gunicorn."""
    die_with_parent()
    worker.sockets = [each for each in worker.sockets if (each.getsockname() == LARGE_BODIES) == worker.reads_large]
    wsgi.begin(server.app.wsgi(), worker.age - 1)
    log.start("web", _settings.log_level)

"""The entry point for gunicorn, whose master creates the application before it forks the workers.

So the workers share the memory of the application, and one that is started again is ready at once.
"""

from flask import Flask

from serve import settings
from serve.slots import WEB_SLOTS
from serve.web import app


def create() -> Flask:
    return app.create(settings.read())


def begin(created: Flask, worker: int) -> None:
    """Called in each worker, after the fork; `worker` counts all that were started."""
    app.take_slot(created, worker % WEB_SLOTS)

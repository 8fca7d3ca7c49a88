"""The entry point for gunicorn: creates the application of this worker, after the fork."""

from flask import Flask

from serve import settings
from serve.slots import WEB_SLOTS
from serve.web import app

slot = 0  # set by container/gunicorn.conf.py in each worker


def create() -> Flask:
    return app.create(settings.read(), slot % WEB_SLOTS)

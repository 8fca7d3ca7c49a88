"""Answers `PID:BODY` with the content type it got; the body reversed if the model's options say `reverse`."""

import os


def transform_fn(model, body, content_type, accept, context):
    data = body.encode() if isinstance(body, str) else body
    if context.options.get("reverse"):
        data = data[::-1]
    return b"%d:%b" % (os.getpid(), data), content_type

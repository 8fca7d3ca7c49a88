"""The classes of `context`."""

from serve.handlers.custom.context import Context, RequestProcessor

__all__ = ["Context", "RequestProcessor"]

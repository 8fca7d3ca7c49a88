"""Check that a request is addressed to this model: on the straight lane nginx reads neither path nor body."""

from collections.abc import Sequence

from serve.errors import ModelNotFound, PathNotFound
from serve.handlers.base import Request
from serve.http.addresses import INVOCATIONS, OPENAI_FIELD, peek


class Addressee:
    def __init__(self, known_as: Sequence[str], field: str, paths: Sequence[str]) -> None:
        self._known = frozenset(known_as)
        self.model = known_as[0]
        self._paths = frozenset(paths)
        self._in_invocation = _Field(field)
        self._in_openai = _Field(OPENAI_FIELD)

    def check(self, request: Request) -> None:
        """Raise PathNotFound for an unsupported path, ModelNotFound if a JSON body names another model."""
        if request.path not in self._paths:
            raise PathNotFound(
                f"model {self.model!r} does not support the path {request.path}",
                hint="it supports "
                + ", ".join(sorted(self._paths))
                + "; GET /v1/models lists the models of the OpenAI paths",
                model=self.model,
            )
        if not request.content_type.endswith(("/json", "+json")):
            return
        field = self._in_invocation if request.path == INVOCATIONS else self._in_openai
        asked = field.in_body(request.body)
        if asked is None or asked in self._known or (not asked and request.path != INVOCATIONS):
            return
        raise ModelNotFound(
            f"the body names model {asked[:100]!r}, but the request is addressed to {self.model!r}",
            hint=f"omit {field.name!r}, or set it to a model of GET /models",
            model=self.model,
        )


class _Field:
    def __init__(self, name: str) -> None:
        self.name = name
        self._needle = f'"{name}"'.encode()
        self._peek = peek(name)

    def in_body(self, body: bytes) -> str | None:
        """The field's value. A body in which its name does not occur is not parsed, only searched."""
        return self._peek(body) if self._needle in body else None

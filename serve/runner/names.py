"""Whether a request on the straight lane is for this model after all: its body may name another."""

from collections.abc import Sequence

from serve.errors import ModelNotFound
from serve.handlers.base import Request
from serve.names import peek


class Names:
    def __init__(self, known_as: Sequence[str], field: str) -> None:
        self._known = frozenset(known_as)
        self._first = known_as[0]
        self._field = field
        self._needle = f'"{field}"'.encode()
        self._name_in = peek(field)

    def check(self, request: Request) -> None:
        """Raise ModelNotFound when a JSON body asks for a model that is not this one.

        A body in which the field's name does not occur is not looked at twice: finding that out costs a memory search.
        """
        if self._needle not in request.body or "json" not in request.content_type:
            return
        asked = self._name_in(request.body)
        if asked is not None and asked not in self._known:
            raise ModelNotFound(
                f"the body asks for model {asked[:100]!r}; the request went to {self._first!r}",
                hint=f"leave {self._field!r} out, or name a model of GET /models",
                model=self._first,
            )

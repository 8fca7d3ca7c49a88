"""One answer of a container's, as it came."""

import json
from dataclasses import dataclass
from typing import Any

from local_test.rehearse.verdict import Breach


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]  # as they came
    body: bytes
    connecting: float  # seconds until the TCP connection was accepted
    seconds: float  # from then on

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    @property
    def json(self) -> Any:
        """Its body; Breach where that is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Breach(f"{self.status}, body is not JSON: {self.start}") from None

    @property
    def start(self) -> str:
        """The body's first characters, on one line."""
        shown = " ".join(self.body[:200].decode(errors="replace").split())
        return repr(shown[:70] + "…" if len(shown) > 70 else shown)

    def __str__(self) -> str:
        return f"{self.status} in {self.seconds * 1000:.0f} ms"

"""Which model gets the request: pure functions from what the caller sent to a name."""

import re
from collections.abc import Iterable, Sequence

from serve.host.entry import Entry

# The platform's header, and the plain name that people type; the platform strips the second (contract, section 5).
TARGET_HEADERS = ("X-Amzn-SageMaker-Target-Model", "TargetModel")


OPENAI_HANDLER = "text_generation"


def speaking_openai(entries: Iterable[Entry]) -> list[str]:
    """The models that answer OpenAI's paths; what an archive holds is not known: it counts when there is no other."""
    usable = [entry for entry in entries if not entry.problem]
    known = [entry.name for entry in usable if entry.spec and entry.spec.handler == OPENAI_HANDLER]
    return known or [entry.name for entry in usable if not entry.spec]


def openai_default(speaking: Sequence[str], default: str | None) -> str | None:
    """The model for an empty `model`, as SageMaker's own examples send it: the default, else the only one that can."""
    if default in speaking:
        return default
    return speaking[0] if len(speaking) == 1 else None


def in_attributes(attributes: str, field: str) -> str | None:
    """The model named in X-Amzn-SageMaker-Custom-Attributes: `trace=1,model_type=gpt2`."""
    found = re.search(rf"(?:^|[,;\s]){re.escape(field)}=([^,;\s]+)", attributes)
    return found.group(1) if found else None

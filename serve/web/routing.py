"""Which model gets the request: pure functions from what the caller sent to a name."""

import re

# The platform's header, and the plain name that people type; the platform strips the second (contract, section 5).
TARGET_HEADERS = ("X-Amzn-SageMaker-Target-Model", "TargetModel")


def in_attributes(attributes: str, field: str) -> str | None:
    """The model named in X-Amzn-SageMaker-Custom-Attributes: `trace=1,model_type=gpt2`."""
    found = re.search(rf"(?:^|[,;\s]){re.escape(field)}=([^,;\s]+)", attributes)
    return found.group(1) if found else None

"""What unit tests share: how long hypothesis searches.

A fuzz test is quick and the same in each run; FUZZ_EXAMPLES=100000 makes it a long search, each time another one:
`FUZZ_EXAMPLES=100000 python -m pytest --timeout 0 tests/unit/test_fuzz_*.py`.
"""

import os

import hypothesis

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))

hypothesis.settings.register_profile(
    "quick", max_examples=100, deadline=None, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.register_profile(
    "long",
    max_examples=EXAMPLES or 1,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("long" if EXAMPLES else "quick")

"""The execution parameters of batch transform."""

from pathlib import Path

import pytest

from serve import settings
from serve.catalog.catalog import Catalog
from serve.catalog.scan import scan
from serve.machine import cpus
from serve.web.batch_transform import parameters


@pytest.mark.peer("batch-transform")
@pytest.mark.parametrize(
    ("environ", "payload"),
    [
        ({}, 6),
        ({"SAGEMAKER_BATCH": "true"}, 6),
        ({"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "20"}, 20),
        ({"SERVE_MAX_PAYLOAD_MB": "1000"}, 100),
        ({"MAX_CONTENT_LENGTH": "1000"}, 1),
    ],
)
def test_the_payload_is_that_of_a_setting(environ: dict[str, str], payload: int) -> None:
    """Without one it is the platform's default; the product never exceeds the 100 MB of CreateTransformJob."""
    told = parameters(settings.read(environ), Catalog([]))
    assert told == {"MaxConcurrentTransforms": min(cpus()[0], 100 // payload), "MaxPayloadInMB": payload}


def test_copies_of_a_model_work_at_the_same_time(tmp_path: Path) -> None:
    """If there are more copies than processors, as many requests are concurrent."""
    model = tmp_path / "m"
    (model / "code").mkdir(parents=True)
    (model / "code" / "inference.py").touch()
    (model / "model.toml").write_text("copies = 16")
    told = parameters(settings.read({}), scan(tmp_path))
    assert told["MaxConcurrentTransforms"] == max(16, cpus()[0])

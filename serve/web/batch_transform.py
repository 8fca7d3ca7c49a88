"""GET /execution-parameters: the defaults of a batch transform job, which it reads before its first request.

BatchStrategy is left out: the API writes MULTI_RECORD, but the SageMaker SDK's local mode reads only MultiRecord and
exits on anything else. Without it, both use their own default, which is that one.
"""

from serve import machine
from serve.catalog.catalog import Catalog
from serve.settings import MB, Settings

TRANSFORM_LIMIT = 100  # MB; CreateTransformJob rejects a larger MaxConcurrentTransforms x MaxPayloadInMB
DEFAULT_PAYLOAD = 6  # MB; the API's own default of MaxPayloadInMB


def parameters(settings: Settings, catalog: Catalog) -> dict[str, int]:
    """MaxConcurrentTransforms: the number of processors, or the largest `copies` of a model if that is more.

    MaxPayloadInMB: the server's limit if a setting gives one, else the platform's default, which allows concurrency.
    """
    given = settings.sources.get("payload_bytes", "default") not in ("default", "SAGEMAKER_BATCH")
    payload = min(TRANSFORM_LIMIT, max(1, settings.payload_bytes // MB)) if given else DEFAULT_PAYLOAD
    copies = max((entry.config.copies for entry in catalog.entries.values() if entry.config), default=1)
    processors, _ = machine.cpus()
    return {
        "MaxConcurrentTransforms": max(1, min(max(processors, copies), TRANSFORM_LIMIT // payload)),
        "MaxPayloadInMB": payload,
    }

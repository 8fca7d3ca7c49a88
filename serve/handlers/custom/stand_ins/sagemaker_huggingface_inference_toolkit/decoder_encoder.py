"""decode(body, content_type) -> the input of a pipeline; encode(prediction, accept) -> str, or bytes for npy."""

from typing import Any

from mms.service import PredictionException
from sagemaker_inference import decoder, errors

from sagemaker_huggingface_inference_toolkit import content_types
from serve.errors import BadRequest
from serve.formats import values
from serve.handlers.custom import defaults
from serve.handlers.custom.faults import json_errors, value_errors
from serve.http import body, media


def decode_json(content: str | bytes) -> Any:
    with json_errors(content):
        return body.decode_json(content.encode() if isinstance(content, str) else bytes(content))


def decode_csv(string_like: str) -> dict[str, Any]:
    """{"inputs": [...]} of a column `inputs`, or of objects with `question` and `context`."""
    try:
        return defaults.columns(string_like)
    except BadRequest as error:
        raise PredictionException(error.message, 400) from error


def decode_image(bpayload: bytes) -> dict[str, Any]:
    """{"inputs": a PIL image}; pillow must be in the model's code/lib, the image does not have it."""
    import io

    from PIL import Image

    return {"inputs": Image.open(io.BytesIO(bpayload)).convert("RGB")}


def decode_audio(bpayload: bytes) -> dict[str, Any]:
    return {"inputs": bytes(bpayload)}


def encode_json(content: Any) -> str:
    with value_errors():
        return values.write(content, media.JSON).decode()


def encode_csv(content: Any) -> str:
    with value_errors():
        return values.write(content, media.CSV).decode()


def decode(content: Any, content_type: str = content_types.JSON) -> Any:
    if content_type == content_types.JSON:
        return decode_json(content)
    if content_type == content_types.CSV:
        return decode_csv(content)
    if content_type == content_types.NPY:
        return decoder.decode(content, content_type)
    if content_type in content_types.VISION_TYPES:
        return decode_image(content)
    if content_type in content_types.AUDIO_TYPES:
        return decode_audio(content)
    raise errors.UnsupportedFormatError(content_type)


def encode(content: Any, content_type: str = content_types.JSON) -> str | bytes:
    if content_type == content_types.JSON:
        return encode_json(content)
    if content_type == content_types.CSV:
        return encode_csv(content)
    if content_type == content_types.NPY:
        with value_errors():
            return values.write(content, media.NPY)
    raise errors.UnsupportedFormatError(content_type)

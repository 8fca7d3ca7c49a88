"""A request to try for a model without `[example]` in its model.toml."""

import json
import re
from typing import Any

from serve.catalog import recognition
from serve.catalog.model_config import Example, ModelConfig

TAIL = 4096  # bytes; XGBoost writes the number of features at the end of its JSON and UBJSON files
_FEATURES = re.compile(rb'num_feature(?:SL.{8}|":")(\d+)', re.DOTALL)
MOST_FEATURES = 100  # a longer row is no command to paste
_MASKS = {"bart", "camembert", "longformer", "mpnet", "roberta", "xlm-roberta"}  # types whose mask token is <mask>
_BODIES: dict[str, Any] = {
    "text_generation": {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 40, "do_sample": False}},
    "seq2seq": {"inputs": "The council voted on Monday to keep the old railway bridge open to walkers."},
    "text_classification": {"inputs": "I loved this film."},
    "token_classification": {"inputs": "Ada Lovelace lived in London."},
    "question_answering": {"inputs": {"question": "Where does Ada live?", "context": "Ada lives in London."}},
    "fill_mask": {"inputs": "The capital of France is [MASK]."},
    "zero_shot_classification": {
        "inputs": "The match ended two to one.",
        "parameters": {"candidate_labels": ["sport", "politics"]},
    },
    "feature_extraction": {"inputs": "a text"},
    # The number of columns is in a format that only the framework reads; a wrong one is a 400 that names both.
    "sklearn": [[1.0, 2.0]],
    "onnx": [[1.0, 2.0]],
    "torch": [[1.0, 2.0]],
}


def of(config: ModelConfig[Any]) -> Example | None:
    """The model's own example, or one that fits its handler; None for a model with its own code."""
    if config.example:
        return config.example
    if config.handler == "xgboost":
        return Example(content_type="text/csv", body=",".join(["1"] * _features(config)))
    body = _BODIES.get(config.handler)
    if body is None:
        return None
    text = json.dumps(body)
    return Example(
        content_type="application/json",
        body=text.replace("[MASK]", "<mask>") if config.model_type in _MASKS else text,
    )


def _features(config: ModelConfig[Any]) -> int:
    """The number of columns of an XGBoost model, 2 where its file does not show it."""
    try:
        file = recognition.xgboost_files(config.directory)[0]
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - TAIL))
            found = _FEATURES.findall(opened.read())
    except (OSError, IndexError):  # changed since the scan
        return 2
    return int(found[-1]) if found and 0 < int(found[-1]) <= MOST_FEATURES else 2

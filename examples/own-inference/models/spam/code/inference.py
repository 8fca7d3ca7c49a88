"""Spam or not, by the weights of words: the four functions that the server calls.

Each function is optional. Without `input_fn` and `output_fn` the server reads and writes JSON, CSV and npy itself.
"""

import json
import math
from pathlib import Path


def model_fn(model_dir):
    """Load the model. The server calls this function once, in the model's own process."""
    return json.loads(Path(model_dir, "words.json").read_text())


def input_fn(body, content_type):
    """Parse a request. A ValueError becomes a response with status 400 that carries its text."""
    if content_type != "application/json":
        raise ValueError(f"Content-Type {content_type} is not supported: send application/json")
    texts = json.loads(body).get("texts")
    if not isinstance(texts, list):
        raise ValueError('the field "texts" must be a list of strings')
    return texts


def predict_fn(texts, weights):
    """Predict: one score between 0 and 1 for each text."""
    sums = [sum(weights.get(word.strip(".,!?"), 0.0) for word in text.lower().split()) for text in texts]
    return [1 / (1 + math.exp(-each)) for each in sums]


def output_fn(scores, accept):
    """Write the response."""
    return json.dumps([{"spam": score > 0.5, "score": round(score, 3)} for score in scores]), "application/json"

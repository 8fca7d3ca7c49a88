"""The usual stack: every gunicorn worker loads every model and computes where it answers."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask, Response, request

MODELS = Path(os.environ["USUAL_MODELS"])
app = Flask("usual")


def load_all() -> dict[str, Any]:
    models: dict[str, Any] = {}
    for directory in sorted(MODELS.iterdir()):
        if (directory / "model.ubj").exists():
            import xgboost

            models[directory.name] = xgboost.Booster({"nthread": 1}, model_file=str(directory / "model.ubj"))
        else:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            # The workers share the processors: more threads in each than its share and they get in each other's way.
            torch.set_num_threads(int(os.environ["USUAL_THREADS"]))
            model = AutoModelForCausalLM.from_pretrained(directory).eval()
            models[directory.name] = model, AutoTokenizer.from_pretrained(directory)
    return models


models = load_all()


@app.get("/ping")
def ping() -> Response:
    return Response(status=200)


@app.post("/invocations")
def invoke() -> Response:
    if request.mimetype == "text/csv":
        return predict(models[request.headers["TargetModel"]], parse(request.get_data()))
    body = request.get_json()
    if "instances" in body:
        return predict(models[body["model_type"]], np.array(body["instances"], np.float32))
    return generate(models[body["model_type"]], body)


def parse(body: bytes) -> Any:
    if len(body) < 8192:
        return np.array([line.split(b",") for line in body.splitlines()], np.float32)
    return np.loadtxt(body.decode().splitlines(), np.float32, delimiter=",")


def predict(booster: Any, matrix: Any) -> Response:
    scores = booster.inplace_predict(matrix)
    return Response("\n".join(map(str, scores.tolist())), mimetype="text/csv")


def generate(loaded: Any, body: dict[str, Any]) -> Response:
    import torch

    model, tokenizer = loaded
    tokens = tokenizer(body["inputs"], return_tensors="pt")
    with torch.inference_mode():
        made = model.generate(**tokens, pad_token_id=0, **body["parameters"])
    text = tokenizer.decode(made[0], skip_special_tokens=True)
    return Response(f'[{{"generated_text": {text!r}}}]', mimetype="application/json")

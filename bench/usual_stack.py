"""The stack of most containers: nginx, a Unix socket, two gunicorn sync workers with every model in each, Flask."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask, Response, request


def load(directory: Path) -> Any:
    if (directory / "model.ubj").exists():
        import xgboost

        return xgboost.Booster({"nthread": 1}, model_file=str(directory / "model.ubj"))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The workers share the processors: with more threads than its share, each would slow the others down.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)


def create() -> Flask:
    app = Flask("usual")
    models = {directory.name: load(directory) for directory in sorted(Path(os.environ["SERVE_MODEL_DIR"]).iterdir())}

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

    return app


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

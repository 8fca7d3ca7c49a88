"""Uses each framework of the image once, so that the build fails if slim.py has deleted a file that is needed."""

import importlib.util
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xgboost
from pyarrow import csv, parquet
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BartConfig, GPT2Config, PreTrainedTokenizerFast

WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "once": 4}


def text_model(config: GPT2Config | BartConfig, auto: Any) -> None:
    """Saves a tiny model, loads it and generates a few tokens."""
    with tempfile.TemporaryDirectory() as directory:
        auto.from_config(config).save_pretrained(directory)
        model = auto.from_pretrained(directory).eval()
    with torch.inference_mode():
        written = model.generate(torch.tensor([[4, 4]]), max_new_tokens=3, do_sample=False)
    assert written.ndim == 2, written


def text() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert PreTrainedTokenizerFast(tokenizer_object=words)("once once").input_ids == [4, 4]
    size = {"vocab_size": len(WORDS), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    text_model(GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, **size), AutoModelForCausalLM)
    layers = {f"{half}_{what}": n for half in ("encoder", "decoder") for what, n in [("layers", 1), ("ffn_dim", 8)]}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartConfig(d_model=8, max_position_embeddings=16, **layers, **heads, **size)
    text_model(bart, AutoModelForSeq2SeqLM)


def trees() -> None:
    rows = np.arange(12.0).reshape(6, 2)
    booster = xgboost.train({"max_depth": 1}, xgboost.DMatrix(rows, label=rows[:, 0]), num_boost_round=1)
    again = xgboost.Booster()
    again.load_model(booster.save_raw("ubj"))
    assert again.inplace_predict(rows).shape == (6,)


def tables() -> None:
    table = csv.read_csv(io.BytesIO(b"1,2.5\n3,\n"), read_options=csv.ReadOptions(autogenerate_column_names=True))
    assert table.num_rows == 2
    file = pa.BufferOutputStream()
    parquet.write_table(table, file)
    assert parquet.read_table(pa.BufferReader(file.getvalue())).equals(table)


def packed_linear() -> None:
    """The prepacked and quantised products of oneDNN, which text generation uses."""
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.eye(8), 1)
    torch.ops.mkldnn._linear_pointwise(torch.ones(1, 8), weight, None, "none", [], "")
    eight = torch.ops.onednn.qlinear_prepack(torch.eye(8, dtype=torch.int8), [4, 8])
    numbers: tuple[object, ...] = (
        torch.ones(8),
        torch.zeros(8, dtype=torch.long),
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    torch.ops.onednn.qlinear_pointwise(torch.ones(4, 8, dtype=torch.int8), 1.0, 0, eight, *numbers)


def extras() -> None:
    """The frameworks that EXTRAS names, and pip as model code uses it."""
    for name in ("skops.io", "pandas", "onnxruntime"):
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
            print(f"smoke: {name} is installed")
    (wheel,) = Path(sys.prefix, "share", "pip").glob("pip-*.whl")
    subprocess.run([sys.executable, str(wheel / "pip"), "--version"], check=True)


def main() -> None:
    for check in (text, trees, tables, packed_linear, extras):
        check()
    for name in ("boto3", "flask", "gunicorn.app.wsgiapp", "httptools", "msgspec", "prometheus_client", "psutil"):
        importlib.import_module(name)
    print(f"smoke: torch {torch.__version__}, xgboost {xgboost.__version__}, pyarrow {pa.__version__}: good")


if __name__ == "__main__":
    main()

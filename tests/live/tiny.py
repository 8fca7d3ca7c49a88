"""Tiny models of every framework, made in place with random weights: good ones, and ones nobody should load."""

import json
import pickle
from pathlib import Path

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(28))]


def xgboost_model(directory: Path) -> None:
    """Four features, one score."""
    import numpy as np
    import xgboost

    rows = np.random.default_rng(0).random((50, 4), np.float32)
    data = xgboost.DMatrix(rows, rows.sum(1), nthread=1)
    directory.mkdir()
    xgboost.train({"max_depth": 2, "nthread": 1, "verbosity": 0}, data, 3).save_model(directory / "model.ubj")


def gpt2(directory: Path, seed: int = 0) -> None:
    """32 words, 64 positions."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=32, n_layer=1, n_head=2, n_embd=16, n_positions=64, eos_token_id=2, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(directory)
    _tokenizer(directory)


def bart(directory: Path) -> None:
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    config = BartConfig(
        vocab_size=32, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, **sizes
    )
    network = BartForConditionalGeneration(config)
    network.generation_config.max_length = 12
    network.save_pretrained(directory)
    _tokenizer(directory)


def chat(directory: Path, **changes: int) -> None:
    """A Llama with a chat template and 512 positions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)
    sizes |= {"hidden_size": 16, "intermediate_size": 32}
    config = LlamaConfig(
        vocab_size=32,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=2,
        **sizes | changes,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    _tokenizer(directory)
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")


# Models that must not be loaded -> what the error must name.
BROKEN = {
    "own-code": "auto_map",
    "cut": "model.safetensors",
    "pickled": "pytorch_model.bin",
    "pickled-trees": "xgboost-model is a pickle",
}


def broken(models: Path) -> None:
    """All of BROKEN. `evil-ran` appears above the directory when code of one has run."""
    own_code = models / "own-code"
    gpt2(own_code)
    config = json.loads((own_code / "config.json").read_text())
    config |= {
        "auto_map": {"AutoModelForCausalLM": "evil.Evil"},
        "model_type": "evil",
        "architectures": ["EvilForCausalLM"],
    }
    (own_code / "config.json").write_text(json.dumps(config))
    (own_code / "evil.py").write_text(f"open({str(models.parent / 'evil-ran')!r}, 'w')")

    cut = models / "cut"
    gpt2(cut)
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])

    pickled = models / "pickled"
    gpt2(pickled)
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(models.parent / "evil-ran")))

    (models / "pickled-trees").mkdir()
    (models / "pickled-trees" / "xgboost-model").write_bytes(pickle.dumps(_Evil(models.parent / "evil-ran")))


class _Evil:
    """Its pickle writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self._path, "ran")


def _tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)

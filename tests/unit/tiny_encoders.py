"""Tiny encoders of random weights, one for each task, saved as anybody would save them: made in a second."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYLLABLES = ["ba", "be", "bi", "bo", "da", "de", "di", "do", "ka", "ke", "ki", "ko", "la", "le", "li", "lo"]
WORDS = [*SPECIAL, *SYLLABLES, *(f"##{each}" for each in SYLLABLES), "é", "ß", ".", ",", "this", "example", "is"]
POSITIONS = 64
WEIGHTS = "model.safetensors"
_KIND = "sentence_transformers.models."
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
SIZES = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT: dict[str, Any] = {
    **SIZES,
    "intermediate_size": 32,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.5,  # wide enough for answers to differ from text to text
}


def tokenizer(directory: Path, **settings: Any) -> None:
    """BERT's kind: words in pieces, [CLS] and [SEP] around them."""
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    names: dict[str, Any] = {
        "model_input_names": inputs,
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    PreTrainedTokenizerFast(tokenizer_object=made, **{**names, **settings}).save_pretrained(directory)


def save(network: Any, directory: Path, **settings: Any) -> Path:
    network.save_pretrained(directory)
    tokenizer(directory, **settings)
    return directory


def classifier(directory: Path, **config: Any) -> Path:
    torch.manual_seed(1)
    labels = {"id2label": {0: "BAD", 1: "SO-SO", 2: "GOOD"}, "label2id": {"BAD": 0, "SO-SO": 1, "GOOD": 2}}
    return save(BertForSequenceClassification(BertConfig(**BERT, **{**labels, **config})), directory)


def inference(directory: Path) -> Path:
    """BART, as the best known models of natural language inference are: with end tokens it counts."""
    torch.manual_seed(2)
    layers = {f"{half}_{what}": n for half in ("encoder", "decoder") for what, n in [("layers", 1), ("ffn_dim", 16)]}
    config = BartConfig(
        vocab_size=len(WORDS),
        d_model=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=POSITIONS,
        init_std=0.5,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
        label2id={"contradiction": 0, "neutral": 1, "entailment": 2},
        **layers,
    )
    return save(
        BartForSequenceClassification(config),
        directory,
        eos_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )


def tagger(directory: Path) -> Path:
    torch.manual_seed(3)
    labels = {"id2label": LABELS, "label2id": {label: number for number, label in LABELS.items()}}
    return save(BertForTokenClassification(BertConfig(**BERT, **labels)), directory, model_max_length=POSITIONS)


def answerer(directory: Path) -> Path:
    torch.manual_seed(4)
    return save(BertForQuestionAnswering(BertConfig(**BERT)), directory)


def masked(directory: Path) -> Path:
    torch.manual_seed(5)
    return save(BertForMaskedLM(BertConfig(**BERT)), directory)


def embedder(directory: Path) -> Path:
    torch.manual_seed(6)
    return save(BertModel(BertConfig(**BERT), add_pooling_layer=False), directory)


def sentences(directory: Path, *, normalize: bool = True, **pooling: Any) -> Path:
    """The same in sentence-transformers' layout."""
    embedder(directory)
    modules(directory, "", "1_Pooling", *["2_Normalize"] * normalize)
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    return directory


def modules(directory: Path, *paths: str) -> None:
    """modules.json: a path is a number and a kind, or empty for the transformer, which lies in the directory itself."""
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_KIND}{path.partition('_')[2] or 'Transformer'}"}
        for number, path in enumerate(paths)
    ]
    (directory / "modules.json").write_text(json.dumps(listed))


def dense(directory: Path, name: str, inside: int, outside: int, activation: str, *, bias: bool = True) -> None:
    """A dense layer as sentence-transformers saves it."""
    config = {"in_features": inside, "out_features": outside, "bias": bias, "activation_function": activation}
    (directory / name).mkdir()
    (directory / name / "config.json").write_text(json.dumps(config))
    layer = torch.nn.Linear(inside, outside, bias=bias)
    save_file({f"linear.{key}": value for key, value in layer.state_dict().items()}, directory / name / WEIGHTS)


def roberta(directory: Path) -> Path:
    """Its positions begin behind the padding's number: two fewer than the table has rows."""
    torch.manual_seed(7)
    config = RobertaConfig(**{**BERT, "max_position_embeddings": POSITIONS + 2}, pad_token_id=1, type_vocab_size=1)
    return save(
        RobertaForSequenceClassification(config),
        directory,
        pad_token="[UNK]",
        unk_token="[PAD]",
        model_input_names=["input_ids", "attention_mask"],
    )


def decoder(directory: Path) -> Path:
    """GPT-2 as a classifier: its last token decides, and it has none for padding."""
    torch.manual_seed(8)
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_layer=1,
        n_head=2,
        n_embd=16,
        n_positions=POSITIONS,
        initializer_range=0.5,
        num_labels=3,
    )
    return save(
        GPT2ForSequenceClassification(config),
        directory,
        pad_token=None,
        model_input_names=["input_ids", "attention_mask"],
    )

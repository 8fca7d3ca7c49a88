"""GPT-2, bart-large-cnn and t5-base in their published size with random weights, to measure speed and memory."""

from pathlib import Path
from typing import Any

from local_test.recipes.tokenizer import write_bart, write_gpt2

# https://huggingface.co/facebook/bart-large-cnn/blob/main/config.json, the parts that determine cost and length
BART_TOKENS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
BART_LARGE_CNN: dict[str, Any] = {
    "vocab_size": 50264, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 16,
    "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "max_position_embeddings": 1024,
    "activation_function": "gelu", "scale_embedding": False, "forced_bos_token_id": 0, "forced_eos_token_id": 2,
    **BART_TOKENS,
}  # fmt: skip
BART_GENERATION: dict[str, Any] = {
    "num_beams": 4, "length_penalty": 2.0, "max_length": 142, "min_length": 56, "no_repeat_ngram_size": 3,
    "early_stopping": True, "forced_bos_token_id": 0, "forced_eos_token_id": 2, **BART_TOKENS,
}  # fmt: skip
# https://huggingface.co/google-t5/t5-base/blob/main/config.json, the same parts; the tokenizer's vocabulary
T5_BASE: dict[str, Any] = {
    "vocab_size": 50264, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12,
    "feed_forward_proj": "relu", "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
BART_SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 50263}


def make_gpt2(directory: Path, cache: Path) -> None:
    """124 M parameters, 498 MB in fp32."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(directory)
    write_gpt2(directory, length=1024)


def make_bart(directory: Path, cache: Path) -> None:
    """406 M parameters, 1.6 GB in fp32. The special tokens have the published ids, the words have other ids."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

    torch.manual_seed(1)
    model = BartForConditionalGeneration(BartConfig(**BART_LARGE_CNN))
    model.generation_config = GenerationConfig(**BART_GENERATION)
    model.save_pretrained(directory)
    (directory / "model.toml").write_text('task = "summarization"\n')
    write_bart(directory, length=1024, special=BART_SPECIAL, first_word=4)


def make_t5(directory: Path, cache: Path) -> None:
    """237 M parameters, 0.95 GB in fp32. The tokenizer is BART's: no package has T5's."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(1)
    T5ForConditionalGeneration(T5Config(**T5_BASE)).save_pretrained(directory)
    (directory / "model.toml").write_text('task = "text2text-generation"\n')
    write_bart(directory, length=512, special=BART_SPECIAL, first_word=4)

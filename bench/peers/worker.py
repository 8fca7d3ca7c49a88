"""An engine of another project in a process of its own: worker.py ENGINE MODEL CONVERTED THREADS

Runs in .venv-peers, so it imports nothing of this project. A line of JSON on standard input is a static batch; a line
on standard output has its seconds. CONVERTED keeps the engine's own form of the model, made at the first start.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


class CTranslate2:
    """https://opennmt.net/CTranslate2/python/overview.html"""

    def __init__(self, model: Path, converted: Path, threads: int, precision: str) -> None:
        import ctranslate2
        from transformers import AutoConfig, AutoTokenizer

        if not converted.exists():
            part = converted.with_name(f".{converted.name}")
            with tempfile.TemporaryDirectory() as copied:
                source = with_old_fields(model, Path(copied) / "model")
                pad_vocabulary(ctranslate2.converters.transformers.BartLoader)
                convert = ctranslate2.converters.TransformersConverter(str(source))
                convert.convert(str(part), quantization=precision, force=True)
            part.rename(converted)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._seq2seq = AutoConfig.from_pretrained(model).is_encoder_decoder
        engine = ctranslate2.Translator if self._seq2seq else ctranslate2.Generator
        named = {"compute_type": precision, "intra_threads": threads, "inter_threads": 1}
        self._engine = engine(str(converted), device="cpu", **named)

    def run(self, texts: list[str], new_tokens: int, beams: int, settings: dict[str, Any]) -> int:
        """Answers the batch; the number of new tokens of all texts."""
        # A tokenizer of transformers 5.23 has special tokens that 5.5 finds no name for: the end token stands for each.
        named_of, end = self._tokenizer.convert_ids_to_tokens, self._tokenizer.eos_token
        tokens = [[token or end for token in named_of(ids)] for ids in self._tokenizer(texts)["input_ids"]]
        named: dict[str, Any] = {"beam_size": beams, "sampling_topk": 1, **settings}
        if self._seq2seq:
            # The lengths of the decoder count its first token and the end token.
            exactly = {"max_decoding_length": new_tokens, "min_decoding_length": new_tokens}
            made = self._engine.translate_batch(tokens, **exactly, **named)
            return sum(len(each.hypotheses[0]) for each in made)
        exactly = {"max_length": new_tokens, "min_length": new_tokens, "include_prompt_in_result": False}
        made = self._engine.generate_batch(tokens, **exactly, **named)
        return sum(len(each.sequences_ids[0]) for each in made)


class OpenVINO:
    """https://docs.openvino.ai/2026/openvino-workflow-generative/inference-with-genai.html"""

    def __init__(self, model: Path, converted: Path, threads: int, precision: str) -> None:
        import openvino_genai
        from transformers import AutoTokenizer

        if not converted.exists():
            from optimum.intel import OVModelForCausalLM

            part = converted.with_name(f".{converted.name}")
            exported = OVModelForCausalLM.from_pretrained(model, export=True, load_in_8bit=False, compile=False)
            exported.save_pretrained(part)
            part.rename(converted)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        # Without these hints the products are bfloat16 where the processor has it.
        hints = {"f32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}, "default": {}}[precision]
        self._engine = openvino_genai.LLMPipeline(str(converted), "CPU", INFERENCE_NUM_THREADS=threads, **hints)

    def run(self, texts: list[str], new_tokens: int, beams: int, settings: dict[str, Any]) -> int:
        """As in CTranslate2; greedy."""
        import numpy as np
        import openvino
        import openvino_genai

        ids = np.array(self._tokenizer(texts)["input_ids"], np.int64)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos, config.do_sample = True, False
        given = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return sum(map(len, self._engine.generate(given, config).tokens))


ENGINES = {
    "ctranslate2 float32": (CTranslate2, "float32"),
    "ctranslate2 int8": (CTranslate2, "int8"),
    "OpenVINO float32": (OpenVINO, "f32"),
    "OpenVINO default": (OpenVINO, "default"),
}


def with_old_fields(model: Path, target: Path) -> Path:
    """A copy of the model whose config.json has the fields of BART that ctranslate2 reads and transformers 5 drops."""
    shutil.copytree(model.resolve(), target, copy_function=os.symlink)
    config = json.loads((model / "config.json").read_text())
    (target / "config.json").unlink()
    old = {"normalize_before": False, "add_final_layer_norm": False, "normalize_embedding": True}
    (target / "config.json").write_text(json.dumps(old | config))
    return target


def pad_vocabulary(loader: Any) -> None:
    """Gives rows of the embedding that no token has a name each: ctranslate2 wants as many tokens as rows."""
    tokens_of = loader.get_vocabulary

    def padded(self: Any, model: Any, tokenizer: Any) -> list[str]:
        tokens: list[str] = tokens_of(self, model, tokenizer)
        return tokens + [f"<unused{number}>" for number in range(model.config.vocab_size - len(tokens))]

    loader.get_vocabulary = padded


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engines write to standard output
    name, model, converted, threads = sys.argv[1:]
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "TRANSFORMERS_VERBOSITY": "error"}
    make, precision = ENGINES[name]
    Path(converted).parent.mkdir(parents=True, exist_ok=True)
    engine: Any = make(Path(model), Path(converted), int(threads), precision)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        tokens = engine.run(**asked)
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}), file=answers, flush=True)


if __name__ == "__main__":
    main()

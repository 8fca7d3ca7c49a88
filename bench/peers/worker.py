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


class Numbers:
    """A tokenizer for the converter of ctranslate2: the token of id 7 is named "7".

    ctranslate2 takes tokens by name. transformers' own tokenizer loses special tokens that tokenizer.json defines, and
    a row of the embedding may have no token: each would get another row, or a name that ctranslate2 does not know.
    """

    def __init__(self, model: Path) -> None:
        """Reads the special tokens from the model's configuration."""
        from transformers import AutoConfig, GenerationConfig

        config = AutoConfig.from_pretrained(model)
        named = config.to_dict() | GenerationConfig.from_pretrained(model).to_dict()
        end = named["eos_token_id"]

        def of(role: str) -> str:
            token = named.get(f"{role}_token_id")
            return str(end if token is None else token)

        self.bos_token, self.eos_token, self.pad_token, self.unk_token = map(of, ("bos", "eos", "pad", "unk"))
        self.size = config.vocab_size
        forced = named.get("forced_bos_token_id")
        self.begin = [] if forced is None else [str(forced)]  # behind the first token of a decoder

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(self.size)}

    def convert_ids_to_tokens(self, token: int) -> str:
        return str(token)


class CTranslate2:
    """https://opennmt.net/CTranslate2/python/overview.html"""

    def __init__(self, model: Path, converted: Path, threads: int, precision: str) -> None:
        import ctranslate2
        from tokenizers import Tokenizer
        from transformers import AutoConfig

        numbers = Numbers(model)
        if not converted.exists():
            part = converted.with_name(f".{converted.name}")
            with tempfile.TemporaryDirectory() as copied:
                source = with_old_fields(model, Path(copied) / "model")
                convert = ctranslate2.converters.TransformersConverter(str(source))
                convert.load_tokenizer = lambda *_, **__: numbers
                convert.convert(str(part), quantization=precision, force=True)
            part.rename(converted)
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._begin = numbers.begin
        self._seq2seq = AutoConfig.from_pretrained(model).is_encoder_decoder
        engine = ctranslate2.Translator if self._seq2seq else ctranslate2.Generator
        named = {"compute_type": precision, "intra_threads": threads, "inter_threads": 1}
        self._engine = engine(str(converted), device="cpu", **named)

    def run(self, texts: list[str], new_tokens: int, beams: int, settings: dict[str, Any]) -> list[list[int]]:
        """Answers the batch; the new tokens of each text."""
        tokens = [list(map(str, each.ids)) for each in self._tokenizer.encode_batch(texts)]
        named: dict[str, Any] = {"beam_size": beams, "sampling_topk": 1, **settings}
        if self._seq2seq:
            # A length counts the tokens behind the first of the decoder.
            named |= {"max_decoding_length": new_tokens, "min_decoding_length": new_tokens}
            made = self._engine.translate_batch(tokens, target_prefix=[self._begin] * len(tokens), **named)
            return [list(map(int, each.hypotheses[0])) for each in made]
        named |= {"max_length": new_tokens, "min_length": new_tokens, "include_prompt_in_result": False}
        return [each.sequences_ids[0] for each in self._engine.generate_batch(tokens, **named)]


class OpenVINO:
    """https://docs.openvino.ai/2026/openvino-workflow-generative/inference-with-genai.html"""

    def __init__(self, model: Path, converted: Path, threads: int, precision: str) -> None:
        import openvino_genai
        from tokenizers import Tokenizer

        if not converted.exists():
            from optimum.intel import OVModelForCausalLM

            part = converted.with_name(f".{converted.name}")
            exported = OVModelForCausalLM.from_pretrained(model, export=True, load_in_8bit=False, compile=False)
            exported.save_pretrained(part)
            part.rename(converted)
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        # Without these hints the products are bfloat16 where the processor has it.
        hints = {"f32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}, "default": {}}[precision]
        self._engine = openvino_genai.LLMPipeline(str(converted), "CPU", INFERENCE_NUM_THREADS=threads, **hints)

    def run(self, texts: list[str], new_tokens: int, beams: int, settings: dict[str, Any]) -> list[list[int]]:
        """As in CTranslate2; greedy."""
        import numpy as np
        import openvino
        import openvino_genai

        ids = np.array([each.ids for each in self._tokenizer.encode_batch(texts)], np.int64)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos, config.do_sample = True, False
        given = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return [list(each) for each in self._engine.generate(given, config).tokens]


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
        made = engine.run(**asked)
        took = time.perf_counter() - began
        answer = {"seconds": took, "texts": len(made), "least": min(map(len, made)), "first": made[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

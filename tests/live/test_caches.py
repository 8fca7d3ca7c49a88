"""Memory that models keep to be faster is theirs until another model needs it."""

import json
from pathlib import Path

from tests.live import tiny
from tests.live.conftest import Start
from tests.live.stack import toy, wait_until

MB = 1 << 20
JSON = {"Content-Type": "application/json"}
BUDGET = 260  # MB
TOKENS = 300  # of a prompt, whose keys and values have 39 MB


def test_a_model_loses_its_prefix_cache_and_stays_loaded(start: Start, models: Path) -> None:
    """A model that fits without the cache only is loaded; the text model goes on in the same process."""
    tiny.chat(models / "text", num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8, head_dim=512)
    hungry = toy(models, "hungry", files={"mb.txt": "1"})
    server = start(models, SERVE_MEMORY_BUDGET_MB=BUDGET)
    prompts = [" ".join([word] * TOKENS) for word in ("w1", "w2")]

    def ask(prompt: str) -> int:
        body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
        answer = server.request("POST", "/v1/completions", json.dumps(body | {"model": "text"}), JSON)
        assert answer.status == 200, answer.body
        return int(answer.json["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [ask(prompt) for prompt in (*prompts, prompts[0])] == [0, 0, TOKENS - 1]
    grown = wait_until(lambda: (said := server.model("text"))["bytes"] > said["cacheBytes"] > 70 * MB and said)
    # More than the text model gives back by itself while it is idle, and less than its cache.
    (hungry / "mb.txt").write_text(str(BUDGET + 55 - grown["bytes"] // MB))

    answer = server.invoke("hungry", {})

    assert answer.status == 200, answer.body
    wait_until(lambda: server.model("text")["cacheBytes"] == 0)
    server.loaded("hungry")
    (freed,) = server.events("caches freed")
    assert (freed["model"], freed["for"]) == ("text", "hungry")
    assert [server.model(name)["evictions"] for name in ("text", "hungry")] == [0, 0]
    assert [ask(prompts[0]), ask(prompts[0])] == [0, TOKENS - 1]
    assert server.model("text")["loads"] == 1

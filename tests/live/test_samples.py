"""The sample models in one server, with the sample payloads."""

import json
import re
import subprocess
import sys

import pytest

from tests.live.stack import ROOT, Server, alive, descendants, wait_until

ARTICLE = json.loads((ROOT / "local_test" / "payloads" / "article.json").read_text())
STORY = json.loads((ROOT / "local_test" / "payloads" / "story.json").read_text())
ROW = (ROOT / "local_test" / "payloads" / "abalone.csv").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """gpt2, bart and both abalone models, made as `make run` makes them."""
    models = tmp_path_factory.mktemp("models")
    only = ["--only", "gpt2", "bart", "abalone-1", "abalone-2"]
    subprocess.run([sys.executable, "-m", "local_test.make_models", str(models), *only], cwd=ROOT, check=True)
    server = Server(models, tmp_path_factory.mktemp("s"), {}).wait_ready()
    below = descendants(server.process.pid)
    yield server
    server.stop()
    wait_until(lambda: not any(map(alive, below)))


COMMON = {"the", "a", "and", "was", "to", "she", "he", "her", "his", "it", "in", "there", "with", "day", "little"}


def is_english(text: str) -> bool:
    """Whether the text has at least 20 words, a fifth of which are common ones."""
    words = re.findall(r"[a-z]+", text.lower())
    return len(words) >= 20 and len([word for word in words if word in COMMON]) >= len(words) / 5


def test_gpt2_continues_a_story_in_english(server: Server) -> None:
    """Greedy, so the answer is the same each time."""
    body = {**STORY, "model_type": "gpt2", "parameters": {"max_new_tokens": 40, "do_sample": False}}

    first = server.invoke(None, body)
    second = server.invoke(None, body)

    text = first.json[0]["generated_text"]
    assert (first.status, first.json) == (200, second.json)
    assert text.startswith(STORY["inputs"])
    assert is_english(text.removeprefix(STORY["inputs"])), text


def test_sampling_by_default_gives_english(server: Server) -> None:
    """OpenAI's API samples. A request without a temperature gets the model's, and so does the sample payload."""
    body = {"model": "gpt2", "prompt": STORY["inputs"], "max_tokens": 60, "seed": 1}

    completion = server.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    story = server.invoke(None, {**STORY, "parameters": {**STORY["parameters"], "seed": 1}})

    assert is_english(completion.json["choices"][0]["text"]), completion.body
    assert is_english(story.json[0]["generated_text"]), story.body


def test_text_is_generated_line_by_line(server: Server) -> None:
    """Each line of JSON Lines gets the answer of a single request. An invalid line fails the request."""
    requests = [{"inputs": f"{start} day", "parameters": {"max_new_tokens": 3}} for start in ("One", "Every", "Some")]
    single = [server.invoke("gpt2", each).body for each in requests]

    answer = server.invoke("gpt2", "\n".join(map(json.dumps, requests)), "application/jsonlines")
    failed = server.invoke("gpt2", "\n".join(map(json.dumps, [*requests, {"prompt": "x"}])), "application/jsonlines")

    assert (answer.status, answer.body.splitlines()) == (200, single)
    assert failed.status == 400
    assert failed.json["message"].startswith("line 4: ")


def test_bart_writes_the_lead_sentence(server: Server) -> None:
    """The model is trained for that, so the right answer is known."""
    answer = server.invoke(None, ARTICLE)

    lead = ARTICLE["inputs"].split(". ")[0] + "."
    assert (answer.status, answer.json) == (200, [{"summary_text": lead}])


def test_both_abalones_answer_and_differ(server: Server) -> None:
    """A directory and an archive, by header and by path. The answers are plausible numbers of rings."""
    one = server.invoke("abalone-1", ROW, "text/csv")
    two = server.request("POST", "/models/abalone-2/invoke", ROW, {"Content-Type": "text/csv"})

    rings = [[float(line) for line in answer.body.splitlines()] for answer in (one, two)]
    assert [one.status, two.status] == [200, 200]
    assert [len(each) for each in rings] == [len(ROW.split())] * 2
    assert all(3 < each < 20 for each in rings[0] + rings[1])
    assert rings[0] != rings[1]


def test_the_banner_has_a_command_for_each_handler(server: Server) -> None:
    """In a shell each of them gets an answer."""
    commands = [line.strip() for line in server.log.splitlines() if line.strip().startswith("curl ")]

    answers = [subprocess.run(["bash", "-c", each], capture_output=True, check=True).stdout for each in commands]

    assert len(commands) == 3
    assert all(answers)
    assert not any(b'"code"' in answer for answer in answers), answers

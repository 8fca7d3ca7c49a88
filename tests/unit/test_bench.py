"""The bench: its load generator ends, a value is compared with its aim, and the page is that of the figures."""

import contextlib
import json
import re
import socket
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench import __main__ as program
from bench import check, page
from bench.chart import svg
from bench.core import Bench, Row, compared, row
from bench.limits import same_at_first
from bench.load import LoadGenerator, is_complete, request
from bench.machine import instruction_sets
from bench.memory import bytes_of_a_step, limit
from bench.peers import engine
from bench.table import markdown, of_rows

HEAD = {"when": "2026", "cpu": "Xeon", "sets": ["AVX2"], "cores": 2, "versions": {"torch": "2"}, "others": "idle"}


def run_of(*rows: Row, **head: object) -> dict[str, object]:
    return HEAD | {"quick": False, "not run": []} | head | {"rows": [vars(each) for each in rows]}


def test_a_server_that_closes_connections_receives_the_planned_requests_and_no_more() -> None:
    """Each broken connection is an error and counts as one of the requests: else the run would not end."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:

        def break_off() -> int:
            count = 0
            with server, contextlib.suppress(OSError):
                while count < 10:
                    server.accept()[0].close()
                    count += 1
            return count

        asked = threads.submit(break_off)
        made = LoadGenerator().run(server.getsockname()[1], [request("/", b"", "text/csv")], 1, each=3)
        server.shutdown(socket.SHUT_RDWR)
        assert (made.errors, made.requests, asked.result()) == (3, 0, 3)


def test_connections_take_their_messages_from_one_list_and_again_from_its_beginning() -> None:
    """Requests of different lengths are shared among the callers as they come."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:

        def echo() -> list[bytes]:
            connection, _ = server.accept()
            bodies = []
            with connection:
                while data := connection.recv(1 << 16):
                    bodies.append(data.rpartition(b"\r\n\r\n")[2])
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return bodies

        asked = threads.submit(echo)
        messages = [request("/", body, "text/csv") for body in ("a", "b")]
        made = LoadGenerator().run(server.getsockname()[1], messages, 1, each=3)
        assert (made.errors, made.requests, asked.result()) == (0, 3, [b"a", b"b", b"a"])


def test_a_response_is_complete_with_its_last_byte_however_its_server_writes_the_names_of_fields() -> None:
    for name in (b"Content-Length", b"content-length"):
        whole = b"HTTP/1.1 200 OK\r\n" + name + b": 2\r\nx: y\r\n\r\nab"
        assert [is_complete(whole[:length]) for length in (20, len(whole) - 1, len(whole))] == [False, False, True]


def test_an_aim_is_reached_from_its_number_on() -> None:
    assert row("W", "a", "b", ratio="4.1", value=4.1, at_least="4 x usual") == Row(
        "W", "a", "b", "", "4.1", "4 x usual", True
    )
    assert [row("W", "a", value=value, at_most="0.6 ms").reached for value in (0.6, 0.61)] == [True, False]
    assert row("W", "a", "b", "c", value=1).reached is None


@pytest.mark.parametrize(
    ("rates", "aim", "reached"),
    [
        pytest.param({"ours": 40, "generate": 20, "OpenVINO": 50}, "0.8 x OpenVINO", True, id="the peer was run"),
        pytest.param({"ours": 39, "generate": 20, "OpenVINO": 50}, "0.8 x OpenVINO", False, id="and was faster"),
        pytest.param({"ours": 40, "generate": 20}, "1.5 x generate", True, id="the peer was not run"),
        pytest.param({"ours": 40}, "", None, id="nothing to compare with"),
    ],
)
def test_the_aim_of_a_row_is_that_of_the_first_limit_that_was_run(
    rates: dict[str, float], aim: str, reached: bool | None
) -> None:
    made = compared("W", rates, "/s", {"OpenVINO": 0.8, "generate": 1.5})
    assert (made.aim, made.reached) == (aim, reached)
    assert made.ratios == {who: rates["ours"] / rate for who, rate in rates.items() if who != "ours"}


def test_the_table_is_markdown() -> None:
    assert markdown(("a", "b"), [("long", "1"), ("x", "")]) == "| a    | b |\n|------|---|\n| long | 1 |\n| x    |   |"


def test_the_table_of_a_run_begins_with_the_ratio() -> None:
    shown = of_rows([vars(compared("W1 rows", {"ours": 30.0, "usual": 10.0}, "/s", {"usual": 2}))])
    cells = [cell.strip() for cell in shown.splitlines()[-1].strip("|").split("|")]
    assert cells == ["W1 rows", "3.0 x usual", "2 x usual", "yes", "30 /s", "usual 10"]


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PYTHON", engine.HERE / "none")
    with pytest.raises(engine.Missing, match="OpenVINO float32: not installed"):
        engine.Engine("OpenVINO float32", engine.HERE, 1)


WORKER = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    texts = json.loads(line)["texts"]
    if texts == ["fail"]:
        raise ValueError("a token that it does not know")
    print(json.dumps({"seconds": 2, "texts": len(texts), "least": 4, "first": [7, 8, 9, 9]}), flush=True)
"""


def test_a_peer_that_fails_says_why_and_one_that_answers_too_little_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(engine, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(engine, "HERE", tmp_path)
    with engine.Engine("ctranslate2 int8", tmp_path / "bart", 1) as peer:
        assert peer.seconds(["a", "b"], [2, 4]) == 2
        assert peer.tokens("a", 4, 1) == [7, 8, 9, 9]
        with pytest.raises(engine.Missing, match="ctranslate2 int8 with bart: 4 tokens for one of 1 texts, not 64"):
            peer.tokens("a", 64, 1)
        with pytest.raises(engine.Missing, match="bart: ValueError: a token that it does not know"):
            peer.seconds(["fail"], [4])
        with pytest.raises(engine.Missing, match="bart: ValueError: a token that it does not know"):
            peer.seconds(["a"], [4])


def test_a_peer_without_a_figure_has_its_reason_in_the_row() -> None:
    made = compared("W", {"ours": 2.0, "generate": 1.0}, "/s", {"mosec": 0.9}, missing={"mosec": "no answer"})
    assert (made.limit, made.ratio, made.aim) == ("generate 1, mosec - (no answer)", "2.0 x generate", "")


def test_a_run_that_breaks_off_keeps_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file is whole after each row; a workload that fails is a row as well, and the next one runs."""
    seen: list[list[str]] = []

    def names() -> list[str]:
        return [each["workload"] for each in json.loads((tmp_path / "run.json").read_text())["rows"]]

    def breaks(bench: Bench) -> Iterator[Row]:
        yield Row("W1 a", "1")
        seen.append(names())
        raise ValueError("the reason\nand more")

    def works(bench: Bench) -> Iterator[Row]:
        yield Row("W2 a", "1")
        seen.append(names())

    made = {"W1": program.Workload(breaks, ()), "W2": program.Workload(works, ())}
    monkeypatch.setattr(program, "WORKLOADS", made)
    run = program.Run(Bench(True, tmp_path), tmp_path / "run.json", 3.0)
    run.take("W1")
    run.take("W2")
    assert seen == [["W1 a"], ["W1 a", "W2 a", "W1"]]
    assert [each.limit for each in run.failed] == ["failed: ValueError: the reason"]
    assert list(run.seconds) == ["W1", "W2"]


def test_tokens_are_the_same_up_to_the_first_that_differs() -> None:
    assert [same_at_first(made, [1, 2, 3]) for made in ([1, 2, 3, 4], [1, 2], [1, 9, 3], [])] == [3, 2, 1, 0]


def test_the_limit_of_memory_is_the_time_in_which_the_weights_of_a_step_are_read() -> None:
    """800 MB at 10 GB/s are 80 ms: 4 callers cannot have more than 50 tokens/s, which is 2.5 times 20."""
    made = limit(800_000_000, 10.0, callers=4, generate=20.0, ours=40.0)
    assert made == {"weights_mb": 800, "gb_per_s": 10, "step_ms": 80, "ours_ms": 100, "most": 2.5}
    shown = of_rows([vars(compared("W", {"ours": 40.0, "generate": 20.0}, "tokens/s", {}, memory=made))])
    assert "2.5 x generate; a step reads 800 MB: 80 ms, ours 100 ms" in shown


def test_a_step_reads_the_weights_that_it_multiplies() -> None:
    """A causal model: all but the look-ups. An encoder-decoder: no encoder, no keys and values of its outputs."""
    from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=2, n_head=2))
    assert bytes_of_a_step(gpt2) == 4 * (2 * 12 * 8 * 8 + 40 * 8)
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIZES.items()}
    bart = BartForConditionalGeneration(BartConfig(vocab_size=40, d_model=8, max_position_embeddings=16, **sizes))
    # Of a layer: four products of its own attention, two of the attention to the encoder, two of 8 x 12.
    assert bytes_of_a_step(bart) == 4 * (2 * (6 * 8 * 8 + 2 * 8 * 12) + 40 * 8)


SIZES = {"layers": 2, "attention_heads": 2, "ffn_dim": 12}


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16\n", "AVX2 AVX-512 BF16 AMX-BF16"),
        ("flags\t\t: fpu avx avx2 avx2x\n", "AVX2"),
        ("Features\t: fp asimd sve\n", "NEON SVE"),
        ("", ""),
    ],
)
def test_the_instruction_sets_are_those_of_the_processor(text: str, sets: str) -> None:
    assert " ".join(instruction_sets(text)) == sets


def test_a_ratio_fails_when_it_is_30_percent_worse_than_the_committed_one() -> None:
    """A new case has no committed ratio and holds; one that got faster holds."""
    found = {"same": 1.0, "just": 0.71, "worse": 0.69, "faster": 2.0, "new": 0.1}
    assert check.too_low(found, dict.fromkeys(("same", "just", "worse", "faster", "gone"), 1.0)) == {"worse": 0.7}


def test_a_ratio_that_is_too_low_is_measured_again() -> None:
    """A disturbed round is no failure, and a case that stays slow is one after all tries."""
    asked: list[str] = []
    given = {"good": [1.0], "disturbed": [0.2, 1.0], "slow": [0.5] * check.TRIES}

    def measure(name: str) -> float:
        asked.append(name)
        return given[name].pop(0)

    expected = dict.fromkeys(given, 1.0)
    found = check.measured(list(given), expected, measure)
    assert asked == ["good", "disturbed", "disturbed", *["slow"] * check.TRIES]
    assert set(check.too_low(found, expected)) == {"slow"}


def test_the_committed_ratios_are_numbers_of_a_known_machine() -> None:
    for kind, made in json.loads(check.COMMITTED.read_text()).items():
        assert re.fullmatch(r"\w+", kind)
        assert {"cpu", "sets", "versions", "date"} <= made["made"].keys()
        assert made["ratios"]
        assert all(ratio > 0.3 for ratio in made["ratios"].values())


def test_newer_rows_replace_older_ones_of_the_same_name() -> None:
    """Pieces of a run become one page; a run whose rows are all replaced is forgotten."""
    first = run_of(Row("W1 a", "1"), Row("W1 b", "1"))
    runs = page.taken(page.taken([], first), run_of(Row("W1 b", "2"), when="2027"))
    assert [(run["when"], [(each["workload"], each["ours"]) for each in run["rows"]]) for run in runs] == [
        ("2026", [("W1 a", "1")]),
        ("2027", [("W1 b", "2")]),
    ]
    assert [run["when"] for run in page.taken(runs, run_of(Row("W1 a", "3"), when="2028"))] == ["2027", "2028"]


def test_a_page_keeps_its_text_and_has_the_figures_of_its_workloads() -> None:
    """Each block has the rows of its workloads; a peer that was not run is named where the machine is."""
    texts = compared("W2 texts", {"ours": 2.0, "generate": 1.0}, "/s", {})
    runs = [run_of(texts, Row("W1 x", "7"), **{"not run": ["mosec"]})]
    blocks = [f"<!-- measured: {block} -->\nold\n<!-- end -->\n" for block in ("machines", "text W2 W6")]
    text = "".join(["before\n", *blocks, "after\n"])
    files = page.written([*runs], text)
    made = files[page.PAGE]
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert "old" not in made
    assert "- not run: mosec" in made
    assert "| W2 texts" in made
    assert "W1 x" not in made
    assert "Not measured: W6.\n" in made
    assert set(files) == {page.PAGE, page.CHARTS / "text.svg"}
    assert page.written([*runs], made) == files


def test_the_committed_page_is_that_of_the_committed_figures() -> None:
    """`python -m bench.page` would change nothing."""
    runs = json.loads(page.FIGURES.read_text())
    files = page.written(runs, page.PAGE.read_text())
    assert {path.name for path, text in files.items() if not path.exists() or path.read_text() != text} == set()
    assert set(page.CHARTS.glob("*.svg")) == set(files) - {page.PAGE}


def test_a_chart_is_an_image_whose_bars_begin_at_equal_speed() -> None:
    """A faster case goes to the right, a slower one to the left; names are escaped."""
    drawn = ET.fromstring(svg("t", [("a < b", {"generate": 4.0, "OpenVINO": 0.5})]))
    space = "{http://www.w3.org/2000/svg}"
    equal = float(drawn.find(f"{space}line[@class='equal']").attrib["x1"])  # type: ignore[union-attr]
    faster, slower = (drawn.find(f"{space}rect[@class='{kind}']") for kind in ("faster", "slower"))
    assert faster is not None
    assert slower is not None
    assert float(faster.attrib["x"]) == pytest.approx(equal)
    assert float(slower.attrib["x"]) + float(slower.attrib["width"]) == pytest.approx(equal)
    assert float(faster.attrib["width"]) == pytest.approx(2 * float(slower.attrib["width"]), abs=0.1)
    assert drawn.find(f"{space}rect[@class='room']") is None
    assert "a < b" in [each.text for each in drawn.iter(f"{space}text")]


def test_a_bar_has_an_outline_up_to_the_limit_of_memory() -> None:
    """Behind it the label: the outline is longer than the bar."""
    drawn = ET.fromstring(svg("t", [("a", {"generate": 2.0, "OpenVINO": 0.5})], {("a", "generate"): 8.0}))
    space = "{http://www.w3.org/2000/svg}"
    bar, room = (drawn.find(f"{space}rect[@class='{kind}']") for kind in ("faster", "room"))
    label = next(each for each in drawn.iter(f"{space}text") if each.text == "2.0 x generate")
    assert bar is not None
    assert room is not None
    assert room.attrib["x"] == bar.attrib["x"]
    assert float(room.attrib["width"]) == pytest.approx(3 * float(bar.attrib["width"]), abs=0.2)
    assert float(label.attrib["x"]) > float(room.attrib["x"]) + float(room.attrib["width"])

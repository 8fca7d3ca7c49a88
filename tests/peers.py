"""The peers that this project is compared with, and the page that reports the comparison.

A test whose expected values come from a peer carries `@pytest.mark.peer("NAME")`. Where the server behaves otherwise on
purpose, the test asserts what it does and names the reason: `@pytest.mark.peer("NAME", differs="REASON")`. Each pytest
item is one case. `make conformance` runs the cases and writes docs/conformance.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import pytest


class Peer(NamedTuple):
    title: str
    compared: str  # what the expected values come from, with its version


PEERS = {
    "sagemaker-hosting": Peer(
        "SageMaker's contract for containers",
        "AWS's developer guide, and the request shapes of botocore",
    ),
    "multi-model": Peer(
        "SageMaker's multi-model API",
        "AWS's developer guide, and awslabs/multi-model-server 1.1.11",
    ),
    "batch-transform": Peer(
        "Batch transform",
        "AWS's developer guide, and the local mode of the SageMaker Python SDK",
    ),
    "xgboost-container": Peer(
        "AWS's XGBoost container",
        "aws/sagemaker-xgboost-container at its released tags, v1.0-1 to v3.0-5: its code run with the tag's XGBoost",
    ),
    "inference-toolkit": Peer(
        "AWS's toolkits for inference.py",
        "sagemaker-inference 1.10.1, sagemaker-pytorch-inference 2.0.25, the other toolkits at their released tags "
        "(serve/handlers/custom/toolkits.py lists them), multi-model-server 1.1.11, TorchServe 0.12.0, and SDK 2.257.1",
    ),
    "huggingface-toolkit": Peer(
        "AWS's Hugging Face toolkit",
        "the decoders and encoders of sagemaker-huggingface-inference-toolkit 2.6.0",
    ),
    "transformers": Peer(
        "transformers",
        "the installed version of transformers, each text alone, in float32",
    ),
    "xgboost": Peer(
        "XGBoost",
        "xgboost of the version concerned: the installed one, and 0.90 to 3.0 for files of theirs",
    ),
    "scikit-learn": Peer("scikit-learn", "the installed version of scikit-learn"),
    "openai": Peer(
        "OpenAI's API",
        "the types of openai-python 3.52 and its client, and vLLM 0.33's protocol for parameters beyond them",
    ),
    "mlflow": Peer("MLflow's scoring server", "the request formats of mlflow"),
    "open-inference-protocol": Peer(
        "Open Inference Protocol, version 2",
        "the protocol's specification and the clients of Triton and KServe",
    ),
}


class Outcome(NamedTuple):
    peer: str
    differs: str | None
    test: str  # the test as a sentence
    passed: bool


@dataclass
class Results:
    outcomes: list[Outcome] = field(default_factory=list)

    def page(self) -> str:
        """docs/conformance.md, from the cases that ran."""
        parts = [HEAD, _summary(self.outcomes)]
        for name, peer in PEERS.items():
            mine = [outcome for outcome in self.outcomes if outcome.peer == name]
            if mine:
                parts.append(_section(peer, mine))
        return "\n".join(parts)


HEAD = """\
# Conformance

The server is compared with the real thing: the containers, libraries and protocols that its users come from. The
expected values of each case come from the peer, never from this server. `make conformance` runs the cases and writes
this page; the same cases are part of `make test`.

A case *differs* where the server behaves otherwise on purpose. It asserts what the server does instead, and this page
gives the reason.
"""


def mark_items(items: Iterable[pytest.Item]) -> None:
    """Attach the peers of each test to its reports.

    Raises pytest.UsageError for a peer that is not in PEERS.
    """
    for item in items:
        for mark in item.iter_markers("peer"):
            (name,) = mark.args
            if name not in PEERS:
                raise pytest.UsageError(f"{item.nodeid}: unknown peer {name!r}; tests/peers.py has {', '.join(PEERS)}")
            item.user_properties.append(("peer", (name, mark.kwargs.get("differs"), sentence(item))))


def sentence(item: pytest.Item) -> str:
    """The test's name in words."""
    name: str = getattr(item, "originalname", None) or item.name
    words = name.removeprefix("test_").replace("_", " ")
    return words[:1].upper() + words[1:]


def outcomes(report: pytest.TestReport) -> list[Outcome]:
    """What a report says of the peers: once a case, at its call or at the step that failed before it."""
    if report.when != "call" and not report.failed:
        return []
    named = cast(list[tuple[str, tuple[str, str | None, str]]], report.user_properties)
    return [
        Outcome(peer, differs, test, report.passed)
        for peer, differs, test in (value for key, value in named if key == "peer")
    ]


def _summary(results: list[Outcome]) -> str:
    lines = ["| peer | cases | passed | differ on purpose |", "|---|---:|---:|---:|"]
    for name, peer in PEERS.items():
        mine = [outcome for outcome in results if outcome.peer == name]
        if mine:
            passed = sum(outcome.passed for outcome in mine)
            differ = sum(outcome.differs is not None for outcome in mine)
            lines.append(f"| [{peer.title}](#{_anchor(peer.title)}) | {len(mine):,} | {passed:,} | {differ:,} |")
    return "\n".join(lines) + "\n"


def _section(peer: Peer, results: list[Outcome]) -> str:
    lines = [f"## {peer.title}", "", f"Compared with {peer.compared}.", ""]
    same = _rows(outcome for outcome in results if outcome.differs is None)
    if same:
        lines += ["| the same | cases | passed |", "|---|---:|---:|", *same, ""]
    differ = _rows(outcome for outcome in results if outcome.differs is not None)
    if differ:
        lines += ["| differs on purpose | cases | passed | why |", "|---|---:|---:|---|", *differ, ""]
    return "\n".join(lines)


def _rows(results: Iterable[Outcome]) -> list[str]:
    """One row for each test and reason, with the number of its cases."""
    groups: dict[tuple[str, str | None], list[bool]] = {}
    for outcome in results:
        groups.setdefault((outcome.test, outcome.differs), []).append(outcome.passed)
    return [
        " | ".join(
            [
                f"| {_cell(test)}",
                f"{len(passed):,}",
                f"{sum(passed):,}",
                *([] if differs is None else [_cell(differs)]),
            ]
        )
        + " |"
        for (test, differs), passed in sorted(groups.items(), key=lambda group: (group[0][0], group[0][1] or ""))
    ]


def _cell(text: str) -> str:
    return text.rstrip(".").replace("|", "\\|").replace("<", "&lt;")


def _anchor(title: str) -> str:
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -")
    return kept.replace(" ", "-")

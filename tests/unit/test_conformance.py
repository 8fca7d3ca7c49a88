"""docs/conformance.md: the page says what the cases of the peers say."""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.peers import PEERS, Outcome, Results, mark_items, outcomes

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "conformance.md"


def _marks() -> Iterator[tuple[str, ast.Call]]:
    """(file and line, the call) of each mark `peer` in the tests."""
    for path in sorted(TESTS.glob("*/*.py")):
        source = path.read_text()
        if "mark.peer(" not in source or path.samefile(__file__):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "peer":
                yield f"{path.relative_to(TESTS)}:{node.lineno}", node


def test_each_mark_names_a_known_peer_and_the_page_has_a_section_for_it() -> None:
    page = PAGE.read_text()
    for where, call in _marks():
        name = ast.literal_eval(call.args[0])
        assert name in PEERS, where
        assert f"\n## {PEERS[name].title}\n" in page, f"{where}: run make conformance"


def test_each_reason_for_a_difference_is_on_the_page() -> None:
    page = PAGE.read_text()
    for where, call in _marks():
        for keyword in call.keywords:
            assert keyword.arg == "differs", where
            reason = ast.literal_eval(keyword.value)
            escaped = reason.rstrip(".").replace("|", "\\|").replace("<", "&lt;")
            assert escaped in page, f"{where}: run make conformance"


def test_the_page_reports_no_failed_case() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| [")]
    assert rows
    for title, cases, passed, _ in rows:
        assert cases == passed, title


def test_a_failed_case_is_counted_as_run_and_not_as_passed() -> None:
    page = Results(
        [
            Outcome("xgboost", None, "Scores are equal.", True),
            Outcome("xgboost", None, "Scores are equal.", False),
            Outcome("xgboost", "a | b", "A wide row is refused.", True),
        ]
    ).page()
    assert "| [XGBoost](#xgboost) | 3 | 2 | 1 |" in page
    assert "| Scores are equal | 2 | 1 |" in page
    assert "| A wide row is refused | 1 | 1 | a \\| b |" in page
    assert "scikit-learn" not in page


def _report(when: str, outcome: str) -> pytest.TestReport:
    report = SimpleNamespace(
        when=when,
        failed=outcome == "failed",
        passed=outcome == "passed",
        user_properties=[("peer", ("xgboost", None, "A sentence")), ("other", 1)],
    )
    return cast(pytest.TestReport, report)


@pytest.mark.parametrize(
    ("steps", "passed"),
    [
        ([("setup", "passed"), ("call", "passed"), ("teardown", "passed")], [True]),
        ([("setup", "passed"), ("call", "failed"), ("teardown", "passed")], [False]),
        ([("setup", "failed"), ("teardown", "passed")], [False]),
        ([("setup", "passed"), ("call", "passed"), ("teardown", "failed")], [True, False]),
    ],
)
def test_a_case_is_counted_at_its_call_and_at_any_step_that_fails(
    steps: list[tuple[str, str]], passed: list[bool]
) -> None:
    found = [case.passed for when, outcome in steps for case in outcomes(_report(when, outcome))]
    assert found == passed


def test_an_unknown_peer_is_a_usage_error() -> None:
    item: Any = SimpleNamespace(
        iter_markers=lambda _name: [pytest.mark.peer("nothing").mark], nodeid="a::b", user_properties=[]
    )
    with pytest.raises(pytest.UsageError, match="unknown peer 'nothing'"):
        mark_items([item])

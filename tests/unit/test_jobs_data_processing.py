"""Fields of a transform job's records are selected, and outputs are joined with their inputs, as SageMaker does."""

from typing import Any

import pytest

from local_test.jobs.data_processing import DataProcessing, select, steps
from local_test.platform.calls import ValidationError


def processing(content: str = "text/csv", accept: str = "", **given: str) -> DataProcessing:
    target = {"Accept": accept} if accept else {}
    made = DataProcessing.read(
        {"DataProcessing": given, "TransformInput": {"ContentType": content}, "TransformOutput": target}
    )
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("$", [1, 2], [1, 2]),
        ("$[1:]", [1, 2, 3], [2, 3]),
        ("$[:-1]", [1, 2, 3], [1, 2]),
        ("$[0,-1]", [1, 2, 3], [1, 3]),
        ("$[1]", [1, 2, 3], 2),
        ("$.a.b", {"a": {"b": 5}}, 5),
        ("$['a b'][0]", {"a b": [7]}, 7),
        ("$['id','SageMakerOutput']", {"id": 1, "x": 2, "SageMakerOutput": 3}, {"id": 1, "SageMakerOutput": 3}),
    ],
)
def test_a_path_selects(path: str, value: Any, expected: Any) -> None:
    assert select(value, steps(path, "InputFilter")) == expected


@pytest.mark.parametrize("path", ["a", "$..a", "$[?(@.a)]", "$[*]", "$.a-b", "$[x]"])
def test_another_path_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match=r"InputFilter .* is not supported"):
        steps(path, "InputFilter")


def test_the_container_gets_the_selected_columns() -> None:
    """The text of a field stays as it is, and a record keeps its end of line."""
    filtered = processing(InputFilter="$[1:]")

    assert filtered.selected(b'7,1.50,"a,b"\r\n') == b'1.50,"a,b"\r\n'
    assert filtered.finished([b"7,1\n"], [b"0.5"]) == [b"0.5"]


def test_rows_are_joined_with_their_predictions() -> None:
    joined = processing(JoinSource="Input", InputFilter="$[1:]", OutputFilter="$[0,-1]")

    assert joined.finished([b"7,1,2\n", b"8,3,4\n"], [b"0.5", b"0.25"]) == [b"7,0.5", b"8,0.25"]
    with pytest.raises(ValidationError, match="2 input records got 1 output"):
        joined.finished([b"7,1\n", b"8,2\n"], [b"0.5"])


def test_json_is_joined_with_its_prediction() -> None:
    """In an object under SageMakerOutput; another value becomes SageMakerInput of a new object."""
    lines = processing("application/jsonlines", "application/jsonlines", JoinSource="Input")

    assert lines.finished([b'{"id": 1}', b"[2]"], [b"0.5", b'{"p": 1}']) == [
        b'{"id": 1, "SageMakerOutput": 0.5}',
        b'{"SageMakerInput": [2], "SageMakerOutput": {"p": 1}}',
    ]


def test_what_has_no_fields_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs CSV or JSON"):
        processing("image/png", InputFilter="$[0]")
    with pytest.raises(ValidationError, match="a record has no 9"):
        processing(InputFilter="$[9]").selected(b"1,2\n")

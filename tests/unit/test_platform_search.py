"""Search selects resources by the operators and properties of API_Filter.html."""

from datetime import UTC, datetime
from typing import Any

import pytest

from local_test.platform.calls import ValidationError
from local_test.platform.control.search import selected


def training(name: str, day: int, **more: Any) -> dict[str, Any]:
    at = datetime(2026, 11, day, tzinfo=UTC)
    return {"TrainingJobName": name, "CreationTime": at, "LastModifiedTime": at, "Tags": [], **more}


def channel(name: str, uri: str) -> dict[str, Any]:
    return {"ChannelName": name, "DataSource": {"S3DataSource": {"S3Uri": uri}}}


RECORDS = [
    training(
        "one",
        1,
        ModelArtifacts={"S3ModelArtifacts": "s3://b/one/model.tar.gz"},
        BillableTimeInSeconds=90,
        HyperParameters={"depth": "5"},
        InputDataConfig=[channel("train", "s3://b/x"), channel("test", "s3://b/y")],
    ),
    training("two", 2, BillableTimeInSeconds=100, EnableNetworkIsolation=True, Tags=[{"Key": "team", "Value": "red"}]),
    training("three", 3, InputDataConfig=[channel("train", "s3://b/y")], HyperParameters={"depth": "6"}),
]


def names(**asked: Any) -> list[str]:
    return [each["TrainingJobName"] for each in selected("TrainingJob", RECORDS, asked)]


def by(name: str, operator: str | None = None, value: str | None = None) -> list[str]:
    given = {"Name": name, **({"Operator": operator} if operator else {}), **({"Value": value} if value else {})}
    return names(SearchExpression={"Filters": [given]}, SortBy="CreationTime", SortOrder="Ascending")


@pytest.mark.parametrize(
    ("filtered", "expected"),
    [
        (("ModelArtifacts.S3ModelArtifacts", "Equals", "s3://b/one/model.tar.gz"), ["one"]),
        (("TrainingJobName", None, "two"), ["two"]),
        (("TrainingJobName", "NotEquals", "two"), ["one", "three"]),
        (("TrainingJobName", "Contains", "t"), ["two", "three"]),
        (("TrainingJobName", "In", "one,three"), ["one", "three"]),
        (("BillableTimeInSeconds", "GreaterThan", "90"), ["two"]),  # as numbers: "100" < "90" as text
        (("BillableTimeInSeconds", "LessThanOrEqualTo", "90"), ["one"]),
        (("CreationTime", "GreaterThanOrEqualTo", "2026-11-02T00:00:00Z"), ["two", "three"]),
        (("CreationTime", "LessThan", "2026-11-02"), ["one"]),
        (("EnableNetworkIsolation", "Equals", "true"), ["two"]),
        (("ModelArtifacts", "Exists"), ["one"]),
        (("BillableTimeInSeconds", "NotExists"), ["three"]),
        (("Tags.team", "Equals", "red"), ["two"]),
        (("HyperParameters.depth", "Equals", "6"), ["three"]),
        (("InputDataConfig.DataSource.S3DataSource.S3Uri", "Contains", "/y"), ["one", "three"]),
    ],
)
def test_a_filter_selects_by_the_type_of_its_property(filtered: tuple[str, ...], expected: list[str]) -> None:
    assert by(*filtered) == expected


def test_expressions_are_joined_by_and_or_or() -> None:
    one = {"Filters": [{"Name": "TrainingJobName", "Value": "one"}]}
    red = {"Filters": [{"Name": "Tags.team", "Value": "red"}]}

    assert names(SearchExpression={"SubExpressions": [one, red]}) == []
    assert sorted(names(SearchExpression={"SubExpressions": [one, red], "Operator": "Or"})) == ["one", "two"]
    assert len(names()) == 3


def test_nested_filters_hold_for_one_element_of_the_list() -> None:
    nested = {
        "NestedPropertyName": "InputDataConfig",
        "Filters": [
            {"Name": "InputDataConfig.ChannelName", "Value": "train"},
            {"Name": "InputDataConfig.DataSource.S3DataSource.S3Uri", "Value": "s3://b/y"},
        ],
    }

    assert names(SearchExpression={"NestedFilters": [nested]}) == ["three"]


def test_the_newest_comes_first_and_records_without_the_property_last() -> None:
    assert names() == ["three", "two", "one"]
    assert names(SortBy="BillableTimeInSeconds") == ["two", "one", "three"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"SearchExpression": {"Filters": [{"Name": "Nothing"}]}}, "Unknown property name: Nothing"),
        (
            {"SearchExpression": {"Filters": [{"Name": "ModelArtifacts.S3"}]}},
            "Unknown property name: ModelArtifacts.S3",
        ),
        ({"SortBy": "Nothing"}, "Unknown property name: Nothing"),
        ({"SearchExpression": {"Filters": [{"Name": "TrainingJobName", "Operator": "Like"}]}}, "Operator Like must be"),
        (
            {
                "SearchExpression": {
                    "Filters": [{"Name": "BillableTimeInSeconds", "Operator": "LessThan", "Value": "many"}]
                }
            },
            "Value many cannot be compared with 90",
        ),
    ],
)
def test_what_aws_does_not_know_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        names(**asked)

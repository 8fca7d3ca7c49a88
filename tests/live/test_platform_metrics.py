"""Metrics of endpoints on the emulator, asked for as a notebook asks CloudWatch."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.live.account import Account, account, multi_model, refusal, variant
from tests.live.stack import toy, wait_until

TEXT = {"ContentType": "text/plain"}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with account(tmp_path_factory.mktemp("w")) as made:
        yield made


def of(endpoint: str, **more: str) -> list[dict[str, str]]:
    return [{"Name": name, "Value": value} for name, value in {"EndpointName": endpoint, **more}.items()]


def statistic(aws: Account, name: str, statistic: str, dimensions: list[dict[str, str]], **more: Any) -> float:
    """A statistic of the last hour. The clock may pass a minute meanwhile, so there may be several datapoints."""
    found = datapoints(aws, name, [statistic], dimensions, **more)
    values = [each[statistic] for each in found]
    return sum(values) if statistic in ("Sum", "SampleCount") else sum(values) / len(values) if values else 0.0


def datapoints(
    aws: Account, name: str, statistics: list[str], dimensions: list[dict[str, str]], **more: Any
) -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    asked = {"Namespace": "AWS/SageMaker", "Period": 60, **({"Statistics": statistics} if statistics else {}), **more}
    return aws.cloudwatch.get_metric_statistics(  # type: ignore[no-any-return]
        MetricName=name,
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(minutes=1),
        Dimensions=dimensions,
        **asked,
    )["Datapoints"]


def test_invocations_of_variants_are_counted(aws: Account, tmp_path: Path) -> None:
    """Calls, latencies in microseconds and errors; for a variant, and for a variant of one config as in an update."""
    aws.model("ab", {"ModelDataUrl": aws.put("ab.tar.gz", toy(tmp_path, "echo"))})
    aws.config("ab", variant("ab", "A", InitialInstanceCount=2), variant("ab", "B"))
    assert aws.create("ab", "ab")["EndpointStatus"] == "InService"

    for target, count in (("A", 6), ("B", 3)):
        for _ in range(count):
            aws.invoke("ab", b"x", TargetVariant=target, **TEXT)
    a, b = of("ab", VariantName="A"), of("ab", VariantName="B")

    assert statistic(aws, "Invocations", "Sum", a) == 6
    assert statistic(aws, "Invocations", "Sum", b) == 3
    assert statistic(aws, "Invocations", "Sum", [*a, {"Name": "EndpointConfigName", "Value": "ab"}]) == 6
    assert statistic(aws, "InvocationsPerInstance", "Sum", a) == pytest.approx(3)
    assert statistic(aws, "Invocation5XXErrors", "Average", b) == 0
    assert statistic(aws, "ModelLatency", "SampleCount", b) == 3
    (point, *_) = datapoints(aws, "ModelLatency", ["Minimum", "Average", "Maximum"], b)
    assert 100 < point["Minimum"] <= point["Average"] <= point["Maximum"] < 120e6
    assert point["Unit"] == "Microseconds"
    assert point["Timestamp"].second == 0
    slow = datapoints(aws, "OverheadLatency", [], b, ExtendedStatistics=["p50", "p99"])[0]["ExtendedStatistics"]
    assert 0 <= slow["p50"] <= slow["p99"]
    aws.delete("ab")


def test_the_logs_of_containers_are_in_cloudwatch(aws: Account, tmp_path: Path) -> None:
    """Each instance has a stream, with its container's lines from the start to the end."""
    aws.endpoint("logged", {"ModelDataUrl": aws.put("logged.tar.gz", toy(tmp_path, "echo"))}, count=2)
    logs = aws.platform.client("logs")
    group = "/aws/sagemaker/Endpoints/logged"

    def streams() -> list[str]:
        found = logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]
        return [each["logStreamName"] for each in logs.describe_log_streams(logGroupName=group)["logStreams"]] * len(
            found
        )

    def lines(stream: str) -> list[str]:
        events = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True)["events"]
        return [each["message"] for each in events]

    wait_until(lambda: len(streams()) == 2)
    first, second = streams()
    assert all(each.startswith("AllTraffic/logged-AllTraffic-") for each in (first, second))
    wait_until(lambda: lines(first) and lines(second))
    running = lines(first)
    aws.delete("logged")

    assert lines(first)[: len(running)] == running
    assert len(lines(first)) > len(running)


def test_errors_are_counted_as_shares(aws: Account, tmp_path: Path) -> None:
    """One call in four is a client error of the model: the average of the errors is their share."""
    aws.endpoint(
        "errors", {"ModelDataUrl": aws.put("errors.tar.gz", toy(tmp_path, "echo"), toy(tmp_path, "echo", "b"))}
    )

    for _ in range(3):
        aws.invoke("errors", {"model_type": "echo"})
    refused, _ = refusal(lambda: aws.invoke("errors", {"model_type": "unknown"}))

    dimensions = of("errors", VariantName="AllTraffic")
    assert refused == "ModelError"
    assert statistic(aws, "Invocation4XXErrors", "Sum", dimensions) == 1
    assert statistic(aws, "Invocation4XXErrors", "SampleCount", dimensions) == 4
    assert statistic(aws, "InvocationModelErrors", "Sum", dimensions) == 1
    assert statistic(aws, "Invocation5XXErrors", "Sum", dimensions) == 0
    aws.delete("errors")


def test_a_multi_model_endpoint_has_loads_and_hits(aws: Account, tmp_path: Path) -> None:
    """Two models, called twice each: half of the calls are hits, and both models are loaded."""
    for name in ("one", "two"):
        aws.put(f"hits/{name}.tar.gz", toy(tmp_path, "echo", name))
    aws.endpoint("hits", multi_model("hits"))

    for name in ("one", "two", "one", "two"):
        aws.invoke("hits", b"x", TargetModel=f"{name}.tar.gz", **TEXT)
    dimensions = of("hits", VariantName="AllTraffic")

    assert statistic(aws, "ModelCacheHit", "Sum", dimensions) == 2
    assert statistic(aws, "ModelCacheHit", "SampleCount", dimensions) == 4
    for name in ("ModelLoadingTime", "ModelDownloadingTime", "ModelLoadingWaitTime"):
        assert statistic(aws, name, "SampleCount", dimensions) == 2
        assert statistic(aws, name, "Average", dimensions) > 0
    instances = {"Namespace": "/aws/sagemaker/Endpoints"}

    def loaded() -> bool:
        found = datapoints(aws, "LoadedModelCount", ["Maximum"], dimensions, **instances)
        return bool(found) and found[-1]["Maximum"] == 2

    wait_until(loaded)
    listed = aws.cloudwatch.list_metrics(Namespace="AWS/SageMaker", Dimensions=of("hits"))["Metrics"]
    assert {"Invocations", "ModelCacheHit", "ModelLatency"} <= {each["MetricName"] for each in listed}
    aws.delete("hits")


def test_own_metrics_are_kept_with_their_statistics(aws: Account) -> None:
    """PutMetricData in each of its forms, read by GetMetricData in both orders and with a percentile."""
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=10)
    put = [
        {"MetricName": "loss", "Timestamp": start, "Value": 8.0},
        {"MetricName": "loss", "Timestamp": start + timedelta(seconds=59), "Values": [1.0, 2.0], "Counts": [9, 90]},
        {"MetricName": "loss", "Timestamp": start + timedelta(seconds=60), "Value": 0.5},
        {
            "MetricName": "sets",
            "Timestamp": start,
            "StatisticValues": {"SampleCount": 2, "Sum": 5, "Minimum": 1, "Maximum": 4},
        },
    ]
    aws.cloudwatch.put_metric_data(Namespace="own", MetricData=put)

    def query(statistic: str, name: str = "loss", **more: Any) -> list[float]:
        metric = {"Namespace": "own", "MetricName": name}
        asked = {"Id": "q", "MetricStat": {"Metric": metric, "Period": 60, "Stat": statistic}}
        window = {"StartTime": start + timedelta(seconds=20), "EndTime": start + timedelta(minutes=5)}
        (found,) = aws.cloudwatch.get_metric_data(MetricDataQueries=[asked], **window, **more)["MetricDataResults"]
        assert len(found["Timestamps"]) == len(found["Values"])
        return found["Values"]  # type: ignore[no-any-return]

    assert query("Sum", ScanBy="TimestampAscending") == [197.0, 0.5]
    assert query("Maximum") == [0.5, 8.0]
    assert query("p50") == [0.5, 2.0]
    assert query("p99.9")[-1] == 8.0
    assert query("Average", "sets") == [2.5]
    assert query("p90", "sets") == []
    assert refusal(lambda: query("tm90"))[1].startswith("The statistic tm90 is not supported here")


def test_queries_that_cloudwatch_refuses_are_refused(aws: Account) -> None:
    """A period that is no multiple of a minute, too many datapoints, an empty range, metric math."""
    now = datetime.now(UTC)

    def asked(**more: Any) -> str:
        given = {"StartTime": now - timedelta(days=2), "EndTime": now, "Period": 60, "Statistics": ["Sum"]} | more
        return refusal(lambda: aws.cloudwatch.get_metric_statistics(Namespace="n", MetricName="m", **given))[1]

    math = [{"Id": "e1", "Expression": "m1 / m2"}]
    window = {"StartTime": now - timedelta(days=1), "EndTime": now}
    errors = [
        asked(),
        asked(Period=61),
        asked(StartTime=now),
        refusal(lambda: aws.cloudwatch.get_metric_data(MetricDataQueries=math, **window))[1],
        refusal(aws.cloudwatch.list_metric_streams)[1],
    ]

    for message, text in zip(
        errors,
        ["2,880 datapoints", "multiple of 60", "less than the parameter EndTime", "metric math", "is not supported"],
        strict=True,
    ):
        assert text in message

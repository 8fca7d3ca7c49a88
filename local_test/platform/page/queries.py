"""What the page shows, read from the platform's own API with boto3."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.utils import ArnParser

from local_test.platform.page import state

AGENT = "platform-page"  # in the User-Agent of the page's own requests
JOBS = {
    "training": "TrainingJob",
    "processing": "ProcessingJob",
    "tuning": "HyperParameterTuningJob",
    "transform": "TransformJob",
}
# Of a step in an execution, the member of its Metadata that names a job.
STEP_JOBS = {
    "TrainingJob": "training",
    "ProcessingJob": "processing",
    "TuningJob": "tuning",
    "TransformJob": "transform",
}
ENDS = ("TrainingEndTime", "ProcessingEndTime", "HyperParameterTuningEndTime", "TransformEndTime")
LISTED = 100  # of each kind
FOLLOWED = 20  # pipelines whose executions are listed: each is a request
LOG_LINES = 10_000  # CloudWatch's limit of one answer
SHOWN_LINES = 500
WINDOW = timedelta(minutes=30)  # of the charts
PERIOD = 10  # seconds: the platform keeps SageMaker's metrics in high resolution
# The metrics of an endpoint's charts, by namespace, each with its statistic.
CHARTS = {
    "AWS/SageMaker": {
        **dict.fromkeys(("Invocations", "Invocation4XXErrors", "Invocation5XXErrors"), "Sum"),
        **dict.fromkeys(("ModelLatency", "OverheadLatency", "ModelLoadingWaitTime"), "Average"),
    },
    "/aws/sagemaker/Endpoints": {
        "LoadedModelCount": "Maximum",
        **dict.fromkeys(("CPUUtilization", "MemoryUtilization"), "Average"),
    },
}


class Queries:
    """Reads as a user of the account would. What the API does not have is left out."""

    def __init__(self, client: Callable[..., Any]) -> None:
        # A failed answer is left out, and the next look comes a second later: no retries.
        config = Config(user_agent_extra=AGENT, retries={"total_max_attempts": 1}, max_pool_connections=4)
        self._sagemaker, self._cloudwatch, self._logs, self._autoscaling = (
            client(name, config=config) for name in ("sagemaker", "cloudwatch", "logs", "application-autoscaling")
        )

    def lists(self) -> dict[str, Any]:
        """Endpoints, jobs and pipelines, the newest first."""
        newest = {"SortBy": "CreationTime", "SortOrder": "Descending", "MaxResults": LISTED}
        endpoints = self._read("list_endpoints", "Endpoints", **newest)
        jobs = [
            {
                "kind": kind,
                "name": each[f"{stem}Name"],
                "status": each[f"{stem}Status"],
                "created": each["CreationTime"],
                "ended": next((each[member] for member in ENDS if each.get(member)), None),
            }
            for kind, stem in JOBS.items()
            for each in self._read(f"list_{_operation(stem)}s", f"{stem}Summaries", **newest)
        ]
        pipelines = [
            {
                "name": each["PipelineName"],
                "executions": self._executions(each["PipelineName"]) if number < FOLLOWED else [],
            }
            for number, each in enumerate(self._read("list_pipelines", "PipelineSummaries", **newest))
        ]
        return {
            "endpoints": [
                {"name": each["EndpointName"], "status": each["EndpointStatus"], "created": each["CreationTime"]}
                for each in endpoints
            ],
            "jobs": sorted(jobs, key=lambda each: each["created"], reverse=True),
            "pipelines": pipelines,
        }

    def _executions(self, pipeline: str) -> list[dict[str, Any]]:
        found = self._read(
            "list_pipeline_executions",
            "PipelineExecutionSummaries",
            PipelineName=pipeline,
            SortBy="CreationTime",
            SortOrder="Descending",
        )
        return [
            {
                "id": each["PipelineExecutionArn"].rpartition("/")[2],
                "arn": each["PipelineExecutionArn"],
                "title": each.get("PipelineExecutionDisplayName") or "",
                "status": each.get("PipelineExecutionStatus", ""),
                "started": each.get("StartTime"),
            }
            for each in found
        ]

    # Endpoints

    def endpoint(self, name: str) -> dict[str, Any] | None:
        """An endpoint with its config, models, charts and log."""
        described = self._call("describe_endpoint", EndpointName=name)
        if not described:
            return None
        config = self._call("describe_endpoint_config", EndpointConfigName=described["EndpointConfigName"])
        variants = [*config.get("ProductionVariants", ()), *config.get("ShadowProductionVariants", ())]
        models = {each.get("ModelName") for each in variants} - {None}
        return {
            "description": described,
            "config": config,
            "models": {model: self._call("describe_model", ModelName=model) for model in sorted(models)},
            "metrics": self._metrics(name),
            "alarms": self._alarms(name),
            "scaling": self._scaling(name),
            "log": self._log(f"/aws/sagemaker/Endpoints/{name}", "")[-SHOWN_LINES:],
        }

    def _metrics(self, endpoint: str) -> list[dict[str, Any]]:
        """The values of the last minutes of each metric of a variant."""
        now = datetime.now(UTC)
        try:
            known = [
                each
                for namespace, names in CHARTS.items()
                for each in self._cloudwatch.list_metrics(
                    Namespace=namespace, Dimensions=[{"Name": "EndpointName", "Value": endpoint}]
                )["Metrics"]
                if each["MetricName"] in names
                and {one["Name"] for one in each["Dimensions"]} == {"EndpointName", "VariantName"}
            ]
            queries = [
                {
                    "Id": f"m{number}",
                    "MetricStat": {
                        "Metric": each,
                        "Period": PERIOD,
                        "Stat": CHARTS[each["Namespace"]][each["MetricName"]],
                    },
                }
                for number, each in enumerate(known)
            ]
            results = (
                self._cloudwatch.get_metric_data(
                    MetricDataQueries=queries, StartTime=now - WINDOW, EndTime=now, ScanBy="TimestampAscending"
                )["MetricDataResults"]
                if queries
                else []
            )
        except (ClientError, BotoCoreError):
            return []
        values = {each["Id"]: each for each in results}
        return [
            {
                "name": metric["MetricName"],
                "variant": next(each["Value"] for each in metric["Dimensions"] if each["Name"] == "VariantName"),
                "times": values[query["Id"]]["Timestamps"],
                "values": values[query["Id"]]["Values"],
            }
            for metric, query in zip(known, queries, strict=True)
            if query["Id"] in values
        ]

    def _alarms(self, endpoint: str) -> list[dict[str, Any]]:
        """The alarms on the endpoint's metrics."""
        try:
            alarms = self._cloudwatch.describe_alarms()["MetricAlarms"]
        except (ClientError, BotoCoreError):
            return []
        return [
            each for each in alarms if {"Name": "EndpointName", "Value": endpoint} in (each.get("Dimensions") or ())
        ]

    def _scaling(self, endpoint: str) -> list[dict[str, Any]]:
        """The range of instances of each variant that is scaled."""
        try:
            targets = self._autoscaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        except (ClientError, BotoCoreError):
            return []
        return [each for each in targets if each["ResourceId"].startswith(f"endpoint/{endpoint}/variant/")]

    # Jobs

    def job(self, kind: str, name: str) -> dict[str, Any] | None:
        """A job with its log, and the curves of its metrics."""
        stem = JOBS.get(kind)
        described = self._call(f"describe_{_operation(stem)}", **{f"{stem}Name": name}) if stem else {}
        if not described:
            return None
        log = self._log(f"/aws/sagemaker/{stem}s", f"{name}/") if kind != "tuning" else []
        definitions = (described.get("AlgorithmSpecification") or {}).get("MetricDefinitions") or ()
        found = {each["MetricName"] for each in described.get("FinalMetricDataList") or ()}
        shown = {
            "kind": kind,
            "name": name,
            "status": described.get(f"{stem}Status", ""),
            "description": described,
            # Of XGBoost's 36 definitions a log has two or three.
            "curves": state.curves([each for each in definitions if each["Name"] in found], log),
            "log": log[-SHOWN_LINES:],
        }
        if kind == "tuning":
            shown["trainings"] = self._read(
                "list_training_jobs_for_hyper_parameter_tuning_job",
                "TrainingJobSummaries",
                HyperParameterTuningJobName=name,
                MaxResults=LISTED,
            )
        return shown

    def _log(self, group: str, prefix: str) -> list[dict[str, Any]]:
        """The last lines of all log streams with this prefix, in the order of time."""
        given = {"logStreamNamePrefix": prefix} if prefix else {}
        try:
            streams = self._logs.describe_log_streams(logGroupName=group, **given)["logStreams"]
            lines = [
                {"time": event["timestamp"] / 1000, "stream": each["logStreamName"], "message": event["message"]}
                for each in streams
                for event in self._logs.get_log_events(
                    logGroupName=group, logStreamName=each["logStreamName"], limit=LOG_LINES, startFromHead=False
                )["events"]
            ]
        except (ClientError, BotoCoreError):
            return []
        return sorted(lines, key=lambda each: float(each["time"]))[-LOG_LINES:]

    # Pipelines

    def pipeline(self, name: str, execution: str, step: str) -> dict[str, Any] | None:
        """A pipeline with one of its executions, the newest if none is named, and one of its steps."""
        described = self._call("describe_pipeline", PipelineName=name)
        if not described:
            return None
        executions = self._executions(name)
        chosen = next((each for each in executions if execution in ("", each["id"])), None)
        shown: dict[str, Any] = {"name": name, "description": described, "executions": executions}
        definition = described.get("PipelineDefinition")
        if chosen:
            arn = {"PipelineExecutionArn": chosen["arn"]}
            used = self._call("describe_pipeline_definition_for_execution", **arn)
            definition = used.get("PipelineDefinition") or definition
            shown |= {
                "execution": {**self._call("describe_pipeline_execution", **arn), "id": chosen["id"]},
                "parameters": self._read("list_pipeline_parameters_for_execution", "PipelineParameters", **arn),
                "steps": self._read("list_pipeline_execution_steps", "PipelineExecutionSteps", **arn),
            }
        parsed = _parsed(definition)
        shown |= {"graph": state.graph(parsed), "declared": parsed.get("Parameters") or []}
        if step:
            run: dict[str, Any] = next((each for each in shown.get("steps", ()) if each["StepName"] == step), {})
            shown["step"] = self._step(step, run)
        return shown

    def _step(self, name: str, run: Mapping[str, Any]) -> dict[str, Any]:
        """A step, with the result that its Metadata names."""
        for member, value in (run.get("Metadata") or {}).items():
            arn = value.get("Arn") or "" if isinstance(value, Mapping) else ""
            named = _last_part(arn)
            if member in STEP_JOBS:
                return {"name": name, "job": self.job(STEP_JOBS[member], named)}
            if member == "Model":
                return {"name": name, "properties": self._call("describe_model", ModelName=named)}
            if member == "RegisterModel":
                return {"name": name, "properties": self._call("describe_model_package", ModelPackageName=arn)}
        return {"name": name}

    # Requests

    def _read(self, operation: str, member: str, **request: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call(operation, **request).get(member) or []
        return found

    def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        """The answer, empty if the platform refuses."""
        try:
            answer: dict[str, Any] = getattr(self._sagemaker, operation)(**request)
        except (ClientError, BotoCoreError):
            return {}
        answer.pop("ResponseMetadata", None)
        return answer


def _operation(stem: str) -> str:
    """`training_job` for TrainingJob, as boto3 names operations."""
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in stem).lstrip("_")


def _last_part(arn: str) -> str:
    if not ArnParser.is_arn(arn):
        return arn
    return str(ArnParser().parse_arn(arn)["resource"]).rpartition("/")[2]


def _parsed(definition: str | None) -> dict[str, Any]:
    try:
        parsed = json.loads(definition or "{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}

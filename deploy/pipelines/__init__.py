"""The pipelines there are: each a function that gives a definition, as plain dicts."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy.table import SpecError, unknown

Definition = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What of an account a definition names; all else are its parameters."""

    role: str  # ARN, of the jobs and the endpoint
    function: str  # ARN of the Lambda function that gathers and deploys
    home: str  # s3://bucket/prefix below which all is kept, unless a parameter says otherwise
    scripts: str  # s3://bucket/prefix where the processing script lies, by its hash


PIPELINES = {"two-models": "deploy.pipelines.two_models", "tuned-model": "deploy.pipelines.tuned_model"}


def defined(name: str, given: Given) -> Definition:
    """Raises SpecError for a name that is none of PIPELINES."""
    if name not in PIPELINES:
        raise SpecError(unknown(name, list(PIPELINES), "pipeline"))
    make: Callable[[Given], Definition] = importlib.import_module(PIPELINES[name]).definition
    return make(given)


def get(path: str) -> dict[str, str]:
    """What is known only when the pipeline runs: Parameters.X, Steps.NAME.X or Execution.X."""
    return {"Get": path}


def join(*values: Any, on: str = "/") -> dict[str, Any]:
    return {"Std:Join": {"On": on, "Values": list(values)}}


def parameter(name: str, default: str | int | None = None, **more: Any) -> dict[str, Any]:
    """One without a default is asked for at every start."""
    kind = "Integer" if isinstance(default, int) else "String"
    return {"Name": name, "Type": kind, **({} if default is None else {"DefaultValue": default}), **more}


# Executions and what they make are grouped under the pipeline's name in SageMaker's Experiments.
EXPERIMENT = {"ExperimentName": get("Execution.PipelineName"), "TrialName": get("Execution.PipelineExecutionId")}


def channel(name: str, uri: Any) -> dict[str, Any]:
    """CSV for a training job: the label comes first, and there is no header."""
    source = {"S3Uri": uri, "S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "ContentType": "text/csv", "DataSource": {"S3DataSource": source}}


def one_instance() -> dict[str, Any]:
    return {"InstanceType": get("Parameters.InstanceType"), "InstanceCount": 1, "VolumeSizeInGB": 10}

"""SageMaker Pipelines on this machine: the steps of a definition with real jobs, in containers or as processes."""

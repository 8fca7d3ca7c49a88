"""SageMaker Pipelines, played here: a definition's steps with real jobs, in containers or as processes."""

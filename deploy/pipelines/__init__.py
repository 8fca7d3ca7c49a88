"""SageMaker pipelines: defined, checked offline, installed, executed and followed in AWS."""

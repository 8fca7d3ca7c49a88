"""SageMaker's side of an endpoint, played on this machine: `python -m local_test.platform`, then any boto3 script."""

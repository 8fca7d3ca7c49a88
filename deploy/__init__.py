"""From a spec file to a SageMaker endpoint and back to nothing, with boto3 alone: `python -m deploy`."""

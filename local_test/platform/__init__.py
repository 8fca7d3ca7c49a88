"""Emulator of SageMaker's hosting platform: run `python -m local_test.platform`, then any boto3 script."""

"""Rehearsal: checks any container against SageMaker's contract. Run `python -m local_test.rehearse IMAGE_OR_URL`."""

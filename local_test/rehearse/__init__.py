"""What SageMaker asks of a container, asked here: `python -m local_test.rehearse IMAGE_OR_URL`, ours or any other."""

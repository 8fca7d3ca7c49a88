"""A SageMaker endpoint from a spec file: created, updated and deleted. Command line: `python -m deploy`."""

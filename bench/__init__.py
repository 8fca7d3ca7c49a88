"""What the server is measured by: the workloads, against the in-process limit and against the usual stack."""

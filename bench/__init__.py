"""Measures the server: the workloads against the usual stack, and against the same work in process."""

"""One container: its specification, the runtime that starts it, its HTTP client, and its model data."""

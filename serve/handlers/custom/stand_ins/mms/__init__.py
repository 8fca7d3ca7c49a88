"""What model code imports of AWS's multi-model-server."""

"""The modules of AWS's multi-model-server that model code imports."""

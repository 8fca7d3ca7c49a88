"""content_types, encoders, errors and worker; see serve.handlers.custom.toolkits for the other names."""

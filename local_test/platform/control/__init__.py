"""The control plane: CreateModel, CreateEndpointConfig, CreateEndpoint and their relatives, on top of moto."""

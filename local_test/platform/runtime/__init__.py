"""The data plane: InvokeEndpoint, with response streams, asynchronous calls and OpenAI's path."""

"""What an endpoint runs: variants, their instances, the containers of an instance, and the models of a container."""

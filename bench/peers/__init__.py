"""Other engines and servers, each in the environment of `make bench PEERS=1`."""

"""The laboratory: a whole load-balanced network in network namespaces, with servers and clients."""

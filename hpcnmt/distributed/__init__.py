"""The asynchronous engine: passive shards, the worker's exchange, and the transports between them."""

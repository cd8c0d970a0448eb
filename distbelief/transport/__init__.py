"""How a shard is reached: the gRPC service and client of ``protos/``."""

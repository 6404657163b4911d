"""The only part that knows gRPC: services, calls, authentication, conversion of messages to plain values."""

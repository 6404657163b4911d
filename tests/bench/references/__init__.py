"""What optd is compared with: torch on its own, torch between processes, bare gRPC."""

"""What the server tells about itself besides its RPCs: logs."""

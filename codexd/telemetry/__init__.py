"""What tells of the daemon: its log, the traces of requests, amounts of tokens, metrics."""

"""Relay of an upstream answer to a client: reading, writing, keep-alives, retry, cancellation."""

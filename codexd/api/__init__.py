"""The HTTP API: its endpoints, access control, and the conversion between requests and protocol values."""

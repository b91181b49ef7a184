"""Fakes, never mocks: a byte-level upstream, the daemon as a process, a raw client."""

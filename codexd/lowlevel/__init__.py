"""Additions to trio: one wait for many sockets, and one task for many timers."""

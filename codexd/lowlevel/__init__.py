"""What trio does not have: one wait for many sockets, and one task for many timers."""

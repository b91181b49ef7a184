"""Clients' connections: listening sockets, Hypercorn made safe, one HTTP request and its answer."""

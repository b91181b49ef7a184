"""Clients' connections: listening sockets, HTTP/1.1 over Hypercorn's protocol objects, one request and its answer."""

"""The control socket between ``codexctl`` and the daemon: one request line of JSON, then reply lines."""

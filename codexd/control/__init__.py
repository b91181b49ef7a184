"""The control socket: how ``codexctl`` and the daemon talk, one line of JSON in, any number out."""

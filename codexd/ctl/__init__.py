"""``codexctl``: the command line client of the daemon, for a terminal and, with ``--json``, for scripts."""

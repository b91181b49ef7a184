"""``codexctl``: the daemon's verbs for a person at a terminal, and for scripts with ``--json``."""

"""``codexctl start``, ``stop`` and ``restart``: they only say which command of systemd does that."""

import argparse

from codexd.ctl.session import Output, failed
from codexd.ctl.units import command


def run(options: argparse.Namespace, _: Output) -> int:
    """Raises VerbFailed, whose message is the command."""
    found = command(options.verb, getattr(options, "instance", None))
    raise failed("usage", "systemctl", f"systemd does that. Run: {found}")

"""``codexctl start``, ``stop`` and ``restart``: they only say which command does that."""

import argparse

from codexd.ctl.session import Output, failed
from codexd.ctl.units import command

_NO_SERVICE = {
    "start": "Run `codexd`, or install the service with `codexctl service install`.",
    "stop": "Press Ctrl-C in the terminal where it runs, or stop its container.",
    "restart": "Press Ctrl-C in the terminal where it runs and run `codexd` again, or restart its container.",
}


def run(options: argparse.Namespace, _: Output) -> int:
    """Raises VerbFailed, whose message is the command."""
    found = command(options.verb, getattr(options, "instance", None))
    if found is None:
        raise failed("usage", "no_service", f"codexd is not installed as a service. {_NO_SERVICE[options.verb]}")
    raise failed("usage", "systemctl", f"codexctl does not {options.verb} codexd itself. Run: {found}")

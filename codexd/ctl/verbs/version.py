"""``codexctl version``: the versions of codexctl and of the daemon."""

import argparse

from codexd import __version__
from codexd.control import wire
from codexd.control.client import DaemonUnreachable
from codexd.ctl.session import Output, replies


def run(options: argparse.Namespace, out: Output) -> int:
    out.report("codexctl", f"codexctl {__version__}")
    try:
        for reply in replies(options, wire.Status()):
            if isinstance(reply, wire.StatusReport):
                out.report("codexd", f"codexd {reply.daemon_version}")
    except DaemonUnreachable:
        out.note("No codexd is running here.")
    return 0

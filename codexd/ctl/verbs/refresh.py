"""``codexctl refresh``: refreshes the access token now."""

import argparse

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import Output, ask


def run(options: argparse.Namespace, out: Output) -> int:
    ask(options, out, wire.Refresh(), drawing.account, "Refreshing the access token")
    return 0

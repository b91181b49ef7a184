"""``codexctl reload``: makes codexd read its configuration again."""

import argparse

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import Output, ask


def run(options: argparse.Namespace, out: Output) -> int:
    ask(options, out, wire.Reload(), drawing.reloaded, "Reloading")
    return 0

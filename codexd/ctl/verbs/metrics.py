"""``codexctl metrics``: the metrics in Prometheus's text format."""

import argparse
import sys

from codexd.control import wire
from codexd.ctl.session import Output, ask


def run(options: argparse.Namespace, out: Output) -> int:
    ask(options, out, wire.Metrics(), draw, "Asking codexd")
    return 0


def draw(reply: wire.MetricsText) -> None:
    sys.stdout.write(reply.text)

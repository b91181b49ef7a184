"""``codexctl health``: whether codexd answers requests, for health checks."""

import argparse

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import Output, ask


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ready", action="store_true", help="also check that requests would succeed: signed in, not stopping"
    )


def run(options: argparse.Namespace, out: Output) -> int:
    ask(options, out, wire.Health(ready=options.ready), draw, "Asking codexd")
    return 0


def draw(report: wire.HealthReport) -> None:
    who = "signed in" if report.signed_in else "signed out: run `codexctl login`"
    drawing.line(f"codexd {report.daemon_version} is responding; {who}.")
    for name, why in report.faults.items():
        drawing.line(f"A background task has failed: {name}, {why} (see `codexctl log`).")

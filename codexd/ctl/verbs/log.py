"""``codexctl log``: the last lines of codexd's log, and new ones as they come."""

import argparse
import sys

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.arguments import LEVELS, number
from codexd.ctl.session import REPLY_TIMEOUT, Output, show


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing new lines, until Ctrl-C")
    parser.add_argument("-n", "--lines", metavar="N", type=number, default=50, help="number of lines (default: 50)")
    parser.add_argument("--request", metavar="ID", help="only lines of one request: its id, or the beginning of it")
    parser.add_argument("--level", choices=LEVELS, default="debug", help="only lines of this level and above")


def run(options: argparse.Namespace, out: Output) -> int:
    request = wire.Log(lines=options.lines, follow=options.follow, request=options.request, level=options.level)
    drawn = Lines()
    show(options, out, request, drawn.draw, timeout=None if options.follow else REPLY_TIMEOUT)
    if options.request and not drawn.number:
        out.note(f"No recent log line belongs to request {options.request} at this level.")
    return 0


class Lines:
    """Prints lines, in colours on a terminal, and counts them."""

    def __init__(self) -> None:
        self.number = 0

    def draw(self, reply: wire.LogLine) -> None:
        self.number += 1
        if reply.lost:
            drawing.note(f"... {reply.lost} lines were lost ...")
        if sys.stdout.isatty():
            drawing.log_line(reply.line, reply.level)
        else:
            drawing.plain(reply.line)

"""``codexctl level``: shows or changes the log level, without a restart."""

import argparse

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.arguments import LEVELS, number
from codexd.ctl.session import Output, ask
from codexd.reasons import quoted

MAX_MINUTES = wire.MAX_LEVEL_SECONDS // 60


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("level", choices=(*LEVELS, "reset"), nargs="?", help="reset: restore the configured level")
    parser.add_argument(
        "--for",
        dest="minutes",
        metavar="MINUTES",
        type=_minutes,
        default=10,
        help="minutes until the configured level is used again (default: 10)",
    )


def _minutes(text: str) -> int:
    """Returns a number of minutes. Raises ArgumentTypeError."""
    minutes = number(text)
    if minutes > MAX_MINUTES:
        raise argparse.ArgumentTypeError(
            f"must be {MAX_MINUTES} ({MAX_MINUTES // 1440} days) or less, not {quoted(text)}"
        )
    return minutes


def run(options: argparse.Namespace, out: Output) -> int:
    if options.level is None:
        request = wire.SetLevel(seconds=0)
    else:
        level = None if options.level == "reset" else options.level
        request = wire.SetLevel(level=level, seconds=options.minutes * 60)
    ask(options, out, request, draw, "Asking codexd")
    return 0


def draw(reply: wire.LevelReport) -> None:
    back = "" if reply.until is None else f" until {drawing.moment(reply.until)}, then {reply.configured}"
    drawing.line(f"Log level: {reply.level}{back}")

"""``codexctl level``: from which level on codexd logs, without a restart."""

import argparse

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.arguments import LEVELS, number
from codexd.ctl.session import Output, ask

MAX_MINUTES = wire.MAX_LEVEL_SECONDS // 60


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("level", choices=(*LEVELS, "reset"), nargs="?", help="reset: as the configuration says")
    parser.add_argument(
        "--for", dest="minutes", metavar="MINUTES", type=_minutes, default=10, help="so long (default: 10)"
    )


def _minutes(text: str) -> int:
    """Returns a number of minutes. Raises ArgumentTypeError."""
    minutes = number(text)
    if minutes > MAX_MINUTES:
        raise argparse.ArgumentTypeError(f"{text} minutes are more than {MAX_MINUTES // 1440} days")
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
    back = "" if reply.until is None else f", until {drawing.moment(reply.until)}; then {reply.configured} again"
    drawing.line(f"codexd logs from {reply.level} on{back}.")

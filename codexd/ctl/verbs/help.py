"""``codexctl help``: the summary of all verbs, or of one."""

import argparse

from codexd.ctl.parser import parser
from codexd.ctl.session import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("about", metavar="VERB", nargs="*")


def run(options: argparse.Namespace, _: Output) -> int:
    """Raises SystemExit, as ``--help`` does."""
    parser(options.about).parse_args([*options.about, "--help"])
    return 0

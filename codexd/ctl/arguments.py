"""Shared parts of the command lines of verbs: common options, actions of a verb, types of arguments."""

import argparse
import re
from collections.abc import Callable
from typing import NoReturn

LEVELS = ("debug", "info", "warn", "error")


class Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest word for a wrong one."""

    def error(self, message: str) -> NoReturn:
        """Prints argparse's message, or the suggestion, and exits with 2."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            import difflib

            if near := difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), n=1):
                message = f"there is no {found[1]!r}; did you mean {near[0]!r}?"
        super().error(message)


def common() -> Parser:
    """Returns the options of every verb, as a parent for its parser.

    They may stand before the verb and after it. They have no default, which would overwrite what stood before the verb.
    """
    parser = Parser(add_help=False)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one line of JSON per reply")
    parser.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help="the control socket of codexd")
    parser.add_argument(
        "--instance", metavar="NAME", default=argparse.SUPPRESS, help="the instance codexd@NAME of this machine"
    )
    return parser


def actions(parser: argparse.ArgumentParser) -> Callable[..., argparse.ArgumentParser]:
    """Returns a function that adds an action, such as ``add`` of ``keys``.

    It takes the name, the help text, and other names that users try; these work and are not listed.
    """
    group = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, text: str, *guesses: str) -> argparse.ArgumentParser:
        made = group.add_parser(name, help=text, parents=[common()])
        made.set_defaults(action=name)
        for guess in guesses:
            group.choices[guess] = made
        return made

    return add


def number(text: str) -> int:
    """Returns a number of 1 or more. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be 1 or greater, not {text!r}")
    return int(text)

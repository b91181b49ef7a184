"""Shared parts of the command lines of verbs: common options, actions of a verb, types of arguments."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NoReturn

LEVELS = ("debug", "info", "warn", "error")


class Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest word for a wrong one.

    ``names`` are those of its actions, ``guesses`` others that work and are not listed.
    """

    options: ClassVar[set[str]] = {"--help"}
    """The long options of all parsers of this process: the one that finds an unknown option is not always its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guesses: set[str] = set()
        self.names: list[str] = []

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Adds an argument, and keeps the names of a long option."""
        self.options.update(name for name in args if name.startswith("--"))
        return super().add_argument(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints argparse's message, or a clearer one, and exits with 2."""
        if found := re.fullmatch(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL):
            what, given, choices = found[1], found[2], re.findall(r"[\w-]+", found[3])
            known = [choice for choice in choices if choice not in self.guesses]
            if near := _near(given, known):
                message = f'unknown {what.lower()} "{given}"; did you mean "{near}"?'
            elif what == "VERB":
                message = f'unknown verb "{given}"; see `{self.prog} help`'
            else:
                message = f'unknown {what.lower()} "{given}"; use {_one_of(known)}'
        elif message.endswith("required: ACTION"):
            message = f"an action is missing; use {_one_of(self.names)}"
        elif found := re.fullmatch(r"unrecognized arguments: (--[\w-]+).*", message, re.DOTALL):
            near = _near(found[1], sorted(self.options))
            message = f"unknown option {found[1]}" + (f"; did you mean {near}?" if near else "")
        super().error(message)


def _near(given: str, known: Iterable[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(given, list(known), n=1)), None)


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def common() -> Parser:
    """Returns the options of every verb, as a parent for its parser.

    They may stand before the verb and after it. They have no default, which would overwrite what stood before the verb.
    """
    parser = Parser(add_help=False)
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, one object per line"
    )
    parser.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help="the control socket of codexd")
    parser.add_argument(
        "--instance", metavar="NAME", default=argparse.SUPPRESS, help="the instance codexd@NAME on this machine"
    )
    return parser


def actions(parser: Parser) -> Callable[..., argparse.ArgumentParser]:
    """Returns a function that adds an action, such as ``add`` of ``keys``.

    It takes the name, the help text, and other names that users try; these work and are not listed.
    """
    group = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, text: str, *guesses: str) -> argparse.ArgumentParser:
        made = group.add_parser(name, help=text, parents=[common()])
        made.set_defaults(action=name)
        parser.names.append(name)
        for guess in guesses:
            group.choices[guess] = made
            parser.guesses.add(guess)
        return made

    return add


def number(text: str) -> int:
    """Returns a number of 1 or more. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'must be 1 or greater, not "{text}"')
    return int(text)

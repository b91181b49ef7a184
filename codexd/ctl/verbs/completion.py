"""``codexctl completion``: the completion script for a shell."""

import argparse

from codexd.ctl.session import Output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"))


def run(options: argparse.Namespace, _: Output) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["codexctl"], shell=options.shell))  # noqa: T201
    return 0

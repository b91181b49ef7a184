"""``codexctl``: parses the command line, runs the verb, and turns failures into exit codes."""

import argparse
import os
import re
import sys
from collections.abc import Collection
from typing import NoReturn

from codexd.ctl.parser import parser
from codexd.ctl.table import load
from codexd.system import support


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns the exit code. Raises SystemExit for help texts and wrong usage."""
    if (why := support.unsupported()) is not None:
        print(f"codexctl: {why}", file=sys.stderr)  # noqa: T201
        return 1
    words: Collection[str] = sys.argv[1:] if argv is None else argv
    completing = "_ARGCOMPLETE" in os.environ
    if completing:
        words = re.findall(r"[\w-]+", os.environ.get("COMP_LINE", ""))
    top = parser(words)
    if completing:
        import argcomplete
        from argcomplete.completers import SuppressCompleter

        argcomplete.autocomplete(top, default_completer=SuppressCompleter())
    options = top.parse_args(argv)
    if options.verb is None:
        top.print_help(sys.stderr)
        return 2
    if options.verb != "help" and (why := _misnamed(options)) is not None:
        top.error(why)
    return _run(options)


def _misnamed(options: argparse.Namespace) -> str | None:
    """Returns what is wrong with ``--socket`` and ``--instance``."""
    path, instance = getattr(options, "socket", None), getattr(options, "instance", None)
    if path == "":
        return "--socket: the path is empty"
    if instance is not None and path is not None:
        return "use either --socket or --instance, not both"
    if instance is not None and not re.fullmatch(r"[A-Za-z0-9:_.-]+", instance):
        return f'--instance: "{instance}" is not a valid instance name; use a name such as alice, for codexd@alice'
    return None


def _run(options: argparse.Namespace) -> int:
    """Runs the verb and returns its exit code, or that of its failure after showing the failure."""
    # Here, because --version and --help need neither msgspec nor the control protocol.
    from codexd.control.client import DaemonUnreachable
    from codexd.ctl.session import Output, VerbFailed, failed, unreachable

    out = Output(json=getattr(options, "json", False))
    try:
        code: int = load(options.verb).run(options, out)
    except VerbFailed as error:
        return out.fail(error)
    except UnicodeEncodeError:
        return out.fail(failed("usage", "usage", "An argument is not valid UTF-8. Type it again."))
    except DaemonUnreachable as error:
        return out.fail(unreachable(options, error))
    return code


def cli() -> NoReturn:
    """Runs the command line of the process and exits."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as the process lives
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)  # noqa: T201 - the shell's prompt starts on its own line
        code = 130
    except OSError as error:
        # The rest of the output cannot be written; the interpreter's flush at its end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
        if not isinstance(error, BrokenPipeError):  # the reader of a pipe may stop reading
            print(f"codexctl: cannot write the output: {error.strerror}", file=sys.stderr)  # noqa: T201
            code = 5
    sys.exit(code)


if __name__ == "__main__":
    cli()

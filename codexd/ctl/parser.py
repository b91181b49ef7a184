"""The command line of ``codexctl``, built from the table of verbs."""

import argparse
from collections.abc import Collection

from codexd import __version__
from codexd.ctl.arguments import Parser, common
from codexd.ctl.table import VERBS, load

_EPILOG = """exit codes:
  0 done             2 usage error      3 signed out   4 codexd unreachable
  5 refused          6 ChatGPT failed   130 interrupted

The control socket is set by --socket, --instance or $CODEXCTL_SOCKET, else it is
the first control.sock in $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/codexd,
$STATE_DIRECTORY, $XDG_STATE_HOME/codexd (~/.local/state) and /run/codexd.
See codexctl(1).
"""


def parser(words: Collection[str] | None = None) -> argparse.ArgumentParser:
    """Returns the parser. Only the verbs among ``words`` (default: all) are imported and get their arguments."""
    top = Parser(
        prog="codexctl",
        description="Control codexd: sign in, see what it does, manage client keys.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common()],
    )
    top.add_argument("-V", "--version", action="version", help="print the version", version=f"codexctl {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, _, text, hidden in VERBS:
        said = f"{text[0].upper()}{text[1:]}."
        if hidden:  # argparse lists each verb that has a ``help``, even an empty one
            top.guesses.add(name)
            verb = verbs.add_parser(name, description=said, parents=[common()])
        else:
            verb = verbs.add_parser(name, help=text, description=said, parents=[common()])
        if words is None or name in words:
            add = getattr(load(name), "arguments", None)
            if add is not None:
                add(verb)
    return top

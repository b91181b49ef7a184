"""``codexctl``: command line to verb to exit code. What a verb needs is imported when it runs."""

import argparse
import datetime
import os
import re
import sys
from collections.abc import Iterable
from typing import NoReturn

from codexd import __version__
from codexd.system import support

_LEVELS = ("debug", "info", "warn", "error")

_EPILOG = """exit codes:
  0 done   2 wrong usage   3 signed out   4 codexd cannot be reached   5 refused   6 ChatGPT failed   130 interrupted

codexctl finds the control socket by --socket, $CODEXCTL_SOCKET, and control.sock in $RUNTIME_DIRECTORY,
$XDG_RUNTIME_DIR/codexd, $STATE_DIRECTORY, $XDG_STATE_HOME/codexd (~/.local/state) and /run/codexd. See codexctl(1).
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """As argparse says it, with the nearest word for a wrong one."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            import difflib

            if near := difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), n=1):
                message = f"there is no {found[1]!r}; did you mean {near[0]!r}?"
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = _Parser(add_help=False)
    # Before the verb and after it alike; the inner default must not undo what stood before.
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one line of JSON per reply")
    common.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help="the control socket of codexd")
    top = _Parser(
        prog="codexctl",
        description="Control codexd: sign in, see what it does, manage client keys.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    top.add_argument("--version", action="version", version=f"codexctl {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[common])

    login = verb("login", "sign in to ChatGPT")
    how = login.add_mutually_exclusive_group()
    how.add_argument("--device", action="store_true", help="by a code that is entered on any device (default over SSH)")
    how.add_argument("--browser", action="store_true", help="by a browser on this machine (default on a desktop)")
    how.add_argument("--paste", action="store_true", help="by any browser, and the address it ends at pasted here")
    how.add_argument(
        "--import", dest="auth_json", nargs="?", const="", metavar="FILE",
        help="take over the login of the Codex CLI (default: ~/.codex/auth.json)",
    )  # fmt: skip
    login.add_argument("--no-open", action="store_true", help="print the address, open no browser")
    login.add_argument("--yes", action="store_true", help="with --import: do not ask")

    verb("logout", "revoke the sign-in and delete it here")
    verb("status", "show the sign-in, the limits and what the daemon does")
    health = verb("health", "say whether codexd answers requests, by the exit code")
    health.add_argument(
        "--ready", action="store_true", help="and whether they would be served: signed in, not stopping"
    )
    verb("refresh", "renew the access token now")
    usage = verb("usage", "show how much of the account's limits is used, or what was used by whom")
    usage.add_argument(
        "--by", metavar="COLUMNS", type=_columns, help="what was used by day, model, key: commas between"
    )
    usage.add_argument("--since", metavar="WHEN", type=_since, help="from when on: 7d, or a date as 2030-12-31")
    usage.add_argument("--csv", action="store_true", help="as comma-separated values")
    models = verb("models", "list the models of the account")
    models.add_argument("--refresh", action="store_true", help="fetch the list from ChatGPT first")
    keys = verb("keys", "manage the keys that clients must present")
    actions = keys.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and show it once", parents=[common])
    add.add_argument("name", metavar="NAME", help="what the key is for; it stands in the logs")
    add.add_argument("--strict", action="store_true", help="refuse parameters that would be dropped")
    add.add_argument("--models", metavar="NAMES", help="only for these models: names or patterns, commas between them")
    add.add_argument("--rpm", metavar="N", type=_number, help="requests a minute that it may make")
    add.add_argument("--concurrent", metavar="N", type=_number, help="requests that it may have under way at once")
    add.add_argument("--expires", metavar="WHEN", type=_days, help="when it ends: 12h, 30d, or a date as 2030-12-31")
    actions.add_parser("list", help="list the keys and when they were used last", parents=[common])
    revoke = actions.add_parser("revoke", help="take a key away", parents=[common])
    revoke.add_argument("name", metavar="NAME").completer = _key_names  # type: ignore[attr-defined]  # argcomplete's
    live = verb("top", "show live what codexd does")
    live.add_argument("--once", action="store_true", help="show it once and end")
    log = verb("log", "show the last lines of codexd's log")
    log.add_argument("-f", "--follow", action="store_true", help="and those to come, until Ctrl-C")
    log.add_argument("-n", "--lines", metavar="N", type=_number, default=50, help="so many lines (default: 50)")
    log.add_argument("--request", metavar="ID", help="of one request; the beginning of its id is enough")
    log.add_argument("--level", choices=_LEVELS, default="debug", help="this level and worse")
    verb("explain", "say what became of a request").add_argument(
        "request", metavar="REQUEST-ID", help="its x-request-id, or the beginning of it"
    )
    level = verb("level", "show or change from which level on codexd logs, without a restart")
    level.add_argument("level", choices=(*_LEVELS, "reset"), nargs="?", help="reset: as the configuration says")
    level.add_argument(
        "--for", dest="minutes", metavar="MINUTES", type=_minutes, default=10, help="so long (default: 10)"
    )
    texts = verb("prompts", "manage the instruction texts that models get").add_subparsers(
        dest="action", metavar="ACTION", required=True
    )
    texts.add_parser("list", help="list them, and where each came from", parents=[common])
    for action, text in (("show", "print the text in force for a family or a model"),
                         ("set", "use the text of a file, for a family or a model")):  # fmt: skip
        texts.add_parser(action, help=text, parents=[common]).add_argument("name", metavar="NAME")
    texts.choices["set"].add_argument("file", metavar="FILE", help="- for the standard input")
    back = texts.add_parser("reset", help="go back to what is built in, for one or for all", parents=[common])
    back.add_argument("name", metavar="NAME", nargs="?")
    update = texts.add_parser("update", help="take the official texts of the account's models", parents=[common])
    update.add_argument("--yes", action="store_true", help="do not ask")
    verb("metrics", "print the metrics, as Prometheus gets them")
    ask = verb("try", "ask a model something and see the answer come")
    ask.add_argument("question", metavar="QUESTION", nargs="*", help="- at its end stands for what is piped in")
    ask.add_argument("-m", "--model", metavar="NAME", help="default: the first of `codexctl models`")
    ask.add_argument("--effort", metavar="EFFORT", help="how hard it shall think: low, medium, high ...")
    ask.add_argument("--image", metavar="FILE", action="append", help="an image to look at; may be given again")
    test = verb("selftest", "check codexd against the rules of the API, on a simulated backend")
    test.add_argument("--real", action="store_true", help="the running codexd, by a few tiny requests that count")
    test.add_argument("--key", metavar="KEY", help="with --real: a client key (default: $CODEXD_API_KEY)")
    test.add_argument("-m", "--model", metavar="NAME", help="with --real: default is the first of its list")
    service = verb("service", "run codexd as a service of this user, under systemd").add_subparsers(
        dest="action", metavar="ACTION", required=True
    )
    service.add_parser("install", help="install the unit, and start it now and at each login", parents=[common])
    service.add_parser("remove", help="stop it and remove the unit", parents=[common])
    service.add_parser("status", help="show whether it is installed and running", parents=[common])
    for name, text in (
        ("backup", "save keys, prompts, usage and stored responses to a file, without the sign-in"),
        ("restore", "restore what backup saved; codexd must be stopped"),
    ):
        each = verb(name, text)
        each.add_argument("file", metavar="FILE")
        each.add_argument("--state", metavar="DIR", help="the state directory (default: yours, else /var/lib/codexd)")
    verb("reload", "make codexd read its configuration anew")
    doctor = verb("doctor", "check what usually breaks")
    doctor.add_argument("--deep", action="store_true", help="also make a tiny real request (it counts as usage)")
    doctor.add_argument("--url", help="also check that a proxy at this base URL passes streams on")
    completion = verb("completion", "print the completion script for a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    verb("help", "show this summary, or that of a verb").add_argument("about", metavar="VERB", nargs="?")
    return top


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def _minutes(text: str) -> int:
    number = _number(text)
    if number > 30 * 1440:
        raise argparse.ArgumentTypeError(f"{text} minutes are more than 30 days")
    return number


def _columns(text: str) -> list[str]:
    found = [each.strip() for each in text.split(",") if each.strip()]
    if not found or not set(found) <= {"day", "model", "key"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not of day, model and key")
    return found


def _since(text: str) -> str:
    """A day as 2030-12-31. ``7d`` is today and the six days before."""
    if text[:-1].isdecimal() and text[-1:] == "d" and 0 < int(text[:-1]) < 10_000:
        return (datetime.datetime.now().astimezone().date() - datetime.timedelta(days=int(text[:-1]) - 1)).isoformat()
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither as 7d nor a date as 2030-12-31") from error


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()


def _days(text: str) -> float:
    """Unix seconds. A date ends with its day, here."""
    number, unit = text[:-1], text[-1:]
    if number.isdecimal() and unit in ("h", "d"):
        return _now() + int(number) * (3600 if unit == "h" else 86400)
    try:
        ends = datetime.datetime.fromisoformat(text) + datetime.timedelta(days=len(text) == 10)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither as 12h, 30d nor a date as 2030-12-31") from error
    if ends.timestamp() <= _now():
        raise argparse.ArgumentTypeError(f"{text} is over")
    return ends.timestamp()


def _key_names(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    """For a shell that completes a key's name: those that can be revoked."""
    from codexd.ctl import verbs

    return verbs.key_names(parsed_args)


def main(argv: list[str] | None = None) -> int:
    if (why := support.unsupported()) is not None:
        print(f"codexctl: {why}", file=sys.stderr)  # noqa: T201
        return 1
    top = parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete
        from argcomplete.completers import SuppressCompleter

        argcomplete.autocomplete(top, default_completer=SuppressCompleter())
    options = top.parse_args(argv)
    if options.verb is None:
        top.print_help(sys.stderr)
        return 2
    if options.verb == "help":
        top.parse_args([options.about, "--help"] if options.about else ["--help"])
    if getattr(options, "socket", None) == "":
        top.error("--socket: the path is empty")
    from codexd.ctl import verbs

    return verbs.run(options)


def cli() -> NoReturn:
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as the process lives
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)  # noqa: T201 - the shell's prompt goes on a line of its own
        code = 130
    except OSError as error:
        # What is left to write has nowhere to go; the interpreter's own flush at the end must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
        if not isinstance(error, BrokenPipeError):  # whoever reads a pipe may have enough of it
            print(f"codexctl: the output cannot be written: {error.strerror}", file=sys.stderr)  # noqa: T201
            code = 5
    sys.exit(code)


if __name__ == "__main__":
    cli()

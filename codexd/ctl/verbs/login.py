"""``codexctl login``: what the user sees and does at the terminal while the daemon signs in."""

import argparse
import os
import sys
import time
import webbrowser
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Raw

from codexd.control import wire
from codexd.control.client import ControlConnection
from codexd.control.wire import Account, AuthorizationUrl, DeviceCode, Method, Reply
from codexd.ctl import drawing
from codexd.ctl.session import EXIT, Output, VerbFailed, failed, replies, socket_of, until_done
from codexd.protocol import decoding
from codexd.system import device_code

MAX_AUTH_JSON = 60 * 1024
"""Bytes of an ``auth.json``."""


def arguments(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--device", action="store_true", help="use a code that you enter on any device (default over SSH)")
    how.add_argument("--browser", action="store_true", help="use a browser on this machine (default on a desktop)")
    how.add_argument(
        "--paste", action="store_true", help="use any browser, then paste the URL that it is redirected to"
    )
    how.add_argument(
        "--import", dest="auth_json", nargs="?", const="", metavar="FILE",
        help="import the sign-in of the Codex CLI (default: ~/.codex/auth.json)",
    )  # fmt: skip
    parser.add_argument("--no-open", action="store_true", help="print the address, do not open a browser")
    parser.add_argument(
        "--qr",
        action=argparse.BooleanOptionalAction,
        help="show a QR code, or do not (default: show it if the terminal has room)",
    )
    parser.add_argument("--yes", action="store_true", help="with --import: do not ask for confirmation")


def run(options: argparse.Namespace, out: Output) -> int:
    if options.auth_json is not None:
        return _import(options, out)
    method = choose(options, os.environ)
    if not out.json and (account := _signed_in(options)) is not None:
        out.note(f"codexd is already signed in as {account}; a new sign-in replaces it.")
    with ControlConnection(socket_of(options), wire.Login(method=method)) as connection:
        answers = until_done(connection)
        try:
            shown = next(answers, None)
            if shown is not None:
                _show(shown, out, open_browser=method == "browser" and not options.no_open, qr=options.qr)
            if isinstance(shown, AuthorizationUrl) and method == "paste":
                _paste(options, connection, out)
            with out.waiting(_Countdown(getattr(shown, "expires_at", 0))):
                for reply in answers:
                    shown = reply
        except KeyboardInterrupt:
            if method == "device":
                out.note("\nStill waiting for approval in the background. `codexctl login` shows the code again.")
            else:
                out.note("\nSign-in cancelled.")
            raise
    if shown is not None:
        out.reply(shown, _draw)
    out.done()
    return 0


def _draw(reply: Reply) -> None:
    if isinstance(reply, Account):
        drawing.account(reply)


def choose(options: argparse.Namespace, environ: Mapping[str, str]) -> Method:
    """Returns the method of the options, or else a browser on a local desktop, or else a code for any device."""
    if options.device:
        return "device"
    if options.browser:
        return "browser"
    if options.paste:
        return "paste"
    remote = environ.get("SSH_CONNECTION") or environ.get("SSH_TTY")
    screen = environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")
    return "browser" if screen and not remote else "device"


class _Countdown:
    """The time left for the sign-in. rich draws it several times a second."""

    def __init__(self, expires_at: int) -> None:
        self._expires_at = expires_at

    def __rich__(self) -> str:
        left = max(0, self._expires_at - int(time.time()))  # noqa: TID251 - an hour on the wall, for a person
        return f"Waiting for the sign-in, {left // 60}:{left % 60:02} left"


def _screen(qr: bool | None) -> device_code.Screen:
    colour = not os.environ.get("NO_COLOR")
    if sys.stdout.isatty():
        return device_code.Screen.here(colour=colour, qr=qr)
    return device_code.PIPE._replace(qr=bool(qr))


def _show(reply: Reply, out: Output, *, open_browser: bool, qr: bool | None) -> None:
    """Shows where to sign in, and opens a browser there if that is wanted."""
    if out.json:
        out.reply(reply, _draw)
    elif isinstance(reply, DeviceCode):
        left = reply.expires_at - time.time()  # noqa: TID251
        if reply.joined:
            out.note("A sign-in is already in progress; this is its code.")
        minutes = max(1, round(left / 60))
        print(device_code.instructions(reply.verification_url, reply.user_code, minutes, _screen(qr)), flush=True)  # noqa: T201
    elif isinstance(reply, AuthorizationUrl):
        print(f"\nTo sign in, open this address in a browser:\n\n{reply.authorization_url}\n", flush=True)  # noqa: T201
    if open_browser and isinstance(reply, AuthorizationUrl):
        _open(reply.authorization_url)


def _open(url: str) -> None:
    """Opens a browser, whose messages must not reach this terminal. A failure is ignored: the address is shown."""
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            webbrowser.open(url)
    except (webbrowser.Error, OSError):
        pass
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _paste(options: argparse.Namespace, connection: ControlConnection, out: Output) -> None:
    """Reads addresses until one is accepted, or until the sign-in ends without one. Raises VerbFailed."""
    out.note(
        "Sign in there. The browser then shows an error, at an address that starts with http://127.0.0.1. This is "
        "expected. Copy the whole address from the address bar and paste it here.\n"
    )
    while True:
        if not out.json:
            print("Address: ", end="", flush=True)  # noqa: T201
        if connection.readable(sys.stdin.fileno()):
            return
        address = sys.stdin.readline()
        if not address:
            out.note("")
            raise failed("usage", "no_address", "No address was pasted. Start again with `codexctl login --paste`.")
        if not address.strip():
            continue
        try:
            for _ in replies(options, wire.LoginCallback(address=address.strip())):
                pass
        except VerbFailed as error:
            if error.refusal.code != "wrong_callback":
                raise
            out.fail(error)
            continue
        return


def _import(options: argparse.Namespace, out: Output) -> int:
    """Copies the sign-in of the Codex CLI and returns the exit code. Raises VerbFailed."""
    home = Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex")
    path = Path(options.auth_json) if options.auth_json else home / "auth.json"
    auth = _read(path)
    if not options.yes:
        _ask_first(options, path, out)
    account: Reply | None = None
    for account in replies(options, wire.LoginImport(auth=Raw(auth))):
        out.reply(account, _draw)
    out.done()
    if isinstance(account, Account) and not account.signed_in:
        return EXIT["signed_out"]
    if isinstance(account, Account):
        out.note(f"{path} was not changed. Sign in to the Codex CLI again (`codex login`) before you use it.")
    return 0


def _read(path: Path) -> bytes:
    """Returns the JSON of a file as one line. The daemon says whether it is an ``auth.json``. Raises VerbFailed."""
    try:
        with path.open("rb") as file:
            auth = file.read(MAX_AUTH_JSON + 1)
    except FileNotFoundError:
        raise failed(
            "usage",
            "import",
            f"There is no {path}. The Codex CLI may keep its sign-in in $CODEX_HOME, or in the system's keyring (set "
            'cli_auth_credentials_store = "file" in its config.toml and sign in to it again). '
            "`codexctl login` signs in without it.",
        ) from None
    except OSError as error:
        raise failed(
            "usage", "import", f"Cannot read {path}: {error.strerror}. Pass another file with `--import FILE`."
        ) from None
    if len(auth) > MAX_AUTH_JSON:
        raise failed(
            "usage", "import", f"{path} is too large to be an auth.json. Pass another file with `--import FILE`."
        )
    try:
        return msgspec.json.encode(decoding.decode(auth))
    except msgspec.DecodeError:
        raise failed(
            "usage",
            "import",
            f"{path} is not an auth.json of the Codex CLI: it is not JSON. Pass another file with `--import FILE`.",
        ) from None


def _ask_first(options: argparse.Namespace, path: Path, out: Output) -> None:
    """Asks whether to import. Raises VerbFailed when the user does not agree, or cannot be asked."""
    account = _signed_in(options)
    instead = f", replacing the sign-in as {account}" if account is not None else ""
    out.note(
        f"This copies the sign-in of the Codex CLI from {path} into codexd{instead}. Refresh tokens are single-use: "
        "once codexd refreshes its tokens, the copy of the Codex CLI stops working, and vice versa. After the "
        "import, sign in to the Codex CLI again (`codex login`), or the two will sign each other out."
    )
    if out.json or not sys.stdin.isatty():
        raise failed("usage", "import", "This needs your confirmation, and there is no terminal. Add --yes.")
    try:
        wanted = input("Import it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        out.note("")
        wanted = False
    if not wanted:
        raise failed("refused", "import", "Nothing was imported. `codexctl login` signs in without the Codex CLI.")


def _signed_in(options: argparse.Namespace) -> str | None:
    """Returns the account that is signed in, or None. Raises VerbFailed and DaemonUnreachable."""
    for reply in replies(options, wire.Status()):
        if isinstance(reply, wire.StatusReport) and reply.account.signed_in:
            return reply.account.email or reply.account.account_id or "an unnamed account"
    return None

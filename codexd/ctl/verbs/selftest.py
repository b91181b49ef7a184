"""``codexctl selftest``: checks the API from the side of a client, over a real listener.

Without ``--real`` it starts a codexd of the same installation over a simulated ChatGPT, for as long as the checks take.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

import codexd
from codexd.control import wire
from codexd.control.client import ControlConnection
from codexd.control.wire import Check
from codexd.ctl import drawing
from codexd.ctl.conformance import CHECKS, REAL, Listener, Wrong
from codexd.ctl.session import EXIT, Output, failed, replies, socket_of, until_done

START_SECONDS = 20.0
"""Seconds for the start of a codexd."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--real", action="store_true", help="check the running codexd with a few tiny requests, which count as usage"
    )
    parser.add_argument("--key", metavar="KEY", help="with --real: the client key to use (default: a temporary one)")
    parser.add_argument(
        "-m", "--model", metavar="NAME", help="with --real: the model to ask (default: the first in its list)"
    )


def run(options: argparse.Namespace, out: Output) -> int:
    names = REAL if options.real else tuple(CHECKS)
    found: list[Check] = []
    with _running(options) if options.real else _simulated() as target:
        target.model = options.model or "" if options.real else ""
        for name in names:
            with out.waiting(name):
                check = checked(name, target)
            out.reply(check, drawing.check)
            found.append(check)
            if name == "models" and check.outcome == "failed":
                break
    out.done()
    bad = [check for check in found if check.outcome == "failed"]
    where = "the running codexd" if options.real else "a simulated backend"
    if not bad:
        out.note(f"All {len(found)} checks passed, on {where}.")
    else:
        more = "`codexctl log` shows more." if options.real else "This may be a bug in codexd; please report it."
        out.note(f"{len(bad)} of {len(found)} failed, on {where}. {more}")
    return EXIT["refused"] if bad else 0


def checked(name: str, target: Listener) -> Check:
    """Runs a check. An answer of another shape than the API's is a failed check, not an error of codexctl."""
    begun = time.monotonic()
    try:
        said = CHECKS[name](target)
    except Wrong as error:
        return _failed(name, str(error))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        missing = f": it has no member {error.args[0]}" if isinstance(error, KeyError) and error.args else ""
        return _failed(name, f"the answer does not have the format of the API{missing}")
    return Check(name=name, outcome="ok", message=f"{said} ({time.monotonic() - begun:.1f} s)")


def _failed(name: str, message: str) -> Check:
    return Check(name=name, outcome="failed", message=message, kind="refused")


@contextlib.contextmanager
def _running(options: argparse.Namespace) -> Iterator[Listener]:
    """Yields a listener of the running codexd. Raises VerbFailed and DaemonUnreachable."""
    status = next(reply for reply in replies(options, wire.Status()) if isinstance(reply, wire.StatusReport))
    if options.key or not status.keys_required:
        yield Listener(status.listeners[0], options.key)
        return
    with ControlConnection(socket_of(options), wire.KeysLend()) as connection:
        lent = next(reply for reply in until_done(connection) if isinstance(reply, wire.KeyAdded))
        yield Listener(status.listeners[0], lent.key)


@contextlib.contextmanager
def _simulated() -> Iterator[Listener]:
    """Yields a codexd over a simulated ChatGPT, which runs while the block does. Raises VerbFailed."""
    root = str(Path(codexd.__file__).parent.parent)
    start = _CHILD.format(root=root)
    with tempfile.TemporaryDirectory(prefix="codexd-selftest-") as directory:
        path, config, said = Path(directory, "api.sock"), Path(directory, "config.json"), Path(directory, "log")
        config.write_bytes(msgspec.json.encode({"server": {"bind": [f"unix:{path}"]}}))
        command = [sys.executable, "-c", start, "--demo", "--config", str(config)]
        with (
            said.open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.PIPE, env=_environment()) as process,  # noqa: S603 - our own
            _ended_politely(),
        ):
            try:
                until = time.monotonic() + START_SECONDS
                while not _listens(path):
                    if process.poll() is not None or time.monotonic() > until:
                        last = said.read_text(errors="replace").strip().splitlines()[-1:]
                        raise failed("internal", "selftest", f"Cannot start a codexd for the test: {' '.join(last)}")
                    time.sleep(0.05)
                yield Listener(f"unix:{path}", None)
            finally:
                process.terminate()


_CHILD = """
import os, signal, sys, threading

def watch():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=watch, daemon=True).start()
sys.path.insert(0, {root!r})
from codexd.__main__ import cli
from codexd.reasons import reason_of
cli()
"""
"""The daemon of a test. It stops when its standard input closes, so when this process ends for any reason."""


@contextlib.contextmanager
def _ended_politely() -> Iterator[None]:
    """Exits with cleanup of its files on SIGTERM and on SIGHUP, such as when the terminal closes."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment() -> dict[str, str]:
    """Returns the environment without the variables that configure a codexd of this machine."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}


def _listens(path: Path) -> bool:
    """Returns whether a connection to the socket succeeds."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True

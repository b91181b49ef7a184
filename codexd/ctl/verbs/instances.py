"""``codexctl instances``: all codexd of this machine at a glance. It starts none of them."""

import argparse
import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from codexd.control import wire
from codexd.control.client import DaemonUnreachable, find
from codexd.ctl import drawing
from codexd.ctl.session import SYSTEM, Output, VerbFailed, replies

PATIENCE = 5.0
"""Seconds for the answer of an instance."""


def run(options: argparse.Namespace, out: Output) -> int:
    rows: list[list[drawing.Drawn]] = []
    for name, path in found():
        with out.waiting(f"Asking {name}"):
            state, report = _asked(path, out)
        if out.json:
            _write(name, path, state, report, out)
        rows.append(_row(name, state, report))
    out.done()
    if out.json:
        return 0
    if not rows:
        out.note("No instance of codexd was found on this machine.")
        return 0
    columns = ["instance", "state", "signed in as", "limits", "requests", "version"]
    drawing.put(drawing.table(columns, rows, fold=["version", "requests", "limits"], right=["requests"]))
    return 0


def found() -> list[tuple[str, Path]]:
    """Returns the name and the control socket of each instance that this user can see."""
    places = {"system": SYSTEM / "control.sock"}
    with contextlib.suppress(OSError):
        places |= {each.name: each / "control.sock" for each in sorted(SYSTEM.iterdir()) if each.is_dir()}
    if (own := find(os.environ)).parent != SYSTEM:
        places["yours"] = own
    return [(name, path) for name, path in places.items() if _is_there(path)]


def _is_there(path: Path) -> bool:
    try:
        return path.is_socket()
    except PermissionError:
        return True


def _asleep(path: Path) -> str | None:
    """Returns ``inactive`` for an instance that a connection would start: systemd holds its socket."""
    if not path.is_relative_to(SYSTEM) or shutil.which("systemctl") is None:
        return None
    unit = "codexd" if path.parent == SYSTEM else f"codexd@{path.parent.name}"
    asked = subprocess.run(["systemctl", "is-active", unit], capture_output=True, text=True, check=False)  # noqa: S603, S607
    state = asked.stdout.strip()
    return state if state in ("inactive", "failed") else None


def _asked(path: Path, out: Output) -> tuple[str, wire.StatusReport | None]:
    """Returns the state of an instance in words, and its report if it gave one."""
    if (why := _asleep(path)) is not None:
        return why, None
    asked = argparse.Namespace(socket=str(path), json=out.json)
    try:
        for reply in replies(asked, wire.Status(), timeout=PATIENCE):
            if isinstance(reply, wire.StatusReport):
                return "stopping" if reply.draining else "running", reply
    except DaemonUnreachable as error:
        if error.denied:
            return "permission denied", None
        return "no answer" if error.silent else "not running", None
    except VerbFailed as error:
        return "permission denied" if error.refusal.code == "not_permitted" else "failed", None
    return "no answer", None


def _write(name: str, path: Path, state: str, report: wire.StatusReport | None, out: Output) -> None:
    """Writes an instance as JSON: a check with its name and state, then its report if it gave one."""
    fine = state in ("running", "stopping", "inactive")
    advice = None if fine else f"`codexctl --socket {path} status` says why."
    for line in (wire.Check(name=name, outcome="ok" if fine else "warning", message=state, advice=advice), report):
        if line is not None:
            out.reply(line, lambda _: None)


def _row(name: str, state: str, report: wire.StatusReport | None) -> list[drawing.Drawn]:
    if report is None:
        return [name, state, "", "", "", ""]
    usage = [] if report.usage is None else report.usage.windows
    limits = ", ".join(f"{window.label} {window.used_percent:g} %" for window in usage if window.limit == "codex")
    who = drawing.who(report.account) if report.account.signed_in else drawing.text("signed out", "red")
    return [name, state, who, limits, str(report.streams_open), report.daemon_version]

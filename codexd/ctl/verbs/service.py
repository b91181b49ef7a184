"""``codexctl service``: runs codexd as a service of the user, under the user's systemd.

Writes a unit for a codexd from pipx or pip; for a codexd from a system package, enables the unit of the package.
"""

import argparse
import getpass
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import codexd
from codexd.ctl.arguments import Parser, actions
from codexd.ctl.session import Output, failed
from codexd.ctl.units import UNIT, unit_path

PACKAGED = Path("/usr/bin/codexd")
"""The command in the unit of the system's package."""

_SECONDS = 60.0
"""Seconds for one call of systemctl; a start waits until codexd is ready."""


def arguments(parser: Parser) -> None:
    action = actions(parser)
    action("install", "install the unit, and start it now and at each login")
    action("remove", "stop it and remove the unit")
    action("status", "show whether it is installed and running")


def run(options: argparse.Namespace, out: Output) -> int:
    try:
        return {"install": _install, "remove": _remove, "status": _status}[options.action](out)
    except _SystemctlFailed as error:
        raise failed("refused", "systemctl", f"systemctl failed: {error}") from error


def unit_text(command: Path) -> str:
    """Returns the user unit of the packages with another command in it."""
    packaged = resources.files("codexd") / "unit_data" / UNIT
    if packaged.is_file():
        text = packaged.read_text()
    else:
        text = (Path(codexd.__file__).parent.parent / "systemd" / "user" / UNIT).read_text()
    escaped = str(command).replace("%", "%%").replace('"', '\\"')
    return text.replace(f"ExecStart={PACKAGED}\n", f'ExecStart="{escaped}"\n')


def _install(out: Output) -> int:
    command = _command()
    _check_session()
    path = unit_path()
    if command == PACKAGED:
        told = f"Enabled the user unit {UNIT} from the installed package."
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(unit_text(command))
        except OSError as error:
            raise failed("refused", "not_writable", f"Cannot write {path}: {error.strerror}.") from error
        told = f"Installed {path}."
    _systemctl("daemon-reload")
    _systemctl("enable", UNIT)
    try:
        _systemctl("restart", UNIT)
    except _SystemctlFailed as error:
        raise failed(
            "refused", "not_started", f"{told} codexd did not start. See: journalctl --user -u codexd -n 20"
        ) from error
    out.report("service", f"{told} codexd is running. Sign in with `codexctl login`.")
    if not _lingers():
        out.note(f"It stops when you log out. To keep it running: sudo loginctl enable-linger {getpass.getuser()}")
    return 0


def _remove(out: Output) -> int:
    _check_session()
    path = unit_path()
    if not path.exists() and _property("UnitFileState") in ("", "disabled"):
        raise failed(
            "refused", "not_installed", "The service is not installed. Install it with `codexctl service install`."
        )
    _systemctl("disable", "--now", UNIT)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise failed("refused", "not_writable", f"Cannot delete {path}: {error.strerror}.") from error
    _systemctl("daemon-reload")
    out.report("service", "Removed the service. The sign-in and the configuration are kept.")
    return 0


def _status(out: Output) -> int:
    _check_session()
    state, enabled, place = _property("ActiveState"), _property("UnitFileState"), _property("FragmentPath")
    if not place:
        raise failed(
            "refused", "not_installed", "The service is not installed. Install it with `codexctl service install`."
        )
    linger = "keeps running after logout" if _lingers() else "stops at logout"
    out.report("service", f"{place}: {state}, {enabled}, {linger}")
    return 0 if state == "active" else 5


def _command() -> Path:
    """Returns the codexd that is installed with this codexctl. Raises VerbFailed."""
    beside = Path(sys.executable).with_name("codexd")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("codexd")
    if found is None:
        raise failed("refused", "no_command", "There is no codexd next to codexctl. Reinstall codexd.")
    return Path(found)


class _SystemctlFailed(Exception):
    """systemctl failed; the message is its own."""


def _check_session() -> None:
    """Raises VerbFailed unless this user has a systemd of their own."""
    if os.geteuid() == 0 and "XDG_RUNTIME_DIR" not in os.environ:
        message = "`codexctl service` manages a service of an ordinary user. Run it as one, not as root."
        if PACKAGED.exists():
            message += " For the service of the system, run `systemctl enable --now codexd`."
        raise failed("refused", "root", message)
    if shutil.which("systemctl") is None:
        raise failed(
            "refused",
            "no_systemd",
            "This system does not use systemd. Use the service manager of this system to start codexd.",
        )
    try:
        _systemctl("show-environment")
    except _SystemctlFailed as error:
        message = (
            "systemd has no session for this user here. Log in as this user over SSH or at the console, not with su or "
            "sudo, and try again."
        )
        raise failed("refused", "no_session", message) from error


def _systemctl(*words: str) -> str:
    """Runs ``systemctl --user`` and returns what it prints. Raises _SystemctlFailed."""
    command = ["systemctl", "--user", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise _SystemctlFailed(f"systemctl {words[0]} took longer than {_SECONDS:g} seconds") from error
    if done.returncode != 0:
        raise _SystemctlFailed(done.stderr.strip())
    return done.stdout


def _property(name: str) -> str:
    """Returns a property of the unit, or an empty string if it cannot be read."""
    try:
        return _systemctl("show", "-P", name, UNIT).strip()
    except _SystemctlFailed:
        return ""


def _lingers() -> bool:
    """Returns whether the services of this user keep running after logout."""
    return Path("/var/lib/systemd/linger", getpass.getuser()).exists()

"""The units of codexd: the file of the user's own, and the commands of systemctl for each kind."""

import os
from pathlib import Path

UNIT = "codexd.service"


def unit_path() -> Path:
    """Returns the path of this user's unit."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "systemd" / "user" / UNIT


def command(verb: str, instance: str | None) -> str:
    """Returns the command that does ``start``, ``stop`` or ``restart``.

    It is for the instance, else for the service of this user if there is one, else for that of the system.
    """
    if instance is None and unit_path().exists():
        return f"systemctl --user {verb} codexd"
    at = "" if instance is None else f"@{instance}"
    # With its sockets open, the next connection would start it again.
    sockets = f"codexd{at}.socket codexd-control{at}.socket " if verb == "stop" else ""
    root = "" if os.geteuid() == 0 else "sudo "
    return f"{root}systemctl {verb} {sockets}codexd{at}"

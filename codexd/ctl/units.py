"""The units of codexd: the user's own, the system's, and the commands of systemctl for each."""

import os
from pathlib import Path

UNIT, TCP = "codexd.service", "codexd-tcp.socket"

SYSTEM_UNITS = tuple(
    Path(folder, "systemd", "system") for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
)
"""Where systemd looks for the units of the system."""


def unit_path() -> Path:
    """Returns the path of this user's unit."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "systemd" / "user" / UNIT


def command(verb: str, instance: str | None) -> str | None:
    """Returns the command that does ``start``, ``stop`` or ``restart``.

    It is for the instance, else for the service of this user if there is one, else for that of the system. None if
    codexd is not a service here.
    """
    own = unit_path()
    if instance is None and (own.exists() or (own.parent / "default.target.wants" / UNIT).exists()):
        return f"systemctl --user {verb} codexd"
    if instance is None and not any((folder / UNIT).exists() for folder in SYSTEM_UNITS):
        return None
    at = "" if instance is None else f"@{instance}"
    # With its sockets open, the next connection would start it again.
    sockets = f"codexd{at}.socket codexd-control{at}.socket " if verb == "stop" else ""
    if sockets and instance is None and any((folder / TCP).exists() for folder in SYSTEM_UNITS):
        sockets += f"{TCP} "
    root = "" if os.geteuid() == 0 else "sudo "
    return f"{root}systemctl {verb} {sockets}codexd{at}"

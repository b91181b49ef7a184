"""The state directory as ``codexctl backup`` and ``codexctl restore`` see it."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from codexd.config.load import load
from codexd.config.paths import state_dir
from codexd.ctl.session import failed
from codexd.errors import ConfigError

FILES = ("keys.json", "prompts.json", "usage.json", "models.json")
"""The files of the state directory that are saved. ``tokens.json`` is not: see ``codexd.ctl.verbs.backup``."""

FOLDER = "responses"
"""Stored responses, one file each; the only folder of the state directory."""

SYSTEM = Path("/var/lib/codexd")
"""The state directory of the system service."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the file and the directory, which both verbs take."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--state", metavar="DIR", help="the state directory (default: yours, else /var/lib/codexd)")


def directory(given: str | None) -> Path:
    """Returns the named directory, else that of this user, else that of the system service. Raises VerbFailed."""
    if given is not None:
        places = [Path(given)]
    else:
        try:
            places = [state_dir(load(None, os.environ)[0], os.environ), SYSTEM]
        except ConfigError as error:
            raise failed("usage", "configuration", str(error)) from error
    for place in places:
        if place.is_dir():
            if not os.access(place, os.R_OK | os.X_OK):
                raise failed(
                    "refused", "not_readable", f"Cannot read {place}: permission denied. Run the command with sudo."
                )
            return place
    where = " or ".join(map(str, places))
    raise failed("usage", "no_state", f"No state directory at {where}. Pass --state DIR.")


@contextlib.contextmanager
def as_owner(state: Path) -> Iterator[None]:
    """Acts as the owner of the state directory while the block runs, if this process is root's.

    A link that the owner has put there then leads to nothing that only root may read or write, and new files belong to
    the owner.
    """
    owner = state.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    gid, groups = os.getegid(), os.getgroups()
    os.setgroups([owner.st_gid])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)

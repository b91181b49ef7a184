"""The daemon's listening sockets: those passed by systemd, and its own."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from codexd.config.load import check_open
from codexd.config.model import Config
from codexd.config.paths import control_socket, resolve_bind
from codexd.errors import CannotStart, ConfigError
from codexd.server import sockets
from codexd.server.sockets import AddressInUse, CannotListen
from codexd.system import systemd

log = structlog.get_logger()


class Listeners(NamedTuple):
    """The open sockets. ``files``: unix socket files for codexd to remove. ``activated``: systemd owns API sockets."""

    api: list[socket.socket]
    control: socket.socket
    files: dict[Path, int]
    activated: bool


def open_all(config: Config, environ: Mapping[str, str]) -> Listeners:
    """Opens all sockets. Those of systemd replace the default address and those that they have. Raises CannotStart."""
    try:
        given = systemd.inherited(environ)
        api = [sockets.adopt(each.socket) for each in given if each.name != systemd.CONTROL]
        for listener in api:
            check_open(config, environ, sockets.describe(listener), listener.getsockname())
    except (OSError, ConfigError) as error:
        raise CannotStart(str(error)) from error
    activated = bool(api)
    own = open_api(config, environ, given=[sockets.describe(each).removeprefix("http://") for each in api])
    control = next((each.socket for each in given if each.name == systemd.CONTROL), None)
    if control is not None:
        control.setblocking(False)
        return Listeners([*api, *own], control, sockets.files_of(own), activated)
    listener = open_control(control_socket(config, environ), [*api, *own])
    return Listeners([*api, *own], listener, sockets.files_of([*own, listener]), activated)


def open_api(
    config: Config, environ: Mapping[str, str], *, any_port: bool = False, given: Sequence[str] = ()
) -> list[socket.socket]:
    """Opens the configured addresses, without those of ``given``; with these, the default address is not opened.

    ``any_port`` selects a free port if one is in use. Raises CannotStart.
    """
    opened: list[socket.socket] = []
    wanted = [] if given and config.listen() == Config().listen() else config.listen()
    try:
        for bind in wanted:
            if resolve_bind(bind, environ) in given:
                continue
            try:
                opened.append(sockets.listen(resolve_bind(bind, environ)))
            except AddressInUse:
                if not any_port or bind.startswith("unix:"):
                    raise
                opened.append(sockets.listen(f"{bind.rpartition(':')[0]}:0"))
    except (CannotListen, OSError, ConfigError) as error:
        _close(opened)
        raise CannotStart(str(error)) from error
    return opened


def open_control(path: Path, others: list[socket.socket]) -> socket.socket:
    """Opens the control socket. Raises CannotStart, after closing ``others``."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return sockets.listen(f"unix:{path}")
    except (CannotListen, OSError) as error:
        _close(others)
        hint = ". Another codexd of this user may be running: set a different control.socket for this codexd."
        raise CannotStart(f"control socket: {error}{hint if isinstance(error, AddressInUse) else ''}") from error


def _close(opened: list[socket.socket]) -> None:
    for each in opened:
        each.close()

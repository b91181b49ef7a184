"""Directories and files that depend on the configuration and the environment."""

from collections.abc import Mapping
from pathlib import Path

from codexd.config.model import Config
from codexd.errors import ConfigError

KEYS_FILE = "keys.json"
"""The file in the state directory with the client keys that codexctl made."""


def runtime_dir(environ: Mapping[str, str]) -> Path | None:
    """Returns the directory for sockets: ``$RUNTIME_DIRECTORY``, else ``$XDG_RUNTIME_DIR/codexd``, else None."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":", maxsplit=1)[0])
    if base := environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "codexd"
    return None


def resolve_bind(bind: str, environ: Mapping[str, str]) -> str:
    """Returns ``unix:NAME`` with its path in the runtime directory. Raises ConfigError if that is not known."""
    name = bind.removeprefix("unix:")
    if name == bind or name.startswith("/"):
        return bind
    directory = runtime_dir(environ)
    if directory is None:
        raise ConfigError(f"server.bind: {bind} needs $RUNTIME_DIRECTORY or $XDG_RUNTIME_DIR, or an absolute path")
    directory.mkdir(mode=0o700, exist_ok=True)
    return f"unix:{directory / name}"


def control_socket(config: Config, environ: Mapping[str, str]) -> Path:
    """Returns the control socket of a daemon with this configuration."""
    return (runtime_dir(environ) or state_dir(config, environ)) / config.control.socket


def state_dir(config: Config, environ: Mapping[str, str]) -> Path:
    """Returns ``$STATE_DIRECTORY``, else ``storage.dir``, else ``$XDG_STATE_HOME/codexd``."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":", maxsplit=1)[0])
    if config.storage.dir is not None:
        return Path(config.storage.dir).expanduser()
    home = Path(environ.get("HOME", "/"))
    return Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "codexd"

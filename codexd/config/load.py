"""Loads the configuration from a TOML or JSON file. Environment variables override the file.

A wrong key or value is refused with its place and the expected value. Nothing is guessed.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from codexd.config.addresses import is_beyond_loopback, is_loopback
from codexd.config.model import Config, Server
from codexd.config.paths import KEYS_FILE, state_dir
from codexd.errors import ConfigError
from codexd.protocol import decoding
from codexd.protocol.members import place_of
from codexd.system.peer import UnknownUser, user_ids


def search_path(environ: Mapping[str, str]) -> list[Path]:
    """Returns the places of a configuration file in search order: the user's files before the machine's."""
    home = Path(environ.get("HOME", "/"))
    return [
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "codexd" / "config.toml",
        home / ".chatgpt-codex-router" / "config.json",
        Path("/etc/codexd/config.toml"),
    ]


def asked_for(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Returns the required file: ``--config``, else ``$CONFIG_PATH``, else the one in systemd's directory."""
    if path is not None:
        return path
    if named := environ.get("CONFIG_PATH"):
        return Path(named)
    if directory := environ.get("CONFIGURATION_DIRECTORY"):
        kept = Path(directory.split(":", maxsplit=1)[0]) / "config.toml"
        return kept if _is_there(kept) else None
    return None


def passed_over(path: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """Returns the files that ``load`` found and may not read. It continues without them, so the user must be told."""
    if asked_for(path, environ) is not None:
        return []
    found = []
    for place in search_path(environ):
        readable = _readable(place)
        if readable:
            break
        if readable is None:
            found.append(place)
    return found


def load(path: Path | None, environ: Mapping[str, str]) -> tuple[Config, Path | None]:
    """Finds, reads and validates; returns the configuration and its file. Raises ConfigError."""
    path = asked_for(path, environ) or next((place for place in search_path(environ) if _readable(place)), None)
    tree = {} if path is None else _read(path)
    origins = {} if path is None else _check_keys(tree, str(path))
    _apply_environment(tree, origins, environ)
    config = _convert(tree, origins)
    _check(config, keys_made=_keys_made(config, environ))
    return config, path


def _readable(path: Path) -> bool | None:
    """Returns whether the file exists; None if this user has no permission to read it or to look."""
    try:
        path.open("rb").close()
    except PermissionError:
        return None
    except OSError:
        return False
    return True


def _keys_made(config: Config, environ: Mapping[str, str]) -> bool:
    try:
        return (state_dir(config, environ) / KEYS_FILE).exists()
    except (OSError, RuntimeError):
        return True  # unknown here; the daemon requires a key in any case


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if path.suffix == ".json":
            tree = decoding.decode(data)
            return _from_camel_case(tree, path)
        return tomllib.loads(data.decode())
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error


def _from_camel_case(tree: Any, path: Path) -> dict[str, Any]:
    """Converts the keys of the JSON form. Its ``backend.timeout``, in milliseconds, sets both of the TOML timeouts."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected an object, got {type(tree).__name__}")
    result: dict[str, Any] = {}
    for section, table in tree.items():
        if isinstance(table, dict):
            table = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower(): value for key, value in table.items()}
            if section == "backend" and "timeout" in table:
                timeout = table.pop("timeout")
                if not isinstance(timeout, int | float) or isinstance(timeout, bool) or timeout <= 0:
                    raise ConfigError(f"{path}: backend.timeout: expected milliseconds above 0, got {timeout!r}")
                table = {"first_event_timeout": timeout / 1000, "idle_timeout": timeout / 1000} | table
        result[section] = table
    return result


def _sections() -> dict[str, type[Struct]]:
    return {field.name: field.type for field in msgspec.structs.fields(Config)}


def _check_keys(tree: dict[str, Any], origin: str) -> dict[str, str]:
    """Returns the origin of each key. Raises ConfigError for an unknown section or key."""
    origins: dict[str, str] = {}
    sections = _sections()
    for section, table in tree.items():
        if section not in sections:
            raise ConfigError(f"{origin}: [{section}]: unknown section{_nearest(section, sections)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{origin}: {section}: expected a table, got {type(table).__name__}")
        known = sections[section].__struct_fields__
        for key in table:
            if key not in known:
                raise ConfigError(f"{origin}: {section}.{key}: unknown key{_nearest(key, known)}")
            origins[f"{section}.{key}"] = origin
    server = tree.get("server", {})
    if "bind" in server and ("host" in server or "port" in server):
        raise ConfigError(f"{origin}: server.bind: expected either bind, or host and port, not both")
    return origins


def _nearest(name: str, known: Any) -> str:
    import difflib  # here: a start seldom needs it

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(known)}"


_SHORT = {
    "PORT": ("server", "port"),
    "HOST": ("server", "host"),
    "LOG_LEVEL": ("logging", "level"),
    "ENABLE_REQUEST_LOGGING": ("logging", "enable_request_logging"),
}


def _apply_environment(tree: dict[str, Any], origins: dict[str, str], environ: Mapping[str, str]) -> None:
    sections = _sections()
    places: list[tuple[str, str, str]] = [(name, *place) for name, place in _SHORT.items() if environ.get(name)]
    for name in sorted(environ):
        section, _, key = name.removeprefix("CODEXD_").lower().partition("_")
        if name.startswith("CODEXD_") and "__" not in name and section in sections and key:
            raise ConfigError(f"${name}: is not a key; did you mean $CODEXD_{section.upper()}__{key.upper()}?")
        if name.startswith("CODEXD_") and "__" in name:
            section, _, key = name.removeprefix("CODEXD_").lower().partition("__")
            if section not in sections:
                raise ConfigError(f"${name}: unknown section {section!r}{_nearest(section, sections)}")
            known = sections[section].__struct_fields__
            if key not in known:
                raise ConfigError(f"${name}: unknown key{_nearest(key, known)}")
            places.append((name, section, key))
    for name, section, key in places:
        text = environ[name].lower() if name == "LOG_LEVEL" else environ[name]
        tree[section] = {**tree.get(section, {}), key: _from_text(text, get_type_hints(sections[section])[key], name)}
        origins[f"{section}.{key}"] = f"${name}"


def _from_text(text: str, kind: Any, name: str) -> Any:
    """Converts an environment variable to the key's type. Lists are comma-separated, tables are NAME=VALUE,…"""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if get_origin(kind) is tuple:
        return words
    if get_origin(kind) is dict:
        pairs = [word.partition("=") for word in words]
        if not all(equals for _, equals, _ in pairs):
            raise ConfigError(f"${name}: expected NAME=VALUE, separated by commas")
        return {key.strip(): value.strip() for key, _, value in pairs}
    if kind is bool and text.lower() in ("yes", "on", "no", "off"):
        return text.lower() in ("yes", "on")
    for wanted in (int, float, bool):
        if wanted is kind or wanted in get_args(kind):
            try:
                return msgspec.convert(text, wanted, strict=False)
            except msgspec.ValidationError:
                return text
    return text


def _convert(tree: dict[str, Any], origins: Mapping[str, str]) -> Config:
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        said, key = place_of(error)
        section, name = [*re.split(r"[.\[]", key), ""][:2]
        origin = origins.get(f"{section}.{name}", "configuration")
        raise ConfigError(f"{origin}: {key}: {_expected(said, section, name)}") from error


def _expected(said: str, section: str, name: str) -> str:
    said = said[:1].lower() + said[1:].replace(" | null`", "`")
    if said.startswith("invalid enum value"):
        kind = get_type_hints(_sections()[section])[name]
        choices = [
            str(choice)
            for option in (kind, *get_args(kind))
            if get_origin(option) is Literal
            for choice in get_args(option)
        ]
        return f"expected one of {', '.join(choices)}, got{said.removeprefix('invalid enum value')}"
    return said


def _check(config: Config, *, keys_made: bool) -> None:
    for key, url in (
        ("oauth.issuer", config.oauth.issuer),
        ("oauth.redirect_uri", config.oauth.redirect_uri),
        ("backend.url", config.backend.url),
    ):
        _check_url(key, url)
    for key, directory in (
        ("storage.dir", config.storage.dir),
        ("logging.dir", config.logging.dir),
        ("backend.ca_file", config.backend.ca_file),
    ):
        try:
            Path(directory or "/").expanduser()
        except RuntimeError as error:
            raise ConfigError(f"{key}: {directory}: unknown user") from error
    if config.backend.ca_file is not None:
        _check_ca_file(config.backend.ca_file)
    _check_client_keys(config.server)
    try:
        user_ids(config.server.allowed_users)
    except UnknownUser as error:
        raise ConfigError(f"server.allowed_users: unknown user {str(error)!r} on this machine") from error
    if not config.listen():
        raise ConfigError("server.bind: expected at least one address")
    for bind in config.listen():
        if config.listen().count(bind) > 1:
            raise ConfigError(f"server.bind: {bind} is listed twice")
        if is_beyond_loopback(bind):
            _check_keys_for(config, f"server.bind: {bind}", keys_made=keys_made)


def _check_ca_file(ca_file: str) -> None:
    from codexd.system import certificates  # here: importing ssl is slow, and codexctl loads the configuration too

    for fault in certificates.problems(certificates.store({}, ca_file)):
        raise ConfigError(str(fault))


def _check_client_keys(server: Server) -> None:
    for name, key in server.client_keys.items():
        if key.startswith("sha256:") and not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", key):
            raise ConfigError(f"server.client_keys.{name}: expected sha256: and 64 hexadecimal digits")
    for name in server.strict_keys:
        if name not in server.client_keys:
            raise ConfigError(f"server.strict_keys: {name!r} is not in server.client_keys")
    for name in server.key_limits:
        if name not in server.client_keys:
            raise ConfigError(f"server.key_limits.{name}: {name!r} is not in server.client_keys")


def check_open(config: Config, environ: Mapping[str, str], name: str, address: object) -> None:
    """Checks an inherited socket. Raises ConfigError if other machines can use it without a key.

    ``address`` comes from ``getsockname``. A unix socket's address is a path, whose mode controls the access.
    """
    if isinstance(address, tuple) and not is_loopback(address[0]):
        _check_keys_for(config, f"systemd's socket {name}", keys_made=_keys_made(config, environ))


def _check_keys_for(config: Config, what: str, *, keys_made: bool) -> None:
    if keys_made or config.server.client_keys or config.server.allow_unauthenticated:
        return
    raise ConfigError(
        f"{what} is reachable from other machines, and anyone who can connect could use your "
        "account. Either make a client key first (`codexctl keys add NAME`, while codexd listens only on "
        "loopback), or set one in [server.client_keys], or, if a proxy in front authenticates clients, "
        "set server.allow_unauthenticated = true."
    )


def _check_url(key: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{key}: expected an http or https address, got {url!r}")


def table() -> str:
    """Returns all keys as a Markdown table for the README."""
    rows = []
    for section, struct in _sections().items():
        for field in msgspec.structs.fields(struct):
            default = field.default if field.default is not msgspec.NODEFAULT else {}
            shown = "unset" if default is None else f"`{msgspec.json.encode(default).decode()}`"
            rows.append(f"| `{section}.{field.name}` | {shown} | {description(struct, field.name)} |")
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def description(struct: type[Struct], name: str) -> str:
    annotated = get_type_hints(struct, include_extras=True)[name]
    return next((meta.description for meta in get_args(annotated) if isinstance(meta, Meta) and meta.description), "")

"""Loads the configuration from a TOML or JSON file. Environment variables override the file.

A wrong key or value is refused with its place and the expected value. Nothing is guessed.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from codexd.config.addresses import is_beyond_loopback, is_loopback
from codexd.config.model import Config, Server
from codexd.config.paths import KEYS_FILE, state_dir
from codexd.errors import ConfigError
from codexd.protocol import decoding
from codexd.reasons import place_of, quoted
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
    tree, origins, path = _gathered(path, environ)
    config = _convert(tree, origins)
    _check(config, origins, keys_made=_keys_made(config, environ))
    return config, path


class Sources(NamedTuple):
    """Where a configuration comes from: the file of ``--config``, if any, and the environment."""

    path: Path | None
    environ: Mapping[str, str]

    def load(self) -> tuple[Config, Path | None]:
        """Calls ``load``. Raises ConfigError."""
        return load(self.path, self.environ)

    def origins(self) -> dict[str, str]:
        """Returns, by key, the file and line or the variable of each value that is set. Raises ConfigError."""
        return _gathered(self.path, self.environ)[1]

    def file(self) -> Path:
        """Returns the file that is read, or the one to create if there is none. Raises ConfigError."""
        if (path := asked_for(self.path, self.environ)) is not None:
            return path
        if directory := self.environ.get("CONFIGURATION_DIRECTORY"):
            return Path(directory.split(":", maxsplit=1)[0]) / "config.toml"
        places = search_path(self.environ)
        return next((place for place in places if _readable(place)), places[0])


def described(config: Config) -> Iterator[tuple[str, str]]:
    """Yields each key with its value as JSON. Client keys are not shown."""
    for section in msgspec.structs.fields(Config):
        table = getattr(config, section.name)
        for field in msgspec.structs.fields(section.type):
            value = getattr(table, field.name)
            if (section.name, field.name) == ("server", "client_keys"):
                value = dict.fromkeys(value, "[redacted]")
            yield f"{section.name}.{field.name}", msgspec.json.encode(value).decode()


_Gathered = tuple[dict[str, Any], dict[str, str], Path | None]


def _gathered(path: Path | None, environ: Mapping[str, str]) -> _Gathered:
    """Returns what file and environment set, the origin of each key, and the file. Raises ConfigError."""
    path = asked_for(path, environ) or next((place for place in search_path(environ) if _readable(place)), None)
    tree, places = ({}, {}) if path is None else _read(path)
    origins = {} if path is None else _check_keys(tree, str(path), places)
    _apply_environment(tree, origins, environ)
    return tree, origins, path


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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns the tables of the file, and the line of each key where that is known. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        if path.suffix == ".json":
            tree = decoding.decode(data)
            return _from_camel_case(tree, path), {}
        text = data.decode()
        return tomllib.loads(text), _lines(text)
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error


def _lines(text: str) -> dict[str, int]:
    """Returns the line of each ``section`` and ``section.key`` of a TOML text, as far as usual formatting shows it."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w.-]+)", line):
            table = header[1]
            found.setdefault(".".join(table.split(".")[:2]), number)
            found.setdefault(table.split(".")[0], number)
        elif key := re.match(r"\s*([\w.-]+)\s*=", line):
            found.setdefault(".".join(f"{table}.{key[1]}".strip(".").split(".")[:2]), number)
    return found


def _from_camel_case(tree: Any, path: Path) -> dict[str, Any]:
    """Converts the keys of the JSON form. Its ``backend.timeout``, in milliseconds, sets both of the TOML timeouts."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a JSON object with a member for each section")
    result: dict[str, Any] = {}
    for section, table in tree.items():
        if isinstance(table, dict):
            table = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower(): value for key, value in table.items()}
            if section == "backend" and "timeout" in table:
                timeout = table.pop("timeout")
                if not isinstance(timeout, int | float) or isinstance(timeout, bool) or timeout <= 0:
                    raise ConfigError(
                        f"{path}: backend.timeout: must be a number of milliseconds above 0, not {timeout!r}"
                    )
                table = {"first_event_timeout": timeout / 1000, "idle_timeout": timeout / 1000} | table
        result[section] = table
    return result


def _sections() -> dict[str, type[Struct]]:
    return {field.name: field.type for field in msgspec.structs.fields(Config)}


def _check_keys(tree: dict[str, Any], file: str, lines: Mapping[str, int]) -> dict[str, str]:
    """Returns the origin of each key, such as ``config.toml:3``. Raises ConfigError for an unknown section or key."""
    origins: dict[str, str] = {}
    sections = _sections()

    def place(key: str) -> str:
        return f"{file}:{lines[key]}" if key in lines else file

    for section, table in tree.items():
        if section not in sections:
            raise ConfigError(f"{place(section)}: [{section}]: unknown section{_nearest(section, sections)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{place(section)}: {section} is a section: put its keys below a [{section}] header")
        known = sections[section].__struct_fields__
        for key in table:
            if key not in known:
                raise ConfigError(f"{place(f'{section}.{key}')}: {section}.{key}: unknown key{_nearest(key, known)}")
            origins[f"{section}.{key}"] = place(f"{section}.{key}")
    server = tree.get("server", {})
    if "bind" in server and ("host" in server or "port" in server):
        raise ConfigError(f"{place('server.bind')}: server.bind: set either bind, or host and port, not both")
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
            raise ConfigError(f"${name}: unknown variable; did you mean $CODEXD_{section.upper()}__{key.upper()}?")
        if name.startswith("CODEXD_") and "__" in name:
            section, _, key = name.removeprefix("CODEXD_").lower().partition("__")
            if section not in sections:
                raise ConfigError(f"${name}: unknown section {quoted(section)}{_nearest(section, sections)}")
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
            raise ConfigError(f"${name}: must be NAME=VALUE pairs, separated by commas")
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
        said, key = place_of(error, plain=False)
        section, name = [*re.split(r"[.\[]", key), ""][:2]
        origin = origins.get(f"{section}.{name}", "configuration")
        said = _expected(said, section, name)
        if origin.startswith("$"):
            said = said.replace("text in quotes", "text")
        raise ConfigError(f"{origin}: {key.replace('[...]', '.NAME')}: {said}") from error


_KINDS = {
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
"""msgspec's names of types, in the words of somebody who edits the file."""


_FORMS = {
    "local_server_host": "must be an IP address, such as 127.0.0.1",
    "allowed_origins": "must be * or an origin, such as https://chat.example",
    "user_agent": "must be ASCII text, because it is sent in a header",
}
"""What a value with a pattern has to be, by its key."""


def _expected(said: str, section: str, name: str) -> str:
    """Returns msgspec's message without its names for types and patterns."""
    said = said[:1].lower() + said[1:]
    kind = get_type_hints(_sections()[section]).get(name) if section in _sections() else None
    if said.startswith("invalid enum value"):
        choices = _choices(kind)
        given = said.removeprefix("invalid enum value ").strip("'")
        return f"must be one of {', '.join(choices)}, not {quoted(given)}"
    if "matching regex" in said:
        if "http" in said:
            return "must be an http or https address"
        return _FORMS.get(name, "must be ASCII characters without spaces, because it is sent in a header")
    if unknown := re.search(r"unknown field `(.*)`", said):
        return f"unknown key {quoted(unknown[1])}"
    wanted, *_ = re.findall(r"`([a-z]+)", said) or [""]
    if got := re.search(r"got `([a-z]+)`", said):
        instead = "" if (wanted, got[1]) == ("int", "float") else f", not {_KINDS.get(got[1], got[1])}"
        return f"must be {_KINDS.get(wanted, wanted)}{instead}"
    if bound := re.search(r"(of length )?(>=|<=|>|<) ([\d.]+)$", said):
        words = {">=": "{} or more", "<=": "{} or less", ">": "more than {}", "<": "less than {}"}[bound[2]]
        limit = words.format(bound[3].removesuffix(".0"))
        return f"must have {limit} characters" if bound[1] else f"must be {limit}"
    return said


def _check(config: Config, origins: Mapping[str, str], *, keys_made: bool) -> None:
    """Checks what the types do not say. Raises ConfigError."""

    def place(key: str) -> str:
        return f"{origins[key]}: {key}" if key in origins else key

    for key, url in (
        ("oauth.issuer", config.oauth.issuer),
        ("oauth.redirect_uri", config.oauth.redirect_uri),
        ("backend.url", config.backend.url),
    ):
        _check_url(place(key), url)
    for key, directory in (
        ("storage.dir", config.storage.dir),
        ("logging.dir", config.logging.dir),
        ("backend.ca_file", config.backend.ca_file),
    ):
        try:
            Path(directory or "/").expanduser()
        except RuntimeError as error:
            raise ConfigError(f"{place(key)}: {directory}: unknown user") from error
    if config.backend.ca_file is not None:
        _check_ca_file(config.backend.ca_file)
    _check_client_keys(config.server, place)
    try:
        user_ids(config.server.allowed_users)
    except UnknownUser as error:
        raise ConfigError(
            f"{place('server.allowed_users')}: unknown user {quoted(str(error))} on this machine"
        ) from error
    if not config.listen():
        raise ConfigError(f"{place('server.bind')}: needs at least one address")
    for bind in config.listen():
        if config.listen().count(bind) > 1:
            raise ConfigError(f"{place('server.bind')}: {bind} is listed twice")
        try:
            beyond = is_beyond_loopback(bind)
        except ConfigError as error:
            raise ConfigError(f"{place('server.bind')}: {error}") from error
        if beyond:
            _check_keys_for(config, f"{place('server.bind')}: {bind}", keys_made=keys_made)


def _check_ca_file(ca_file: str) -> None:
    from codexd.system import certificates  # here: importing ssl is slow, and codexctl loads the configuration too

    for fault in certificates.problems(certificates.store({}, ca_file)):
        raise ConfigError(str(fault))


def _check_client_keys(server: Server, place: Callable[[str], str]) -> None:
    for name, key in server.client_keys.items():
        if key.startswith("sha256:") and not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", key):
            raise ConfigError(
                f"{place('server.client_keys')}.{name}: must be the key itself, or sha256: followed by 64 hex digits"
            )
    for name in server.strict_keys:
        if name not in server.client_keys:
            raise ConfigError(f"{place('server.strict_keys')}: {quoted(name)} is not in server.client_keys")
    for name in server.key_limits:
        if name not in server.client_keys:
            raise ConfigError(f"{place('server.key_limits')}.{name}: {quoted(name)} is not in server.client_keys")


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
        "account. Do one of these: create a client key first (`codexctl keys add NAME`, while codexd listens only on "
        "loopback); set one in [server.client_keys]; or, if a proxy in front authenticates clients, "
        "set server.allow_unauthenticated = true."
    )


def _check_url(key: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{key}: must be an http or https address, not {quoted(url)}")


def table() -> str:
    """Returns all keys as a Markdown table for the reference."""
    rows = []
    for section, struct in _sections().items():
        for field in msgspec.structs.fields(struct):
            default = field.default if field.default is not msgspec.NODEFAULT else {}
            shown = "unset" if default is None else f"`{msgspec.json.encode(default).decode()}`"
            rows.append(f"| `{section}.{field.name}` | {shown} | {description(struct, field.name)} |")
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def description(struct: type[Struct], name: str) -> str:
    """Returns the text about a key, with the values that it can have."""
    annotated = get_type_hints(struct, include_extras=True)[name]
    said = next((meta.description for meta in get_args(annotated) if isinstance(meta, Meta) and meta.description), "")
    values = [f"`{each}`" for each in _choices(get_type_hints(struct)[name])]
    return said if all(each in said for each in values) else f"{said} One of {', '.join(values)}."


def _choices(kind: Any) -> list[str]:
    return [
        str(choice)
        for option in (kind, *get_args(kind))
        if get_origin(option) is Literal
        for choice in get_args(option)
    ]

"""The configuration: one frozen struct, decoded and validated once, from TOML or JSON and the environment on top.

Wrong keys and values are refused with their place and what was expected; nothing is guessed.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from codexd.protocol.models import Effort, Verbosity

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Port = Annotated[int, Meta(ge=0, le=65535)]
_IN_A_HEADER = r"^[\x21-\x7e]+$"
CLIENT_ID = "app_EMoamEEZ73f0CkXaXp7hrann"  # the public client of the official CLI; it has no secret


KEYS_FILE = "keys.json"
"""In the state directory: the client keys that codexctl made."""


class ConfigError(Exception):
    """The configuration cannot be used. The message names file, key and what was expected."""


def _about(text: str) -> Meta:
    return Meta(description=text)


class Server(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bind: Annotated[
        tuple[str, ...],
        _about(
            "Addresses to listen on: `host:port`, `[ipv6]:port` or `unix:/path`, several at once. `unix:NAME` lies in "
            "`$RUNTIME_DIRECTORY`, else in `$XDG_RUNTIME_DIR/codexd`."
        ),
    ] = ("127.0.0.1:3000",)
    host: Annotated[
        str | None, _about("Short form of one TCP address, with `port`; stands in for those of `bind`.")
    ] = None
    port: Annotated[Port | None, _about("See `host`. 0 takes a free port.")] = None
    allow_unauthenticated: Annotated[
        bool,
        _about("Listen beyond loopback although no client key is set: anyone who reaches the port uses the account."),
    ] = False
    client_keys: Annotated[
        dict[str, Annotated[str, Meta(min_length=16)]],
        _about(
            "Keys that clients must present (`Authorization: Bearer` or `x-api-key`), by a name for the logs, beside "
            "those that `codexctl keys` makes. A value is the key itself (16 characters or more) or `sha256:` and its "
            "hash in hex. No key here and none made: none is asked for."
        ),
    ] = msgspec.field(default_factory=dict)
    strict_keys: Annotated[
        tuple[str, ...],
        _about(
            "Names of keys in `client_keys` for which every parameter that would be dropped is a 400. "
            "`codexctl keys add --strict` makes such a key."
        ),
    ] = ()
    max_body_bytes: Annotated[int, Meta(ge=1024), _about("Largest request body. Images travel inside it.")] = (
        64 * 1024 * 1024
    )
    websocket: Annotated[
        bool, _about("Serve `/v1/responses` over websockets too. When off, an upgrade is answered with 426.")
    ] = True
    exit_idle_seconds: Annotated[
        float,
        Meta(ge=0),
        _about(
            "With sockets from systemd: exit after so long without a request, and be started by the next one. 0: never."
        ),
    ] = 0.0
    drain_seconds: Annotated[float, Meta(ge=0, le=86400), _about("How long open streams may finish after SIGTERM.")] = (
        30.0
    )


class OAuth(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    client_id: Annotated[str, _about("The OAuth client that the sign-in belongs to.")] = CLIENT_ID
    issuer: Annotated[str, Meta(pattern="^https?://"), _about("The OAuth issuer.")] = "https://auth.openai.com"
    redirect_uri: Annotated[str, _about("Where the browser returns to after signing in.")] = (
        "http://127.0.0.1:1455/auth/callback"
    )
    local_server_port: Annotated[
        Port,
        _about("Port of the server that waits for that return while a browser sign-in runs. 1457 stands in for 1455."),
    ] = 1455
    login_timeout: Annotated[Seconds, _about("Seconds that a browser sign-in may take.")] = 600.0


class Backend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: Annotated[str, Meta(pattern="^https?://"), _about("The ChatGPT backend.")] = "https://chatgpt.com/backend-api"
    first_event_timeout: Annotated[Seconds, _about("Seconds that the backend may take until its first event.")] = 120.0
    idle_timeout: Annotated[Seconds, _about("Seconds of silence after which a stream counts as dead.")] = 300.0
    originator: Annotated[
        str, Meta(pattern=_IN_A_HEADER), _about("Sent as `originator`; the backend knows the official client's names.")
    ] = "codex_cli_rs"
    client_version: Annotated[
        str,
        Meta(pattern=_IN_A_HEADER),
        _about("The official client's version to speak as: too low a value hides or refuses newer models."),
    ] = "0.169.0"


class Logging(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Annotated[
        Literal["debug", "info", "warn", "error"], _about("Warnings and errors are logged at any level.")
    ] = "info"
    dir: Annotated[
        str | None, _about("Also write `DIR/{date}-{level}.log`. A relative path is below the state directory.")
    ] = None
    format: Annotated[
        Literal["auto", "console", "journal", "logfmt", "json"],
        _about("`auto`: journal under systemd, else console (coloured on a terminal)."),
    ] = "auto"
    enable_request_logging: Annotated[
        bool, _about("At level debug, log each request before and after conversion, contents included.")
    ] = False


class Codex(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mode: Annotated[
        bool, _about("Put the model family's instructions (`prompts/`) before the client's own system texts.")
    ] = True
    reasoning_format: Annotated[
        Literal["reasoning_content", "reasoning", "think-tags", "none"],
        _about(
            "Where chat clients find the summary of the reasoning: in `reasoning_content` or `reasoning`, in the text "
            "between `<think>` and `</think>`, or nowhere."
        ),
    ] = "reasoning_content"
    reasoning_memory_bytes: Annotated[
        int,
        Meta(ge=0),
        _about(
            "Encrypted reasoning is kept in memory for the next turn of chat clients, who cannot carry it: so much of "
            "it at most, the oldest going first. 0 keeps none."
        ),
    ] = 16 * 1024 * 1024
    reasoning_memory_seconds: Annotated[Seconds, _about("How long it is kept.")] = 3600.0
    repair_history: Annotated[
        bool,
        _about(
            "Mend conversations whose tool calls lack a result or the other way round (clients trim them so), and say "
            "so in `x-codexd-adjusted`. Off: they are refused, as OpenAI does it."
        ),
    ] = False
    default_reasoning_effort: Annotated[
        Effort | None, _about("For requests that name none, where the model has it. Unset: the model's own default.")
    ] = None
    default_text_verbosity: Annotated[
        Verbosity | None, _about("For requests that name none. Unset: the model's own default.")
    ] = None


class Models(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    aliases: Annotated[
        dict[str, str], _about("Names that clients use, and the model (or `NAME-EFFORT`) that each stands for.")
    ] = msgspec.field(default_factory=dict)


class Control(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    socket: Annotated[
        str,
        _about(
            "Where `codexctl` connects: a path, or a name in `$RUNTIME_DIRECTORY`, else in `$XDG_RUNTIME_DIR/codexd`, "
            "else in the state directory."
        ),
    ] = "control.sock"


class Storage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    dir: Annotated[
        str | None,
        _about("The state directory, where there is no `$STATE_DIRECTORY`. Unset: `$XDG_STATE_HOME/codexd`."),
    ] = None
    responses: Annotated[
        bool,
        _about("Keep stored responses in files of the state directory, so that a restart loses none. Off: in memory."),
    ] = False
    response_bytes: Annotated[
        int, Meta(ge=0), _about("How much of stored responses is kept, the oldest going first. 0 stores none.")
    ] = 64 * 1024 * 1024
    response_seconds: Annotated[float, Meta(gt=0, le=366 * 86400), _about("How long a stored response is kept.")] = (
        30 * 86400.0
    )


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    server: Server = Server()
    oauth: OAuth = OAuth()
    backend: Backend = Backend()
    logging: Logging = Logging()
    codex: Codex = Codex()
    models: Models = Models()
    control: Control = Control()
    storage: Storage = Storage()

    @property
    def key_always(self) -> bool:
        """Whether a client key is asked for even when none is known: other machines reach this one."""
        return not self.server.allow_unauthenticated and any(map(_is_beyond_loopback, self.listen()))

    def listen(self) -> list[str]:
        """The addresses to listen on, with ``host`` and ``port`` worked in."""
        server = self.server
        if server.host is None and server.port is None:
            return list(server.bind)
        host = server.host or "127.0.0.1"
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return [f"{host}:{3000 if server.port is None else server.port}"] + [
            b for b in server.bind if b.startswith("unix:")
        ]


# --- where it comes from


def search_path(environ: Mapping[str, str]) -> list[Path]:
    """The places where a configuration file is looked for, first match wins (after ``--config`` and $CONFIG_PATH)."""
    home = Path(environ.get("HOME", "/"))
    places = [Path("/etc/codexd/config.toml")]
    if directory := environ.get("CONFIGURATION_DIRECTORY"):
        places.insert(0, Path(directory.split(":", maxsplit=1)[0]) / "config.toml")
    places.append(Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "codexd" / "config.toml")
    places.append(home / ".chatgpt-codex-router" / "config.json")
    return places


def load(path: Path | None, environ: Mapping[str, str]) -> tuple[Config, Path | None]:
    """Find, read and validate; the configuration and the file that it came from. Raises ConfigError."""
    if path is None and (named := environ.get("CONFIG_PATH")):
        path = Path(named)
    if path is None:
        path = next((place for place in search_path(environ) if _is_there(place)), None)
    tree = {} if path is None else _read(path)
    origins = {} if path is None else _check_keys(tree, str(path))
    _apply_environment(tree, origins, environ)
    config = _convert(tree, origins)
    _check(config, keys_made=_keys_made(config, environ))
    return config, path


def _keys_made(config: Config, environ: Mapping[str, str]) -> bool:
    try:
        return (state_dir(config, environ) / KEYS_FILE).exists()
    except (OSError, RuntimeError):
        return True  # it cannot be told from here; the daemon asks for a key in any case


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
            tree = msgspec.json.decode(data)
            return _from_camel_case(tree, path)
        return tomllib.loads(data.decode())
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error


def _from_camel_case(tree: Any, path: Path) -> dict[str, Any]:
    """The keys of the JSON form in TOML's words. Its ``backend.timeout`` is in milliseconds and means both of ours."""
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
    """Refuse unknown sections and keys by name; where each known one came from."""
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
            raise ConfigError(f"${name}: names no key; did you mean $CODEXD_{section.upper()}__{key.upper()}?")
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
    """An environment variable's text as the type that the key has. Lists are comma-separated, tables NAME=VALUE,…"""
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
        said, _, place = str(error).partition(" - at `$.")
        key = place.rstrip("`")
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
    for key, directory in (("storage.dir", config.storage.dir), ("logging.dir", config.logging.dir)):
        try:
            Path(directory or "/").expanduser()
        except RuntimeError as error:
            raise ConfigError(f"{key}: {directory}: there is no such user") from error
    for name, key in config.server.client_keys.items():
        if key.startswith("sha256:") and not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", key):
            raise ConfigError(f"server.client_keys.{name}: expected sha256: and 64 hexadecimal digits")
    for name in config.server.strict_keys:
        if name not in config.server.client_keys:
            raise ConfigError(f"server.strict_keys: {name!r} is not in server.client_keys")
    if not config.listen():
        raise ConfigError("server.bind: expected at least one address")
    for bind in config.listen():
        if config.listen().count(bind) > 1:
            raise ConfigError(f"server.bind: {bind} is there twice")
        if _is_beyond_loopback(bind):
            _check_keys_for(config, f"server.bind: {bind}", keys_made=keys_made)


def check_open(config: Config, environ: Mapping[str, str], name: str, address: object) -> None:
    """Refuse an inherited socket that others reach without a key. Raises ConfigError.

    ``address`` is as ``getsockname`` has it: a unix socket's is a path, and who reaches that is its mode's business.
    """
    if isinstance(address, tuple) and not is_loopback(address[0]):
        _check_keys_for(config, f"systemd's socket {name}", keys_made=_keys_made(config, environ))


def _check_keys_for(config: Config, what: str, *, keys_made: bool) -> None:
    if keys_made or config.server.client_keys or config.server.allow_unauthenticated:
        return
    raise ConfigError(
        f"{what} is reachable from other machines, and anyone who reaches it would use your "
        "account. Either make a client key first (`codexctl keys add NAME`, while codexd still listens on "
        "loopback alone), or set one in [server.client_keys], or, if something in front checks who comes, "
        "set server.allow_unauthenticated = true."
    )


def split_bind(bind: str) -> str | tuple[str, int]:
    """``unix:/path`` as the path, ``host:port`` as a pair. Raises ConfigError.

    A path that is not absolute is resolved by ``resolve_bind``.
    """
    if bind.startswith("unix:"):
        return bind.removeprefix("unix:")
    host, _, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"server.bind: expected host:port or unix:/path, got {bind!r}")
    return host, int(port)


def resolve_bind(bind: str, environ: Mapping[str, str]) -> str:
    """A ``unix:NAME`` that is no absolute path lies in the runtime directory. Raises ConfigError without one."""
    name = bind.removeprefix("unix:")
    if name == bind or name.startswith("/"):
        return bind
    directory = runtime_dir(environ)
    if directory is None:
        raise ConfigError(f"server.bind: {bind} needs $RUNTIME_DIRECTORY or $XDG_RUNTIME_DIR, or an absolute path")
    directory.mkdir(mode=0o700, exist_ok=True)
    return f"unix:{directory / name}"


def runtime_dir(environ: Mapping[str, str]) -> Path | None:
    """Where sockets lie: ``$RUNTIME_DIRECTORY``, else ``$XDG_RUNTIME_DIR/codexd``."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":", maxsplit=1)[0])
    if base := environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "codexd"
    return None


def control_socket(config: Config, environ: Mapping[str, str]) -> Path:
    """The control socket of a daemon with this configuration."""
    return (runtime_dir(environ) or state_dir(config, environ)) / config.control.socket


def _check_url(key: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{key}: expected an http or https address, got {url!r}")


def _is_beyond_loopback(bind: str) -> bool:
    address = split_bind(bind)
    return not isinstance(address, str) and not is_loopback(address[0])


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


# --- directories


def state_dir(config: Config, environ: Mapping[str, str]) -> Path:
    """``$STATE_DIRECTORY``, else ``storage.dir``, else ``$XDG_STATE_HOME/codexd``."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":", maxsplit=1)[0])
    if config.storage.dir is not None:
        return Path(config.storage.dir).expanduser()
    home = Path(environ.get("HOME", "/"))
    return Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "codexd"


def table() -> str:
    """All keys as a Markdown table, for the README."""
    rows = []
    for section, struct in _sections().items():
        for field in msgspec.structs.fields(struct):
            default = field.default if field.default is not msgspec.NODEFAULT else {}
            shown = "unset" if default is None else f"`{msgspec.json.encode(default).decode()}`"
            rows.append(f"| `{section}.{field.name}` | {shown} | {_description(struct, field.name)} |")
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def _description(struct: type[Struct], name: str) -> str:
    annotated = get_type_hints(struct, include_extras=True)[name]
    return next((meta.description for meta in get_args(annotated) if isinstance(meta, Meta) and meta.description), "")

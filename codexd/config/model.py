"""The configuration as one frozen struct. ``codexd.config.load`` decodes and validates it once."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from codexd.config.addresses import is_beyond_loopback
from codexd.protocol.codex.models import Effort, Verbosity
from codexd.protocol.hosted.tools import MAX_ROUNDS, SearchMode

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Port = Annotated[int, Meta(ge=0, le=65535)]
_IN_A_HEADER = r"^[\x21-\x7e]+$"
CLIENT_ID = "app_EMoamEEZ73f0CkXaXp7hrann"  # the public client of the official CLI; it has no secret


def _about(text: str) -> Meta:
    return Meta(description=text)


class KeyLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of one client key. ``models``: names or patterns (``gpt-5.1*``), empty for all; times are Unix seconds.

    ``until_percent``: of the account's fullest window, from which on the key is refused until the window resets.
    """

    models: tuple[str, ...] = ()
    requests_per_minute: Annotated[int, Meta(ge=1)] | None = None
    concurrent_requests: Annotated[int, Meta(ge=1)] | None = None
    expires_at: Annotated[int, Meta(ge=0)] | None = None
    until_percent: Annotated[int, Meta(ge=1, le=100)] | None = None
    tokens_per_day: Annotated[int, Meta(ge=1)] | None = None


class Server(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bind: Annotated[
        tuple[str, ...],
        _about(
            "Addresses to listen on: `host:port`, `[ipv6]:port` or `unix:/path`. `unix:NAME` is created in "
            "`$RUNTIME_DIRECTORY`, else in `$XDG_RUNTIME_DIR/codexd`."
        ),
    ] = ("127.0.0.1:3000",)
    host: Annotated[
        str | None, _about("Shorthand for one TCP address, together with `port`. Replaces the TCP addresses of `bind`.")
    ] = None
    port: Annotated[Port | None, _about("See `host`. 0 selects a free port.")] = None
    allow_unauthenticated: Annotated[
        bool,
        _about(
            "Serve other machines, directly or through a proxy, without a client key. Anyone who can "
            "connect can use the account."
        ),
    ] = False
    client_keys: Annotated[
        dict[str, Annotated[str, Meta(min_length=16)]],
        _about(
            "Keys that clients must present (`Authorization: Bearer` or `x-api-key`), each with a name for the logs, "
            "in addition to those of `codexctl keys`. A value is the key itself (16 characters or more) or `sha256:` "
            "followed by its hash in hex. If there are no keys at all, none is required."
        ),
    ] = msgspec.field(default_factory=dict)
    strict_keys: Annotated[
        tuple[str, ...],
        _about(
            "Names of keys in `client_keys` for which a request with a parameter that would be dropped gets a 400. "
            "`codexctl keys add --strict` creates such a key."
        ),
    ] = ()
    key_limits: Annotated[
        dict[str, KeyLimits],
        _about(
            "Limits for keys in `client_keys`, by name: `models` (names or patterns such as `gpt-5.1*`), "
            "`requests_per_minute`, `concurrent_requests`, `expires_at` (Unix seconds), `until_percent` (of the "
            "fullest window), `tokens_per_day`. `codexctl keys add` has the same options."
        ),
    ] = msgspec.field(default_factory=dict)
    hosts: Annotated[
        tuple[str, ...],
        _about(
            "Host names, besides `localhost` and loopback addresses, that requests without a key may use over "
            "loopback. Requests for other names are refused, because a web page may have caused them (DNS rebinding)."
        ),
    ] = ()
    allowed_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^([a-z][a-z0-9+.-]*://[^/\s]+|\*)$")], ...],
        _about(
            "Origins of web pages that may use the API from a browser, such as `https://chat.example` or "
            "`app://obsidian.md`. `*` allows all of them, with a client key. If empty, no page may use the API. A "
            "request with another page's `Origin` and without a key is refused."
        ),
    ] = ()
    allowed_users: Annotated[
        tuple[str, ...],
        _about(
            "Users, by name or number, who may connect to unix sockets of `bind` (checked with `SO_PEERCRED`). A proxy "
            "counts as the user that runs it. If empty, only the socket's file mode decides."
        ),
    ] = ()
    max_connections: Annotated[
        int,
        Meta(ge=1),
        _about(
            "Maximum number of open connections. At the limit, each new connection closes an idle one; if "
            "none is idle, the new one gets a 503."
        ),
    ] = 4096
    max_requests: Annotated[
        int, Meta(ge=1), _about("Maximum number of requests in progress. Further ones get a 503 with `retry-after`.")
    ] = 2048
    max_body_bytes: Annotated[int, Meta(ge=1024), _about("Maximum size of a request body, including images.")] = (
        64 * 1024 * 1024
    )
    max_items: Annotated[
        int,
        Meta(ge=1000, le=10_000_000),
        _about(
            "Maximum number of JSON values (objects, lists, members and items; 50 escape sequences in strings count as "
            "one) in a request. They cost more memory and time than the size of a body suggests. A long conversation "
            "with many tools has about ten thousand."
        ),
    ] = 100_000
    memory_mb: Annotated[
        Annotated[int, Meta(ge=128, le=1_048_576)] | None,
        _about(
            "Memory that codexd may use, in MiB. Stored responses, images and reasoning each get at most one eighth of "
            "it. A request that does not fit gets a 503. Unset: four fifths of the unit's or container's limit, or "
            "a quarter of the machine's memory, at most 2048."
        ),
    ] = None
    websocket: Annotated[
        bool, _about("Also serve `/v1/responses` over websockets. When off, an upgrade is answered with 426.")
    ] = True
    exit_idle_seconds: Annotated[
        float,
        Meta(ge=0),
        _about(
            "With sockets from systemd: exit after this many seconds without a request. The next request starts codexd "
            "again. 0: never."
        ),
    ] = 0.0
    drain_seconds: Annotated[
        float, Meta(ge=0, le=86400), _about("Seconds that open streams have to finish after SIGTERM.")
    ] = 30.0


class OAuth(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    client_id: Annotated[str, _about("The ID of the OAuth client for the sign-in.")] = CLIENT_ID
    issuer: Annotated[str, Meta(pattern="^https?://"), _about("Address of the sign-in server, the OAuth issuer.")] = (
        "https://auth.openai.com"
    )
    redirect_uri: Annotated[str, _about("Where the browser is redirected after the sign-in.")] = (
        "http://127.0.0.1:1455/auth/callback"
    )
    local_server_port: Annotated[
        Port,
        _about("Port that receives the redirect of a browser sign-in. If 1455 is in use, 1457 is used."),
    ] = 1455
    local_server_host: Annotated[
        str,
        Meta(pattern=r"^[0-9a-fA-F.:]+$"),
        _about("Address that receives this redirect. Use `0.0.0.0` in a container with a published port."),
    ] = "127.0.0.1"
    login_timeout: Annotated[Seconds, _about("Maximum duration of a browser sign-in, in seconds.")] = 600.0


class Backend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: Annotated[str, Meta(pattern="^https?://"), _about("Base URL of the ChatGPT backend.")] = (
        "https://chatgpt.com/backend-api"
    )
    ca_file: Annotated[
        str | None,
        _about(
            "A PEM file of certificates to trust in addition to the system's, such as the CA of a company's TLS "
            "proxy. `$CODEX_CA_CERTIFICATE` adds another; `$SSL_CERT_FILE` and `$SSL_CERT_DIR` replace the system's."
        ),
    ] = None
    transport: Annotated[
        Literal["auto", "websocket", "http"],
        _about(
            "How requests are sent. `auto`: one websocket per conversation, for faster answers and a warm cache, with "
            "HTTP as the fallback. `websocket` or `http`: only that one."
        ),
    ] = "auto"
    max_connections: Annotated[
        int,
        Meta(ge=1, le=1000),
        _about("Maximum number of websockets to the backend. The idle one used least recently is closed first."),
    ] = 32
    idle_seconds: Annotated[Seconds, _about("Seconds after which an idle websocket to the backend is closed.")] = 600.0
    first_event_timeout: Annotated[Seconds, _about("Seconds to wait for the backend's first event.")] = 120.0
    idle_timeout: Annotated[Seconds, _about("Seconds without an event after which a stream is closed.")] = 300.0
    originator: Annotated[
        str,
        Meta(pattern=_IN_A_HEADER),
        _about("Sent as `originator`; the backend knows only the names of official clients."),
    ] = "codex_cli_rs"
    client_version: Annotated[
        str,
        Meta(pattern=_IN_A_HEADER),
        _about("The official client's version to send. If it is too low, newer models are hidden or refused."),
    ] = "0.169.0"
    user_agent: Annotated[
        Annotated[str, Meta(pattern=r"^[\x20-\x7e]+$")] | None, _about("Sent as `user-agent`. Unset: codexd's own.")
    ] = None


class Logging(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Annotated[
        Literal["debug", "info", "warn", "error"], _about("Lowest level to log. Warnings and errors are always logged.")
    ] = "info"
    dir: Annotated[
        str | None, _about("Also write `DIR/{date}-{level}.log`. A relative path is below the state directory.")
    ] = None
    keep_days: Annotated[int, Meta(ge=1, le=3650), _about("Days to keep files in `dir`.")] = 30
    max_mb: Annotated[
        int,
        Meta(ge=1, le=1_048_576),
        _about("Maximum size of the files in `dir`, in MiB. The oldest are removed first."),
    ] = 256
    format: Annotated[
        Literal["auto", "console", "journal", "logfmt", "json"],
        _about("`auto`: journal under systemd, else console (coloured on a terminal)."),
    ] = "auto"
    enable_request_logging: Annotated[
        bool, _about("At level debug, log each request before and after conversion, including its contents.")
    ] = False


class Codex(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mode: Annotated[
        bool, _about("Put the model family's prompt (`prompts/`) before the client's own system messages.")
    ] = True
    reasoning_format: Annotated[
        Literal["reasoning_content", "reasoning", "think-tags", "none"],
        _about(
            "Where chat clients find the reasoning summary: in the field `reasoning_content` or `reasoning`, in the "
            "text between `<think>` and `</think>`, or nowhere."
        ),
    ] = "reasoning_content"
    image_format: Annotated[
        Literal["images", "markdown"],
        _about(
            "Where chat clients find a generated image: in `images` of the message, or in the text as Markdown with a "
            "data URL, for clients that show only the text."
        ),
    ] = "images"
    web_search: Annotated[
        SearchMode,
        _about(
            "`on request`: search when a request asks for it. `always`: let the model search in every request. `off`: "
            "never search; requests that ask for it are answered without, and `x-codexd-adjusted` reports it."
        ),
    ] = "on request"
    max_hosted_calls: Annotated[
        int,
        Meta(ge=1, le=100),
        _about("Maximum number of searches and image generations that codexd runs for a model in one answer."),
    ] = MAX_ROUNDS
    reasoning_memory_bytes: Annotated[
        int,
        Meta(ge=0),
        _about(
            "Maximum memory for encrypted reasoning, which is kept for the next turn of chat clients that cannot send "
            "it back. The oldest is removed first. 0 keeps none."
        ),
    ] = 16 * 1024 * 1024
    reasoning_memory_seconds: Annotated[Seconds, _about("Seconds to keep encrypted reasoning.")] = 3600.0
    repair_history: Annotated[
        bool,
        _about(
            "Repair conversations in which a tool call has no result or a result has no call, because a client trimmed "
            "them, and report that in `x-codexd-adjusted`. When off, such requests are refused, as OpenAI does."
        ),
    ] = False
    default_reasoning_effort: Annotated[
        Effort | None, _about("Effort for requests without one, if the model supports it. Unset: the model's default.")
    ] = None
    default_text_verbosity: Annotated[
        Verbosity | None, _about("Verbosity for requests without one. Unset: the model's default.")
    ] = None


class Models(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    aliases: Annotated[
        dict[str, str],
        _about(
            "Other names for models: each maps to a model or to `NAME-EFFORT`. `*` matches any text, such as in "
            "`claude-*haiku*`; names that contain `claude` work without an alias."
        ),
    ] = msgspec.field(default_factory=dict)
    fallback: Annotated[
        tuple[str, ...],
        _about(
            "Models to use instead, in this order, if the requested model is at its usage limit before the answer has "
            "started. `x-codexd-fallback` names the one that answered. Not used for strict keys. `gpt-reserve` is the "
            "account's reserve, if it has one."
        ),
    ] = ()
    experimental: Annotated[
        bool,
        _about("Offer features that were never verified with the backend: speech transcription."),
    ] = False
    list_efforts: Annotated[
        bool, _about("List `NAME-EFFORT` for each effort of a model, for clients that can only choose from the list.")
    ] = False


class Control(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    socket: Annotated[
        str,
        _about(
            "Socket for `codexctl`: a path, or a name in `$RUNTIME_DIRECTORY`, else in `$XDG_RUNTIME_DIR/codexd`, else "
            "in the state directory."
        ),
    ] = "control.sock"


class Storage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    dir: Annotated[
        str | None,
        _about("The state directory, unless `$STATE_DIRECTORY` is set. Unset: `$XDG_STATE_HOME/codexd`."),
    ] = None
    responses: Annotated[
        bool,
        _about("Keep stored responses in the state directory, so that they survive a restart. Off: only in memory."),
    ] = False
    response_bytes: Annotated[
        int, Meta(ge=0), _about("Maximum size of all stored responses. The oldest are removed first. 0 stores none.")
    ] = 64 * 1024 * 1024
    response_seconds: Annotated[float, Meta(gt=0, le=366 * 86400), _about("Seconds to keep a stored response.")] = (
        30 * 86400.0
    )
    image_bytes: Annotated[
        int,
        Meta(ge=0),
        _about("Maximum size of all images kept in memory for clients that asked for a URL. 0 keeps none."),
    ] = 64 * 1024 * 1024
    image_seconds: Annotated[Seconds, _about("Seconds to keep such an image.")] = 3600.0


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
        """Whether a client key is required even if none exists, because other machines can connect."""
        return not self.server.allow_unauthenticated and any(map(is_beyond_loopback, self.listen()))

    def listen(self) -> list[str]:
        """Returns the addresses to listen on, after applying ``host`` and ``port``."""
        server = self.server
        if server.host is None and server.port is None:
            return list(server.bind)
        host = server.host or "127.0.0.1"
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return [f"{host}:{3000 if server.port is None else server.port}"] + [
            b for b in server.bind if b.startswith("unix:")
        ]

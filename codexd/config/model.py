"""The configuration as one frozen struct, decoded and validated once by ``codexd.config.load``."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from codexd.config.addresses import is_beyond_loopback
from codexd.protocol.codex.models import Effort, Verbosity

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Port = Annotated[int, Meta(ge=0, le=65535)]
_IN_A_HEADER = r"^[\x21-\x7e]+$"
CLIENT_ID = "app_EMoamEEZ73f0CkXaXp7hrann"  # the public client of the official CLI; it has no secret


def _about(text: str) -> Meta:
    return Meta(description=text)


class KeyLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one client key may do. ``models``: names or patterns (``gpt-5.1*``), none is all; times are Unix seconds."""

    models: tuple[str, ...] = ()
    requests_per_minute: Annotated[int, Meta(ge=1)] | None = None
    concurrent_requests: Annotated[int, Meta(ge=1)] | None = None
    expires_at: Annotated[int, Meta(ge=0)] | None = None


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
    key_limits: Annotated[
        dict[str, KeyLimits],
        _about(
            "For keys in `client_keys`, by name: `models` (names or patterns such as `gpt-5.1*`), "
            "`requests_per_minute`, `concurrent_requests`, `expires_at` (Unix seconds). `codexctl keys add` has the "
            "same as options."
        ),
    ] = msgspec.field(default_factory=dict)
    hosts: Annotated[
        tuple[str, ...],
        _about(
            "Names of this machine, beside `localhost` and loopback's addresses, that a request without a key may be "
            "addressed to over loopback. Any other name may have been pointed here by a web page (DNS rebinding)."
        ),
    ] = ()
    allowed_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^([a-z][a-z0-9+.-]*://[^/\s]+|\*)$")], ...],
        _about(
            "Origins of web pages that may use the API from a browser, such as `https://chat.example` or "
            "`app://obsidian.md`; `*` is all of them, each with a client key. None: no page, and what comes with "
            "another page's `Origin` and no key is refused."
        ),
    ] = ()
    allowed_users: Annotated[
        tuple[str, ...],
        _about(
            "Users, by name or number, who may connect to unix sockets of `bind`, whoever else their mode lets in "
            "(`SO_PEERCRED`). A proxy is the user that it runs as. None: the mode alone decides."
        ),
    ] = ()
    max_connections: Annotated[
        int,
        Meta(ge=1),
        _about(
            "Open connections. Beyond that one which waits for a request is closed for each new one; while there is "
            "none, new ones get a 503."
        ),
    ] = 4096
    max_requests: Annotated[
        int, Meta(ge=1), _about("Requests that are being answered at once; more get a 503 and `retry-after`.")
    ] = 2048
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
    local_server_host: Annotated[
        str,
        Meta(pattern=r"^[0-9a-fA-F.:]+$"),
        _about("Address of that server. In a container, whose port is published, `0.0.0.0`."),
    ] = "127.0.0.1"
    login_timeout: Annotated[Seconds, _about("Seconds that a browser sign-in may take.")] = 600.0


class Backend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: Annotated[str, Meta(pattern="^https?://"), _about("The ChatGPT backend.")] = "https://chatgpt.com/backend-api"
    ca_file: Annotated[
        str | None,
        _about(
            "A PEM file of certificates to trust beside the system's, such as the CA of a company's proxy that opens "
            "TLS. `$CODEX_CA_CERTIFICATE` adds one too; `$SSL_CERT_FILE` and `$SSL_CERT_DIR` replace the system's."
        ),
    ] = None
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
        return not self.server.allow_unauthenticated and any(map(is_beyond_loopback, self.listen()))

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

"""The protocol of the control socket, without I/O: one request line, then reply lines until the connection closes.

Every line is a JSON object with ``version``. The member ``verb`` is the type of a request, ``reply`` that of a reply;
``codexctl --json`` prints the reply lines unchanged. Times are Unix seconds. Fields may be added within a version;
clients must ignore unknown ones.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd.config.model import KeyLimits
from codexd.errors import ApiError
from codexd.protocol import decoding
from codexd.protocol.codex.rate_limits import Credits, Window
from codexd.reasons import reason_of
from codexd.state.shares import Share
from codexd.telemetry.tokens import Row
from codexd.telemetry.trace import Trace

VERSION = 1
MAX_LINE = 32 * 1024 * 1024
"""Bytes of a request line. The largest is a question with images."""

MAX_LEVEL_SECONDS = 30 * 86400

Method = Literal["device", "browser", "paste"]
Level = Literal["debug", "info", "warn", "error"]
Column = Literal["day", "model", "key"]


# --- requests


class _Request(Struct, frozen=True, kw_only=True, tag_field="verb"):
    version: int = VERSION


class Login(_Request, frozen=True, kw_only=True, tag="login"):
    """Starts a sign-in, or joins the one in progress by the same method."""

    method: Method = "device"


class LoginCallback(_Request, frozen=True, kw_only=True, tag="login_callback"):
    """Completes the sign-in in progress with the address that the browser was sent to."""

    address: str


class LoginImport(_Request, frozen=True, kw_only=True, tag="login_import"):
    """Imports the sign-in of the official CLI. ``auth`` is the contents of its ``auth.json``."""

    auth: Raw


class Logout(_Request, frozen=True, kw_only=True, tag="logout"):
    pass


class Status(_Request, frozen=True, kw_only=True, tag="status"):
    pass


class Health(_Request, frozen=True, kw_only=True, tag="health"):
    """``ready``: also refuse if requests would fail, because codexd is signed out or stopping."""

    ready: bool = False


class Refresh(_Request, frozen=True, kw_only=True, tag="refresh"):
    pass


class Usage(_Request, frozen=True, kw_only=True, tag="usage"):
    pass


class Models(_Request, frozen=True, kw_only=True, tag="models"):
    refresh: bool = False


class KeysAdd(_Request, frozen=True, kw_only=True, tag="keys_add"):
    """``strict``: parameters that codexd would drop are errors for this key. ``limits`` restrict its use."""

    name: str
    strict: bool = False
    limits: KeyLimits = KeyLimits()


class KeysList(_Request, frozen=True, kw_only=True, tag="keys_list"):
    pass


class KeysRevoke(_Request, frozen=True, kw_only=True, tag="keys_revoke"):
    """``now``: also end the key's answers in progress; otherwise they finish."""

    name: str
    now: bool = False


class KeysLend(_Request, frozen=True, kw_only=True, tag="keys_lend"):
    """Returns a key that is valid until this connection closes, for checks through the listener."""


class Configuration(_Request, frozen=True, kw_only=True, tag="configuration"):
    """Returns the configuration in effect, and where each value came from."""


class Reload(_Request, frozen=True, kw_only=True, tag="reload"):
    pass


class Doctor(_Request, frozen=True, kw_only=True, tag="doctor"):
    """``deep``: also make a tiny real request, which counts as usage."""

    deep: bool = False


class Metrics(_Request, frozen=True, kw_only=True, tag="metrics"):
    """Returns the metrics in Prometheus's text format, as ``GET /metrics`` does."""


class Top(_Request, frozen=True, kw_only=True, tag="top"):
    """Returns the requests in progress and the last failures."""


class Log(_Request, frozen=True, kw_only=True, tag="log"):
    """Returns the last lines of the log, with ``follow`` also new ones. ``request`` (an id) and ``level`` filter."""

    lines: int = 100
    follow: bool = False
    request: str | None = None
    level: Level = "debug"


class Explain(_Request, frozen=True, kw_only=True, tag="explain"):
    """Returns the trace of one of the last requests. ``request`` is its id or the beginning of it."""

    request: str


class SetLevel(_Request, frozen=True, kw_only=True, tag="level"):
    """Sets the log level for ``seconds``; without a level, restores the configured one. 0 seconds: change nothing."""

    level: Level | None = None
    seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_LEVEL_SECONDS)] = 600


class History(_Request, frozen=True, kw_only=True, tag="history"):
    """Returns the usage since a day (such as 2030-12-31), summed over the columns that are not in ``by``."""

    since: str
    by: list[Column]


class PromptsList(_Request, frozen=True, kw_only=True, tag="prompts_list"):
    pass


class PromptsShow(_Request, frozen=True, kw_only=True, tag="prompts_show"):
    """``name`` is that of a family or a model."""

    name: str


class PromptsSet(_Request, frozen=True, kw_only=True, tag="prompts_set"):
    """``source`` is the file or URL of the text."""

    name: str
    text: str
    source: str


class PromptsReset(_Request, frozen=True, kw_only=True, tag="prompts_reset"):
    """Restores the built-in text of one name, or of all."""

    name: str | None = None


class PromptsOffer(_Request, frozen=True, kw_only=True, tag="prompts_offer"):
    """Returns the official texts of the account's models that differ from those in effect. Changes nothing."""


class Try(_Request, frozen=True, kw_only=True, tag="try"):
    """Asks a model a question; the default is the first listed model. ``images`` are data URLs.

    ``search``: the model may search the web. ``draw``: the question says what an image shows, or how to change
    ``images``.
    """

    question: str
    model: str | None = None
    effort: str | None = None
    images: list[str] = []
    search: bool = False
    draw: bool = False


Request = (
    Login
    | LoginCallback
    | LoginImport
    | Logout
    | Status
    | Health
    | Refresh
    | Usage
    | Models
    | KeysAdd
    | KeysList
    | KeysRevoke
    | KeysLend
    | Configuration
    | Reload
    | Doctor
    | Metrics
    | Top
    | Log
    | Explain
    | SetLevel
    | History
    | PromptsList
    | PromptsShow
    | PromptsSet
    | PromptsReset
    | PromptsOffer
    | Try
)


# --- replies

Kind = Literal["usage", "signed_out", "unreachable", "refused", "upstream", "internal"]


class _Reply(Struct, frozen=True, kw_only=True, tag_field="reply"):
    version: int = VERSION


class Refused(_Reply, frozen=True, kw_only=True, tag="refused"):
    """The last line of a request that failed. ``message`` ends with what to do; ``kind`` decides the exit code.

    The kind ``unreachable`` comes from codexctl itself, if the daemon does not answer.
    """

    kind: Kind
    code: str
    message: str


class DeviceCode(_Reply, frozen=True, kw_only=True, tag="device_code"):
    """Open the address and enter the code. ``joined``: the sign-in was already in progress."""

    verification_url: str
    user_code: str
    expires_at: int
    joined: bool


class AuthorizationUrl(_Reply, frozen=True, kw_only=True, tag="authorization_url"):
    """Open the address. With the method ``paste``, then send the address that the browser ends at."""

    authorization_url: str
    expires_at: int
    joined: bool


class Account(_Reply, frozen=True, kw_only=True, tag="account"):
    """The sign-in. ``why`` is the reason if not signed in; ``ended``: there is one, but it can no longer be used.

    ``unsaved``: it is not on disk yet. Do not stop codexd.
    """

    signed_in: bool
    why: str | None = None
    email: str | None = None
    plan: str | None = None
    account_id: str | None = None
    expires_at: int | None = None
    refreshed_at: int | None = None
    refresh_failed: str | None = None
    unsaved: bool = False
    ended: bool = False


class SignedOut(_Reply, frozen=True, kw_only=True, tag="signed_out"):
    """The credentials are deleted. ``revoked`` is false if the issuer did not revoke them, for the reason ``why``."""

    revoked: bool
    why: str | None


class UsageReport(_Reply, frozen=True, kw_only=True, tag="usage"):
    """``source``: the backend's usage page, or the headers of the last answer if the page is unavailable (``why``)."""

    source: Literal["usage", "headers"]
    as_of: int
    plan: str | None
    windows: list[Window]
    credits: Credits | None
    reached: str | None
    why: str | None = None


class StatusReport(_Reply, frozen=True, kw_only=True, tag="status"):
    """``login`` is the method of the sign-in in progress; ``draining``: codexd is stopping.

    ``websockets`` to the backend, and how many of them are idle; ``backend`` says how requests are sent. ``faults``
    are background tasks that have failed and why.
    """

    daemon_version: str
    pid: int
    uptime_seconds: int
    account: Account
    listeners: list[str]
    streams_open: int
    websockets: int = 0
    websockets_idle: int = 0
    backend: str = ""
    models_listed: int
    models_fetched_at: int | None
    client_keys: int
    keys_required: bool
    config: str
    state_directory: str
    draining: bool
    login: Method | None
    usage: UsageReport | None
    faults: dict[str, str] = {}


class HealthReport(_Reply, frozen=True, kw_only=True, tag="health"):
    """codexd answers requests on its own listener. ``signed_in``: the sign-in can be used.

    ``faults``: background tasks that have failed, and why.
    """

    daemon_version: str
    signed_in: bool
    faults: dict[str, str] = {}


class ModelEntry(Struct, frozen=True, kw_only=True):
    """``shape``: the request format that the backend requires for it. ``context_window`` is in tokens."""

    name: str
    efforts: list[str]
    default_effort: str | None
    context_window: int | None
    shape: Literal["classic", "lite"]
    listed: bool
    aliases: list[str]


class ModelsReport(_Reply, frozen=True, kw_only=True, tag="models"):
    """``why`` is the reason if a requested refresh failed; the list is then the previous one."""

    models: list[ModelEntry]
    fetched_at: int | None
    why: str | None = None


class KeyAdded(_Reply, frozen=True, kw_only=True, tag="key_added"):
    """The new key. It is shown only once. ``first``: until now clients needed none."""

    name: str
    key: str
    first: bool = False


class KeyEntry(Struct, frozen=True, kw_only=True):
    name: str
    source: str
    created_at: int | None
    last_used_at: int | None
    strict: bool = False
    limits: KeyLimits = KeyLimits()


class KeysReport(_Reply, frozen=True, kw_only=True, tag="keys"):
    """``required``: clients must present a key."""

    keys: list[KeyEntry]
    required: bool
    why: str | None = None


class KeyRevoked(_Reply, frozen=True, kw_only=True, tag="key_revoked"):
    """``required`` is false if that was the last key: local programs can now use the API without one.

    ``answers`` is the number of the key's answers in progress, which finish, or were ended by ``now``.
    """

    name: str
    required: bool
    answers: int = 0


class ConfigEntry(Struct, frozen=True, kw_only=True):
    """``value`` is JSON, without secrets. ``origin``: a file and its line, a variable, or None for the default."""

    key: str
    value: str
    origin: str | None


class ConfigurationReport(_Reply, frozen=True, kw_only=True, tag="configuration"):
    """``file`` is the file that was read, or the one that would be; ``exists``: it was read.

    ``changed`` are keys with another value in the file, in effect after a reload; those of ``restart`` after a restart.
    ``why``: the file cannot be used now, for this reason.
    """

    file: str
    exists: bool
    entries: list[ConfigEntry]
    changed: list[str] = []
    restart: list[str] = []
    why: str | None = None


class Reloaded(_Reply, frozen=True, kw_only=True, tag="reloaded"):
    """``changed`` are the keys whose new values are in effect; those of ``restart`` need a restart."""

    config: str
    changed: list[str]
    restart: list[str]


class Check(_Reply, frozen=True, kw_only=True, tag="check"):
    """One check of ``doctor``. A warning or failure has ``advice``, and a failure a ``kind``."""

    name: str
    outcome: Literal["ok", "warning", "failed"]
    message: str
    advice: str | None = None
    kind: Kind | None = None


class MetricsText(_Reply, frozen=True, kw_only=True, tag="metrics"):
    text: str


class TopReport(_Reply, frozen=True, kw_only=True, tag="top"):
    """``requests`` are those in progress, oldest first; ``errors`` the last failures, newest last."""

    now: float
    daemon_version: str
    uptime_seconds: int
    signed_in: bool
    requests: list[Trace]
    errors: list[Trace]
    finished: int
    usage: UsageReport | None


class LogLine(_Reply, frozen=True, kw_only=True, tag="log_line"):
    """One line, without secrets. ``lost``: number of lines before it that were dropped because they came too fast."""

    level: str
    line: str
    lost: int = 0


class Explained(_Reply, frozen=True, kw_only=True, tag="explained"):
    """``bodies``: the bodies of new requests are kept (logging.enable_request_logging)."""

    request: Trace
    bodies: bool


class LevelReport(_Reply, frozen=True, kw_only=True, tag="level"):
    """``until`` is when the configured level applies again, in Unix seconds."""

    level: Level
    configured: Level
    until: int | None = None


class HistoryReport(_Reply, frozen=True, kw_only=True, tag="history"):
    """Columns that are not in ``by`` are empty. ``shares`` are only there by key: what each used of the windows."""

    since: str
    by: list[Column]
    rows: list[Row]
    shares: list[Share] = []


class PromptEntry(Struct, frozen=True, kw_only=True):
    """``source`` and ``set_at`` are None for a built-in text. ``size`` is in characters."""

    name: str
    size: int
    sha256: str
    source: str | None
    set_at: int | None


class PromptsReport(_Reply, frozen=True, kw_only=True, tag="prompts"):
    """``in_use`` is false if codex.mode is off: no text is added to requests."""

    prompts: list[PromptEntry]
    in_use: bool


class PromptText(_Reply, frozen=True, kw_only=True, tag="prompt"):
    name: str
    text: str
    sha256: str
    source: str | None = None
    set_at: int | None = None


class PromptsWereReset(_Reply, frozen=True, kw_only=True, tag="prompts_reset"):
    """``names`` are those whose text had been set."""

    names: list[str]


class PromptOffered(_Reply, frozen=True, kw_only=True, tag="prompt_offered"):
    """``before`` is the text in effect for the model, ``text`` the official one from ``source``."""

    name: str
    before: str
    text: str
    source: str


class TryText(_Reply, frozen=True, kw_only=True, tag="text"):
    """A piece of the answer or, with ``thinking``, of the reasoning summary before it."""

    text: str
    thinking: bool = False


class TryImage(_Reply, frozen=True, kw_only=True, tag="image"):
    """An image that was drawn; ``data`` is base64, ``format`` such as png."""

    data: str
    format: str


class TryEnded(_Reply, frozen=True, kw_only=True, tag="try_ended"):
    model: str
    finish_reason: str | None
    tokens_in: int | None = None
    tokens_out: int | None = None


class Done(_Reply, frozen=True, kw_only=True, tag="done"):
    """The last line of a request that succeeded."""


Reply = (
    Refused
    | DeviceCode
    | AuthorizationUrl
    | Account
    | SignedOut
    | UsageReport
    | StatusReport
    | HealthReport
    | ModelsReport
    | KeyAdded
    | KeysReport
    | KeyRevoked
    | ConfigurationReport
    | Reloaded
    | Check
    | MetricsText
    | TopReport
    | LogLine
    | Explained
    | LevelReport
    | HistoryReport
    | PromptsReport
    | PromptText
    | PromptsWereReset
    | PromptOffered
    | TryText
    | TryImage
    | TryEnded
    | Done
)


# --- lines


class _Head(Struct, frozen=True):
    version: int | UnsetType = UNSET
    verb: str | UnsetType = UNSET


class NotUnderstood(Exception):
    """A line that is not a valid request. ``refusal`` is the reply to it."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


_REQUEST: decoding.Decoder[Request] = decoding.Decoder(Request)
_HEAD = decoding.Decoder(_Head)
REPLY: decoding.Decoder[Reply] = decoding.Decoder(Reply)


def encode(line: Struct) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def decode_request(line: bytes) -> Request:
    """Returns the request of a line. Raises NotUnderstood."""
    try:
        head = _HEAD.decode(line)
        if head.version is UNSET:
            raise _not_understood("version", "the request has no version")
        if head.version != VERSION:
            raise _not_understood(
                "version",
                f"the request has version {head.version} of the control protocol, but this codexd requires {VERSION}. "
                "Install codexctl and codexd of the same version, and restart codexd.",
            )
        return _REQUEST.decode(line)
    except msgspec.DecodeError as error:
        raise _not_understood("request", f"invalid request: {reason_of(error)}") from error


def _not_understood(code: str, message: str) -> NotUnderstood:
    return NotUnderstood(Refused(kind="usage", code=code, message=message))


def refused(error: ApiError) -> Refused:
    """Returns the reply for an ApiError."""
    kind: Kind = "refused"
    if error.error.code == "signed_out":
        kind = "signed_out"
    elif error.error.code in ("internal_error", "state_not_writable"):
        kind = "internal"
    elif error.status >= 500 or error.status == 429:
        kind = "upstream"
    return Refused(kind=kind, code=error.error.code or error.error.type, message=error.error.message)


def how_to_join(group: str) -> str:
    """Returns the advice for a user who may not use the control socket of that group.

    Joining is advised only for codexd's own groups: another one, such as root, would give more rights than codexd.
    """
    if group == "codexd" or group.startswith("codexd-"):
        return f"Use `sudo codexctl`, or join the group: `sudo usermod -aG {group} $USER`, then log in again."
    return "Use `sudo codexctl`."

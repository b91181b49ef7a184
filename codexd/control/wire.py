"""What goes over the control socket, without I/O: one request line, then reply lines until the connection closes.

Every line is a JSON object with ``version``. A request says which ``verb`` it is, a reply which ``reply``; ``codexctl
--json`` prints the reply lines as they come. Times are Unix seconds. New fields may be added to a version; whoever
reads must not mind them.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd.config.model import KeyLimits
from codexd.errors import ApiError
from codexd.protocol.codex.rate_limits import Credits, Window
from codexd.telemetry.tokens import Row
from codexd.telemetry.trace import Trace

VERSION = 1
MAX_LINE = 32 * 1024 * 1024
"""Bytes of a request line. A question with images is the largest."""

MAX_LEVEL_SECONDS = 30 * 86400

Method = Literal["device", "browser", "paste"]
Level = Literal["debug", "info", "warn", "error"]
Column = Literal["day", "model", "key"]


# --- requests


class _Request(Struct, frozen=True, kw_only=True, tag_field="verb"):
    version: int = VERSION


class Login(_Request, frozen=True, kw_only=True, tag="login"):
    """Sign in; joins the sign-in of that method that is under way."""

    method: Method = "device"


class LoginCallback(_Request, frozen=True, kw_only=True, tag="login_callback"):
    """The address that the browser was sent to, for the sign-in under way."""

    address: str


class LoginImport(_Request, frozen=True, kw_only=True, tag="login_import"):
    """The contents of the official CLI's ``auth.json``."""

    auth: Raw


class Logout(_Request, frozen=True, kw_only=True, tag="logout"):
    pass


class Status(_Request, frozen=True, kw_only=True, tag="status"):
    pass


class Health(_Request, frozen=True, kw_only=True, tag="health"):
    """``ready``: refuse also when requests would fail, because nobody is signed in or codexd is stopping."""

    ready: bool = False


class Refresh(_Request, frozen=True, kw_only=True, tag="refresh"):
    pass


class Usage(_Request, frozen=True, kw_only=True, tag="usage"):
    pass


class Models(_Request, frozen=True, kw_only=True, tag="models"):
    refresh: bool = False


class KeysAdd(_Request, frozen=True, kw_only=True, tag="keys_add"):
    """``strict``: for this key every parameter that cannot be honoured is an error. ``limits``: what it may do."""

    name: str
    strict: bool = False
    limits: KeyLimits = KeyLimits()


class KeysList(_Request, frozen=True, kw_only=True, tag="keys_list"):
    pass


class KeysRevoke(_Request, frozen=True, kw_only=True, tag="keys_revoke"):
    name: str


class Reload(_Request, frozen=True, kw_only=True, tag="reload"):
    pass


class Doctor(_Request, frozen=True, kw_only=True, tag="doctor"):
    """``deep`` also makes a tiny real request, which counts against the account's limits."""

    deep: bool = False


class Metrics(_Request, frozen=True, kw_only=True, tag="metrics"):
    """In Prometheus's text format, as ``GET /metrics``."""


class Top(_Request, frozen=True, kw_only=True, tag="top"):
    """What is under way, and what went wrong last."""


class Log(_Request, frozen=True, kw_only=True, tag="log"):
    """The last lines of the log; with ``follow`` those to come too. ``request`` and ``level`` say which lines."""

    lines: int = 100
    follow: bool = False
    request: str | None = None
    level: Level = "debug"


class Explain(_Request, frozen=True, kw_only=True, tag="explain"):
    """What became of one of the last requests. ``request`` is its id or the beginning of it."""

    request: str


class SetLevel(_Request, frozen=True, kw_only=True, tag="level"):
    """Log from this level on, for so many seconds; without a level, as the configuration says, and with 0 only tell."""

    level: Level | None = None
    seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_LEVEL_SECONDS)] = 600


class History(_Request, frozen=True, kw_only=True, tag="history"):
    """What was used since a day (as 2030-12-31), summed over the columns that are not named."""

    since: str
    by: list[Column]


class PromptsList(_Request, frozen=True, kw_only=True, tag="prompts_list"):
    pass


class PromptsShow(_Request, frozen=True, kw_only=True, tag="prompts_show"):
    """``name`` is a family's, or a model's."""

    name: str


class PromptsSet(_Request, frozen=True, kw_only=True, tag="prompts_set"):
    """``source`` says where the text came from."""

    name: str
    text: str
    source: str


class PromptsReset(_Request, frozen=True, kw_only=True, tag="prompts_reset"):
    """Of one, or of all."""

    name: str | None = None


class PromptsOffer(_Request, frozen=True, kw_only=True, tag="prompts_offer"):
    """The official texts of the account's catalogue that differ from those in force. Nothing is changed."""


class Try(_Request, frozen=True, kw_only=True, tag="try"):
    """A question to a model; without one the first of the catalogue. ``images`` are data URLs."""

    question: str
    model: str | None = None
    effort: str | None = None
    images: list[str] = []


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
    """The last line of what did not work. ``message`` ends in what to do; ``kind`` decides the exit code.

    ``unreachable`` comes from codexctl itself, when there is no daemon to say anything.
    """

    kind: Kind
    code: str
    message: str


class DeviceCode(_Reply, frozen=True, kw_only=True, tag="device_code"):
    """Open the address and enter the code. ``joined``: the sign-in was under way already."""

    verification_url: str
    user_code: str
    expires_at: int
    joined: bool


class AuthorizationUrl(_Reply, frozen=True, kw_only=True, tag="authorization_url"):
    """Open the address. With the method ``paste`` the address that follows it is to be handed in."""

    authorization_url: str
    expires_at: int
    joined: bool


class Account(_Reply, frozen=True, kw_only=True, tag="account"):
    """The sign-in. ``why`` says why there is none; ``ended`` that there was one, which cannot be used any more.

    ``unsaved``: it is not on disk yet, and codexd must not stop.
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
    """The credentials are deleted. ``revoked`` is false when the issuer could not be told, for the reason ``why``."""

    revoked: bool
    why: str | None


class UsageReport(_Reply, frozen=True, kw_only=True, tag="usage"):
    """``source``: the backend's usage page, or the headers of the last answer when that could not be had (``why``)."""

    source: Literal["usage", "headers"]
    as_of: int
    plan: str | None
    windows: list[Window]
    credits: Credits | None
    reached: str | None
    why: str | None = None


class StatusReport(_Reply, frozen=True, kw_only=True, tag="status"):
    """``login`` is the method of a sign-in that is under way; ``draining`` means that codexd is stopping."""

    daemon_version: str
    pid: int
    uptime_seconds: int
    account: Account
    listeners: list[str]
    streams_open: int
    models_listed: int
    models_fetched_at: int | None
    client_keys: int
    keys_required: bool
    config: str
    state_directory: str
    draining: bool
    login: Method | None
    usage: UsageReport | None


class HealthReport(_Reply, frozen=True, kw_only=True, tag="health"):
    """codexd answers requests on its own listener. ``signed_in``: and there is a sign-in to answer them with."""

    daemon_version: str
    signed_in: bool


class ModelEntry(Struct, frozen=True, kw_only=True):
    """``shape``: what the backend wants for it, ``classic`` or ``lite``. ``context_window`` is in tokens."""

    name: str
    efforts: list[str]
    default_effort: str | None
    context_window: int | None
    shape: Literal["classic", "lite"]
    listed: bool
    aliases: list[str]


class ModelsReport(_Reply, frozen=True, kw_only=True, tag="models"):
    """``why`` says why a refresh that was asked for did not work; the models are then those that were known."""

    models: list[ModelEntry]
    fetched_at: int | None
    why: str | None = None


class KeyAdded(_Reply, frozen=True, kw_only=True, tag="key_added"):
    """The only time that the key is shown."""

    name: str
    key: str


class KeyEntry(Struct, frozen=True, kw_only=True):
    name: str
    source: str
    created_at: int | None
    last_used_at: int | None
    strict: bool = False
    limits: KeyLimits = KeyLimits()


class KeysReport(_Reply, frozen=True, kw_only=True, tag="keys"):
    """``required``: clients must present one of them."""

    keys: list[KeyEntry]
    required: bool
    why: str | None = None


class KeyRevoked(_Reply, frozen=True, kw_only=True, tag="key_revoked"):
    """``required`` is false when that was the last one and the API is open to local programs from now on."""

    name: str
    required: bool


class Reloaded(_Reply, frozen=True, kw_only=True, tag="reloaded"):
    """``changed`` is in force now; ``restart`` are the keys whose new values wait for a restart."""

    config: str
    changed: list[str]
    restart: list[str]


class Check(_Reply, frozen=True, kw_only=True, tag="check"):
    """One line of ``doctor``. ``advice`` says what to do about a warning or a failure, which has a ``kind``."""

    name: str
    outcome: Literal["ok", "warning", "failed"]
    message: str
    advice: str | None = None
    kind: Kind | None = None


class MetricsText(_Reply, frozen=True, kw_only=True, tag="metrics"):
    text: str


class TopReport(_Reply, frozen=True, kw_only=True, tag="top"):
    """``requests`` are under way, the oldest first; ``errors`` the last that failed, the newest last."""

    now: float
    daemon_version: str
    uptime_seconds: int
    signed_in: bool
    requests: list[Trace]
    errors: list[Trace]
    finished: int
    usage: UsageReport | None


class LogLine(_Reply, frozen=True, kw_only=True, tag="log_line"):
    """One line, without secrets. ``lost``: so many before it went by too fast."""

    level: str
    line: str
    lost: int = 0


class Explained(_Reply, frozen=True, kw_only=True, tag="explained"):
    """``bodies``: whether those of new requests are kept (logging.enable_request_logging)."""

    request: Trace
    bodies: bool


class LevelReport(_Reply, frozen=True, kw_only=True, tag="level"):
    """``until`` is when the configured level is in force again, in Unix seconds."""

    level: Level
    configured: Level
    until: int | None = None


class HistoryReport(_Reply, frozen=True, kw_only=True, tag="history"):
    """The columns that are summed over are empty."""

    since: str
    by: list[Column]
    rows: list[Row]


class PromptEntry(Struct, frozen=True, kw_only=True):
    """``source`` and ``set_at`` are None for what is built in. ``size`` is in characters."""

    name: str
    size: int
    sha256: str
    source: str | None
    set_at: int | None


class PromptsReport(_Reply, frozen=True, kw_only=True, tag="prompts"):
    """``in_use`` is false where codex.mode is off and no text is added to requests."""

    prompts: list[PromptEntry]
    in_use: bool


class PromptText(_Reply, frozen=True, kw_only=True, tag="prompt"):
    name: str
    text: str
    sha256: str
    source: str | None = None
    set_at: int | None = None


class PromptsWereReset(_Reply, frozen=True, kw_only=True, tag="prompts_reset"):
    """The names of those that had been set."""

    names: list[str]


class PromptOffered(_Reply, frozen=True, kw_only=True, tag="prompt_offered"):
    """``before`` is in force for the model now; ``text`` is the official one, as its ``source`` has it."""

    name: str
    before: str
    text: str
    source: str


class TryText(_Reply, frozen=True, kw_only=True, tag="text"):
    """A piece of the answer, or of the summary of the reasoning before it."""

    text: str
    thinking: bool = False


class TryEnded(_Reply, frozen=True, kw_only=True, tag="try_ended"):
    model: str
    finish_reason: str | None
    tokens_in: int | None = None
    tokens_out: int | None = None


class Done(_Reply, frozen=True, kw_only=True, tag="done"):
    """The last line of what has nothing more to say."""


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
    | TryEnded
    | Done
)


# --- lines


class _Head(Struct, frozen=True):
    version: int | UnsetType = UNSET
    verb: str | UnsetType = UNSET


class NotUnderstood(Exception):
    """A line that is no request. ``refusal`` is the answer to it."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


_REQUEST: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_HEAD = msgspec.json.Decoder(_Head)
REPLY: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def encode(line: Struct) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises NotUnderstood."""
    try:
        head = _HEAD.decode(line)
        if head.version is UNSET:
            raise _not_understood("version", "the request names no version")
        if head.version != VERSION:
            raise _not_understood(
                "version",
                f"the request speaks version {head.version} of the control protocol, this codexd speaks {VERSION}: "
                "install codexctl and codexd of one version, and restart codexd",
            )
        return _REQUEST.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_understood("request", f"the request is not understood: {error}") from error


def _not_understood(code: str, message: str) -> NotUnderstood:
    return NotUnderstood(Refused(kind="usage", code=code, message=message))


def refused(error: ApiError) -> Refused:
    """The daemon's own errors, as replies."""
    kind: Kind = "refused"
    if error.error.code == "signed_out":
        kind = "signed_out"
    elif error.error.code in ("internal_error", "state_not_writable"):
        kind = "internal"
    elif error.status >= 500 or error.status == 429:
        kind = "upstream"
    return Refused(kind=kind, code=error.error.code or error.error.type, message=error.error.message)


def how_to_join(group: str) -> str:
    """What somebody does who may not use the control socket, which belongs to that group.

    Joining is advised for codexd's own groups alone: membership of another, such as root, would give more than codexd.
    """
    if group == "codexd" or group.startswith("codexd-"):
        return f"Use `sudo codexctl`, or join the group: `sudo usermod -aG {group} $USER`, then log in again."
    return "Use `sudo codexctl`."

"""OAuth without I/O: requests to the issuer, the claims in its tokens, the meaning of its answers and refusals.

Wire facts: captured requests of the official client; section A of the protocol notes.
"""

import base64
import binascii
import hashlib
import hmac
import math
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
from msgspec import Struct

from codexd.protocol import decoding
from codexd.protocol.codex.rate_limits import YEAR_9999
from codexd.reasons import reason_of

REFRESH_MARGIN = 300.0
"""Seconds before its expiry at which an access token is refreshed; the official client's value."""

MAX_AGE = 8 * 86400.0
"""Seconds after which a token without an expiry time is refreshed; the official client's value."""

DEVICE_LIFETIME = 900.0
"""Seconds until a device code expires: the official client's value, if the issuer gives no earlier time."""

SCOPE = "openid profile email offline_access api.connectors.read api.connectors.invoke"

_DEFAULT_INTERVAL = 5.0
SLOW_DOWN = 5.0
"""Seconds added to the polling interval on ``slow_down`` (RFC 8628, 3.5)."""

RefreshReason = Literal["proactive_expiry", "unauthorized_recovery", "scheduled"]

_PERMANENT = frozenset({"invalid_grant", "refresh_token_invalidated", "refresh_token_expired", "refresh_token_reused"})


# --- tokens


class AuthClaim(Struct, frozen=True):
    chatgpt_account_id: str | None = None
    chatgpt_plan_type: str | None = None
    chatgpt_compute_residency: str | None = None


class ProfileClaim(Struct, frozen=True):
    email: str | None = None


class Claims(
    Struct,
    frozen=True,
    rename={"auth": "https://api.openai.com/auth", "profile": "https://api.openai.com/profile"},
):
    """The claims that codexd reads. The signature is not checked; only the issuer needs that."""

    exp: float | None = None
    email: str | None = None
    auth: AuthClaim = AuthClaim()
    profile: ProfileClaim = ProfileClaim()


@lru_cache(maxsize=8)
def claims(token: str | None) -> Claims:
    """Returns the claims of a JSON web token; empty claims for anything else."""
    parts = (token or "").split(".")
    if len(parts) != 3:
        return Claims()
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return decoding.decode(payload, type=Claims)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return Claims()


def sane(moment: float | None) -> float | None:
    """Returns a time in Unix seconds; None for one that no calendar has."""
    return moment if moment is not None and 0 <= moment < YEAR_9999 else None


class RefreshRequest(Struct, frozen=True):
    """The body of ``POST /oauth/token`` for a refresh: JSON, although the exchange of a code is form-encoded."""

    client_id: str
    grant_type: Literal["refresh_token"]
    refresh_reason: RefreshReason
    refresh_token: str


class RevokeRequest(Struct, frozen=True):
    """The body of ``POST /oauth/revoke``."""

    token: str
    token_type_hint: Literal["refresh_token"]
    client_id: str


class TokenResponse(Struct, frozen=True):
    """The issuer's answer. A missing token keeps its old value. Refresh tokens rotate and are single-use."""

    access_token: str | None = None
    refresh_token: str | None = None
    id_token: str | None = None
    expires_in: float | None = None
    account_id: str | None = None


# --- the browser flow


class Authorization(NamedTuple):
    """One browser sign-in. ``verifier`` and ``state`` are secrets of this sign-in only (RFC 7636)."""

    url: str
    redirect_uri: str
    state: str
    verifier: str


def authorization(
    issuer: str, *, client_id: str, redirect_uri: str, originator: str, state: str, verifier: str
) -> Authorization:
    """Returns the address to open; its parameters are in the official client's order."""
    query = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "code_challenge": challenge(verifier),
        "code_challenge_method": "S256",
        "state": state,
        "scope": SCOPE,
        "id_token_add_organizations": "true",
        "codex_cli_simplified_flow": "true",
        "originator": originator,
    }
    return Authorization(f"{issuer}/oauth/authorize?{urlencode(query)}", redirect_uri, state, verifier)


def challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


class Code(NamedTuple):
    code: str


class Denied(NamedTuple):
    """The issuer refused the sign-in."""

    why: str


class Stray(NamedTuple):
    """A forged or old answer that does not belong to this sign-in, which continues to wait."""

    why: str


def callback(query: str, state: str) -> Code | Denied | Stray:
    """Interprets the query with which the browser returned."""
    fields = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    if "state" not in fields:
        return Stray("it contains no state parameter")
    if not hmac.compare_digest(fields["state"].encode(), state.encode()):
        return Stray("its state parameter belongs to another sign-in")
    if "error" in fields:
        said = fields.get("error_description")
        return Denied(f"{said} ({fields['error']})" if said else fields["error"])
    if not fields.get("code"):
        return Stray("it contains no code")
    return Code(fields["code"])


def query_of(address: str) -> str:
    """Returns the query of a pasted address: the whole address, the part from ``?`` on, or only the parameters."""
    address = address.strip().strip("<>\"'")
    return urlsplit(address).query if "?" in address else address


def exchange_form(code: str, *, client_id: str, redirect_uri: str, verifier: str) -> dict[str, str]:
    """Returns the form fields of ``POST /oauth/token`` that exchange a code, from browser or device, for tokens."""
    return {
        "grant_type": "authorization_code",
        "client_id": client_id,
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }


# --- the device flow


class _UserCode(Struct, frozen=True):
    device_auth_id: str
    user_code: str | None = None
    usercode: str | None = None
    interval: str | float | None = None


class Device(NamedTuple):
    """A device sign-in in progress. ``interval`` is in seconds."""

    device_auth_id: str
    user_code: str
    interval: float


def device(body: bytes) -> Device:
    """Decodes the answer to the start of a device sign-in. Raises ValueError if it cannot be used."""
    answer = decoding.decode(body, type=_UserCode)
    user_code = answer.user_code or answer.usercode
    if not user_code or not user_code.isprintable():
        raise ValueError("it contains no user code")
    try:
        # A string on the wire; earlier it was a number.
        interval = float(answer.interval or _DEFAULT_INTERVAL)
        if not math.isfinite(interval):
            interval = _DEFAULT_INTERVAL
    except ValueError:
        interval = _DEFAULT_INTERVAL
    # Bounded: below 1 second would flood the issuer, and a very long interval would miss the approval.
    return Device(answer.device_auth_id, user_code, min(max(interval, 1.0), 60.0))


class DeviceGrant(Struct, frozen=True):
    """The user has approved. Challenge and verifier are made by the issuer."""

    authorization_code: str
    code_verifier: str


class Pending(NamedTuple):
    """The user has not decided yet; ``slower`` asks for longer pauses."""

    slower: bool


def device_poll(status: int, body: bytes) -> DeviceGrant | Pending | Denied:
    """Interprets one poll's answer. Temporary faults (429, 5xx) count as pending until the code expires."""
    if status == 200:
        try:
            return decoding.decode(body, type=DeviceGrant)
        except msgspec.DecodeError as error:
            return Denied(f"the sign-in server's answer cannot be read: {reason_of(error)}")
    code = _error_of(body).code
    if code == "access_denied":
        return Denied("the request was denied")
    if code == "expired_token":
        return Denied("the code has expired")
    if status in (403, 404):
        return Pending(slower=code == "slow_down")
    if status == 429 or status >= 500 or code in ("slow_down", "authorization_pending"):
        return Pending(slower=code != "authorization_pending")
    return Denied(refusal(status, body).why)


# --- refusals


class Refusal(NamedTuple):
    """A refused token request. ``permanent``: the same refresh token will never work again."""

    permanent: bool
    why: str


class _Error(Struct, frozen=True):
    code: str | None = None
    message: str | None = None


class _ErrorBody(Struct, frozen=True):
    error: _Error | str | None = None
    error_description: str | None = None


def _error_of(body: bytes) -> _Error:
    try:
        said = decoding.decode(body, type=_ErrorBody)
    except msgspec.DecodeError:
        return _Error()
    error = _Error(code=said.error) if isinstance(said.error, str) else said.error or _Error()
    return _Error(error.code, error.message or said.error_description)


def refusal(status: int, body: bytes) -> Refusal:
    """Interprets an answer of the token endpoint other than 200. Permanent: every 401, and 400 with certain codes."""
    error = _error_of(body)
    permanent = status == 401 or (status == 400 and error.code in _PERMANENT)
    why = error.message or error.code or "no reason given"
    return Refusal(permanent, f"{why} (status {status}{f', {error.code}' if error.code else ''})")

"""OAuth, without I/O: the forms that go to the issuer, the claims in its tokens, the meaning of its refusals.

Wire facts: the official client's requests, captured; section A of the protocol notes.
"""

import base64
import binascii
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

REFRESH_MARGIN = 300.0
"""Seconds before its expiry at which an access token is renewed; the official client's figure."""

MAX_AGE = 8 * 86400.0
"""Seconds after which a token that does not say when it expires is renewed; the official client's figure."""

RefreshReason = Literal["proactive_expiry", "unauthorized_recovery"]

_PERMANENT = frozenset({"invalid_grant", "refresh_token_invalidated", "refresh_token_expired", "refresh_token_reused"})


class AuthClaim(Struct, frozen=True):
    chatgpt_account_id: str | None = None


class Claims(Struct, frozen=True, rename={"auth": "https://api.openai.com/auth"}):
    """The claims that codexd reads; the signature is the issuer's business and not checked."""

    exp: float | None = None
    auth: AuthClaim = AuthClaim()


def claims(token: str | None) -> Claims:
    """The claims of a JSON web token; empty ones for what is no such token."""
    parts = (token or "").split(".")
    if len(parts) != 3:
        return Claims()
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(payload, type=Claims)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return Claims()


class RefreshRequest(Struct, frozen=True):
    """The body of ``POST /oauth/token`` for a refresh: JSON, where the exchange of a code is form-encoded."""

    client_id: str
    grant_type: Literal["refresh_token"]
    refresh_reason: RefreshReason
    refresh_token: str


class TokenResponse(Struct, frozen=True):
    """The issuer's answer. A token that is missing keeps its old value; refresh tokens rotate and are single-use."""

    access_token: str | None = None
    refresh_token: str | None = None
    id_token: str | None = None
    expires_in: float | None = None


class Refusal(NamedTuple):
    """``permanent``: trying again with the same refresh token will never work."""

    permanent: bool
    why: str


class _Error(Struct, frozen=True):
    code: str | None = None
    message: str | None = None


class _ErrorBody(Struct, frozen=True):
    error: _Error | str | None = None
    error_description: str | None = None


def refusal(status: int, body: bytes) -> Refusal:
    """What an answer of the token endpoint that is no 200 means. Every 401 is permanent, and 400 with certain codes."""
    try:
        said = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = _ErrorBody()
    error = _Error(code=said.error) if isinstance(said.error, str) else said.error or _Error()
    permanent = status == 401 or (status == 400 and error.code in _PERMANENT)
    why = error.message or said.error_description or error.code or "no reason given"
    return Refusal(permanent, f"{why} (status {status}{f', {error.code}' if error.code else ''})")

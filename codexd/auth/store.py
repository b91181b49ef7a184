"""``tokens.json``: the credentials of one account, their formats and their file."""

import contextlib
import datetime
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from codexd.auth.oauth import MAX_AGE, Claims, TokenResponse, claims
from codexd.state import files

_MILLISECONDS = 1e11
"""A time above this is in milliseconds: as seconds it would be the year 5138."""


class StoreError(Exception):
    """``tokens.json`` is there but cannot be used. The message says what to do."""


class Credentials(Struct, frozen=True, kw_only=True):
    """Times are Unix seconds. ``extra`` keeps keys that codexd does not know, for whoever wrote them."""

    access_token: str
    refresh_token: str | None = None
    expires_at: float | None = None
    account_id: str | None = None
    updated_at: float | None = None
    id_token: str | None = None
    extra: dict[str, Any] = {}

    def __repr__(self) -> str:
        # Tokens must not reach a log by way of a traceback.
        return f"Credentials(account_id={self.account_id!r}, expires_at={self.expires_at!r})"

    def account(self) -> str | None:
        """The account id: as stored, else from the id token's claim, else from the access token's."""
        return (
            self.account_id
            or claims(self.id_token).auth.chatgpt_account_id
            or claims(self.access_token).auth.chatgpt_account_id
        )

    def email(self) -> str | None:
        known = claims(self.id_token), claims(self.access_token)
        return next((email for each in known for email in (each.email, each.profile.email) if email), None)

    def plan(self) -> str | None:
        """The account's plan, an open set of names."""
        return claims(self.id_token).auth.chatgpt_plan_type or claims(self.access_token).auth.chatgpt_plan_type

    def expiry(self) -> float | None:
        """When the access token ends: the earlier of what the file and the token itself say."""
        known = [moment for moment in (self.expires_at, claims(self.access_token).exp) if moment is not None]
        if known:
            return min(known)
        return None if self.updated_at is None else self.updated_at + MAX_AGE


class _Stored(Struct, kw_only=True):
    access_token: str
    refresh_token: str | None = None
    expires_at: float | None = None
    account_id: str | None = None
    updated_at: float | None = None
    id_token: str | None = None


_SENDABLE = re.compile(r"[\x21-\x7e]+")
"""What can stand in a header: a token pasted with a line end or an ellipsis cannot."""

Signature = tuple[int, int, int]
"""Tells whether the file was replaced: inode, size, time of change."""


def signature(path: Path) -> Signature | None:
    """None when there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def load(path: Path) -> Credentials | None:
    """The stored credentials; None when there are none. Raises StoreError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _from_own(data)
    except (msgspec.DecodeError, UnicodeDecodeError, StoreError) as error:
        raise StoreError(f"{path} is not a usable credentials file ({error})") from error


def _from_own(data: bytes) -> Credentials:
    """Raises StoreError without a path, and what msgspec raises when it is another format."""
    stored = msgspec.json.decode(data, type=_Stored)
    tree = msgspec.json.decode(data)
    if bad := unsendable(stored):
        raise StoreError(f"{bad} holds characters that cannot be sent")
    known = msgspec.structs.asdict(stored)
    extra = {key: value for key, value in tree.items() if key not in known}
    known["expires_at"] = _seconds(stored.expires_at)
    known["updated_at"] = _seconds(stored.updated_at)
    return Credentials(**known, extra=extra)


def unsendable(tokens: "_Stored | _AuthJsonTokens | TokenResponse") -> str | None:
    """The field that could not stand in a header."""
    for key in ("access_token", "refresh_token", "account_id"):
        if not _SENDABLE.fullmatch(getattr(tokens, key) or "x"):
            return key
    return None


class _AuthJsonTokens(Struct, kw_only=True):
    access_token: str
    refresh_token: str | None = None
    id_token: str | None = None
    account_id: str | None = None


class _AuthJson(Struct, kw_only=True):
    tokens: _AuthJsonTokens | None = None
    last_refresh: datetime.datetime | None = None


def from_bytes(data: bytes) -> Credentials:
    """A sign-in in our own format or in the official CLI's. Raises StoreError, its message without a path."""
    try:
        return _from_own(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return from_auth_json(data)


def from_auth_json(data: bytes) -> Credentials:
    """The login in an ``auth.json`` of the official CLI. Raises StoreError, its message without a path.

    Its keys: section A.7 of the protocol notes, and the samples beside them.
    """
    try:
        found = msgspec.json.decode(data, type=_AuthJson)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"it is not an auth.json of the Codex CLI ({error})") from error
    if found.tokens is None:
        raise StoreError("it holds no ChatGPT login (an API key alone is of no use here)")
    if bad := unsendable(found.tokens):
        raise StoreError(f"its {bad} holds characters that cannot be sent")
    tokens = found.tokens
    if claims(tokens.access_token) == Claims():
        raise StoreError("its access_token is no token that ChatGPT gave out")
    return Credentials(
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        id_token=tokens.id_token,
        account_id=tokens.account_id,
        expires_at=claims(tokens.access_token).exp,
        updated_at=None if found.last_refresh is None else found.last_refresh.timestamp(),
    )


def _seconds(moment: float | None) -> float | None:
    return moment / 1000 if moment is not None and moment > _MILLISECONDS else moment


def save(path: Path, credentials: Credentials) -> None:
    """Replace the file, durably; keep one aside that cannot be used. Raises OSError; then the old one is as it was."""
    try:
        load(path)
    except StoreError:
        # What a person or a disk has spoiled may still be mended by hand. Not at the price of the new ones.
        with contextlib.suppress(OSError):
            files.set_aside(path)
    tree = msgspec.structs.asdict(credentials)
    extra = tree.pop("extra")
    tree["expires_at"] = whole(credentials.expires_at)
    tree["updated_at"] = whole(credentials.updated_at)
    document = {key: value for key, value in tree.items() if value is not None or key in _REQUIRED} | extra
    files.write_durably(path, msgspec.json.format(msgspec.json.encode(document)) + b"\n")


_REQUIRED = ("access_token", "refresh_token", "expires_at", "account_id", "updated_at")


def whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)

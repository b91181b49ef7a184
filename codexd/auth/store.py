"""``tokens.json``: the credentials of one account, their formats and their file."""

import contextlib
import datetime
import re
from pathlib import Path

import msgspec
from msgspec import Struct

from codexd.auth.oauth import MAX_AGE, Claims, TokenResponse, claims, sane
from codexd.protocol import decoding
from codexd.protocol.raw import RawObject
from codexd.reasons import reason_of
from codexd.state import files

_MILLISECONDS = 1e11
"""A time above this is in milliseconds; as seconds it would be in the year 5138."""


class StoreError(Exception):
    """``tokens.json`` exists but cannot be used. The message says why."""


class Credentials(Struct, frozen=True, kw_only=True):
    """One account's credentials. Times are Unix seconds. ``extra`` keeps unknown keys for the program that set them."""

    access_token: str
    refresh_token: str | None = None
    expires_at: float | None = None
    account_id: str | None = None
    updated_at: float | None = None
    id_token: str | None = None
    extra: RawObject = {}

    def __repr__(self) -> str:
        # Tracebacks must not write tokens to a log.
        return f"Credentials(account_id={self.account_id!r}, expires_at={self.expires_at!r})"

    def account(self) -> str | None:
        """Returns the account id: the stored one, else the id token's claim, else the access token's."""
        return (
            self.account_id
            or claims(self.id_token).auth.chatgpt_account_id
            or claims(self.access_token).auth.chatgpt_account_id
        )

    def email(self) -> str | None:
        known = claims(self.id_token), claims(self.access_token)
        return next((email for each in known for email in (each.email, each.profile.email) if email), None)

    def plan(self) -> str | None:
        """Returns the account's plan; the set of names is open."""
        return claims(self.id_token).auth.chatgpt_plan_type or claims(self.access_token).auth.chatgpt_plan_type

    def residency(self) -> str | None:
        """Returns the region that a workspace's requests must stay in; None without one."""
        found = claims(self.access_token).auth.chatgpt_compute_residency
        return None if found == "no_constraint" else found

    def expiry(self) -> float | None:
        """Returns the expiry of the access token, in Unix seconds: the earlier one of file and token."""
        known = [moment for moment in (self.expires_at, sane(claims(self.access_token).exp)) if moment is not None]
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
"""Characters that a header can hold. A pasted line end or ellipsis does not match."""

Signature = tuple[int, int, int]
"""Inode, size and time of change; another value means that the file was replaced."""


def signature(path: Path) -> Signature | None:
    """Returns the file's signature; None when the file does not exist. Raises StoreError."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def load(path: Path) -> Credentials | None:
    """Returns the stored credentials; None when the file does not exist. Raises StoreError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _from_own(data)
    except (msgspec.DecodeError, StoreError) as error:
        raise StoreError(f"{path} is not a usable credentials file ({reason_of(error)})") from error


def _from_own(data: bytes) -> Credentials:
    """Decodes codexd's format. Raises StoreError without the path, or msgspec's errors for another format."""
    stored = decoding.decode(data, type=_Stored)
    tree = decoding.decode(data, type=RawObject)
    if bad := unsendable(stored):
        raise StoreError(f"{bad} contains characters that cannot be sent")
    known = msgspec.structs.asdict(stored)
    extra = {key: value for key, value in tree.items() if key not in known}
    known["expires_at"] = _seconds(stored.expires_at)
    known["updated_at"] = _seconds(stored.updated_at)
    return Credentials(**known, extra=extra)


def unsendable(tokens: "_Stored | _AuthJsonTokens | TokenResponse") -> str | None:
    """Returns the first field that a header cannot hold; None if all are valid."""
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
    """Decodes a sign-in in codexd's format or the official CLI's. Raises StoreError, without the path."""
    try:
        return _from_own(data)
    except msgspec.DecodeError:
        return from_auth_json(data)


def from_auth_json(data: bytes) -> Credentials:
    """Decodes the sign-in in an ``auth.json`` of the official CLI. Raises StoreError, without the path.

    Source of its keys: section A.7 of the protocol notes, and the samples beside them.
    """
    try:
        found = decoding.decode(data, type=_AuthJson)
    except msgspec.DecodeError as error:
        raise StoreError(f"it is not an auth.json of the Codex CLI ({reason_of(error)})") from error
    if found.tokens is None:
        raise StoreError("it contains no ChatGPT sign-in; an API key alone is not enough")
    if bad := unsendable(found.tokens):
        raise StoreError(f"its {bad} contains characters that cannot be sent")
    tokens = found.tokens
    if claims(tokens.access_token) == Claims():
        raise StoreError("its access_token was not issued by ChatGPT")
    return Credentials(
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        id_token=tokens.id_token,
        account_id=tokens.account_id,
        expires_at=sane(claims(tokens.access_token).exp),
        updated_at=None if found.last_refresh is None else found.last_refresh.timestamp(),
    )


def _seconds(moment: float | None) -> float | None:
    return sane(moment / 1000 if moment is not None and moment > _MILLISECONDS else moment)


def save(path: Path, credentials: Credentials) -> None:
    """Replaces the file durably; keeps a copy of an unusable one. Raises OSError; the old file is then unchanged."""
    try:
        load(path)
    except StoreError:
        # The user may be able to repair the unusable file. A failure to keep it must not prevent the save.
        with contextlib.suppress(OSError):
            files.set_aside(path)
    tree = msgspec.structs.asdict(credentials)
    extra = tree.pop("extra")
    tree["expires_at"] = whole(credentials.expires_at)
    tree["updated_at"] = whole(credentials.updated_at)
    document = {key: value for key, value in tree.items() if value is not None or key in _REQUIRED} | extra
    files.write_durably(path, _formatted(msgspec.json.encode(document)) + b"\n")


def _formatted(data: bytes) -> bytes:
    try:
        return msgspec.json.format(data)
    except RecursionError:
        return data  # another program's keys, nested more deeply than can be formatted


_REQUIRED = ("access_token", "refresh_token", "expires_at", "account_id", "updated_at")


def whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)

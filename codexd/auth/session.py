"""The sign-in and its refresh: a valid access token for all requests, with at most one refresh in progress.

    state        | left by                                                             | to
    -------------|---------------------------------------------------------------------|------------
    signed out   | a new or changed file, ``sign_in``                                  | signed in
    any          | the file cannot be used                                             | ended
    signed in    | 5 minutes left (``REFRESH_MARGIN``), a 401 of the backend, a user   | refreshing
    refreshing   | the issuer's answer, saved or not; another process's new tokens     | signed in
    refreshing   | a temporary failure: old token still used while valid               | backing off
    refreshing   | a permanent refusal                                                 | ended
    backing off  | the pause is over (2 s to 5 min), a user's refresh, a changed file  | refreshing
    ended        | a changed file, ``sign_in``                                         | signed in
    any          | the file is gone, ``sign_out``                                      | signed out

Refresh tokens are single-use, so a refresh is a transaction: under a lock in this process and a file lock against other
processes, read the file again, POST, save durably. It is shielded from cancellation by the client that started it, and
has a deadline inside. Tokens that could not be saved stay in use (``unsaved``), and saving is tried again.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
import trio

from codexd import errors
from codexd.auth import store
from codexd.auth.issuer import Issuer, IssuerUnreachable
from codexd.auth.oauth import REFRESH_MARGIN, RefreshReason, TokenResponse, claims, refusal, sane
from codexd.auth.store import Credentials, StoreError
from codexd.errors import ApiError
from codexd.protocol import decoding
from codexd.reasons import reason_of
from codexd.state import files
from codexd.state.lock import try_lock

REFRESH_DEADLINE = 30.0
"""Seconds for lock, POST and save together. It bounds the only shield in the request path."""

_BACKOFF = (2.0, 5.0, 15.0, 60.0, 300.0)
_KEEP_INTERVAL = 60.0
_JUST_REFRESHED = 60.0
"""Seconds. A younger token that the backend refuses is not refreshed, because a new one would be refused too."""


log = structlog.get_logger()


class Access(NamedTuple):
    """Credentials for a request to the backend."""

    token: str
    account_id: str | None
    residency: str | None = None

    def __repr__(self) -> str:
        return f"Access(account_id={self.account_id!r})"


class _Fault(NamedTuple):
    """Why the sign-in cannot be used. ``ended``: there was one before."""

    why: str
    ended: bool = True


_NEVER = _Fault("Not signed in", ended=False)
_EXPIRED = "The access token has expired and there is no refresh token"


class _Transient(Exception):
    """The refresh failed and may be tried again."""


class SignIn(NamedTuple):
    """The sign-in as shown to the user. Times are whole Unix seconds.

    ``why`` is the reason if not signed in. ``ended``: there was a sign-in, but it cannot be used any more.
    """

    signed_in: bool
    why: str | None
    email: str | None = None
    plan: str | None = None
    account_id: str | None = None
    expires_at: int | None = None
    refreshed_at: int | None = None
    refresh_failed: str | None = None
    unsaved: bool = False
    ended: bool = False


class Session:
    """The credentials in use. ``clock`` gives Unix seconds; ``on_change`` is called after a sign-in or sign-out."""

    def __init__(
        self,
        path: Path,
        *,
        issuer: Issuer,
        clock: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._issuer = issuer
        self._clock = clock
        self._on_change = on_change
        self._lock = trio.Lock()
        self._credentials: Credentials | None = None
        self._signature: store.Signature | None = None
        self._fault: _Fault | None = _NEVER
        self._unsaved = False
        self._failures = 0
        self._failed: str | None = None
        self._retry_at = -float("inf")
        self._refreshed_at = -float("inf")
        self._beyond_clock: str | None = None
        self.refreshes = 0
        self.refresh_failures = 0

    @property
    def signed_in(self) -> bool:
        """Whether the credentials are valid or can be renewed."""
        self._reread()
        credentials = self._credentials
        if credentials is None or self._fault is not None:
            return False
        return credentials.refresh_token is not None or self._seconds_left(credentials) > 0

    @property
    def access_token(self) -> str | None:
        """The access token as it is now, valid or not; None if signed out."""
        return self._credentials.access_token if self.signed_in and self._credentials is not None else None

    @property
    def has_credentials(self) -> bool:
        """Whether a new sign-in would replace credentials, usable or not."""
        return self._credentials is not None or self._path.exists()

    @property
    def fresh(self) -> bool:
        """Whether the token can be used without waiting for the issuer."""
        return (
            self.signed_in and self._credentials is not None and self._seconds_left(self._credentials) > REFRESH_MARGIN
        )

    @property
    def ready(self) -> bool:
        """Whether a request would get a token now."""
        if not self.signed_in or self._credentials is None:
            return False
        return self._seconds_left(self._credentials) > 0 or trio.current_time() >= self._retry_at

    async def token(self) -> Access:
        """Returns the access token, refreshed first if it is about to expire. Raises ApiError 401 or 503."""
        self._reread()
        credentials = self._require()
        if self._seconds_left(credentials) > REFRESH_MARGIN:
            return _access(credentials)
        return await self._renew("proactive_expiry", credentials.access_token)

    async def replace(self, rejected: str) -> Access | None:
        """Returns another token than the one that the backend refused; None if no other one can be obtained.

        Raises ApiError 401 when the sign-in has ended and 503 when the issuer cannot be reached.
        """
        self._reread()
        credentials = self._require()
        if credentials.access_token != rejected:
            return _access(credentials)
        if credentials.refresh_token is None or trio.current_time() - self._refreshed_at < _JUST_REFRESHED:
            return None
        return await self._renew("unauthorized_recovery", rejected)

    async def refresh(self) -> None:
        """Refreshes the token at a user's request. Raises ApiError 401 or 409, or 503 for a temporary failure."""
        self._reread()
        credentials = self._require()
        if credentials.refresh_token is None:
            raise errors.no_refresh_token()
        self._retry_at = -float("inf")
        await self._renew("scheduled", credentials.access_token)

    async def sign_in(self, answer: TokenResponse | Credentials) -> None:
        """Takes over credentials, from the issuer's answer or complete.

        They are used at once. A failed save is tried again; until then ``describe`` reports ``unsaved``.
        """
        credentials = answer if isinstance(answer, Credentials) else self._from_answer(answer)
        async with self._lock:
            self._reread()
            saved = False
            with trio.move_on_after(REFRESH_DEADLINE) as scope:
                scope.shield = True
                async with self._file_lock():
                    self._sign_in(credentials)
                    saved = True
            if not saved:
                # Another process holds the lock for longer than a refresh can take.
                self._sign_in(credentials)

    def _sign_in(self, credentials: Credentials) -> None:
        self._credentials, self._fault, self._failed = credentials, None, None
        self._failures, self._retry_at, self._refreshed_at = 0, -float("inf"), trio.current_time()
        self._save(credentials)
        log.info("signed in", account_id=credentials.account(), expires_at=credentials.expiry())
        self._on_change()

    async def sign_out(self) -> str | None:
        """Revokes the token at the issuer and deletes the file, even if that fails; returns why it failed, or None.

        Raises ApiError 401 when not signed in, and 500 when the file cannot be deleted.
        """
        async with self._lock:
            self._reread()
            credentials = self._credentials
            if credentials is None and not self._path.exists():
                raise errors.signed_out(_NEVER.why)
            why: str | None = "there is no readable refresh token"
            # Shielded: a sign-out that has begun is completed even if the client leaves. _revoke has a deadline.
            with trio.CancelScope(shield=True):
                if credentials is not None and credentials.refresh_token is not None:
                    why = await self._revoke(credentials.refresh_token)
            try:
                files.delete(self._path)
            except OSError as error:
                raise errors.cannot_delete(str(self._path), error.strerror or str(error)) from error
            self._unsaved = False
            self._adopt(None, None, _NEVER)
            log.info("signed out", revoked=why is None, reason=why)
        return why

    async def _revoke(self, token: str) -> str | None:
        try:
            with trio.fail_after(REFRESH_DEADLINE):
                answer = await self._issuer.revoke(token)
        except (IssuerUnreachable, trio.TooSlowError) as error:
            return str(error) or "the sign-in server did not answer in time"
        return None if answer.status < 300 else refusal(answer.status, answer.body).why

    def describe(self) -> SignIn:
        """Returns the sign-in as it is now."""
        signed_in = self.signed_in
        credentials = self._credentials
        if credentials is None:
            fault = self._fault or _NEVER
            return SignIn(False, fault.why, ended=fault.ended)
        return SignIn(
            signed_in,
            self._fault.why if self._fault else None if signed_in else _EXPIRED,
            credentials.email(),
            credentials.plan(),
            credentials.account(),
            store.whole(credentials.expiry()),
            store.whole(credentials.updated_at),
            self._failed,
            self._unsaved,
            not signed_in,
        )

    async def run(self) -> None:
        """Refreshes the token before it expires, so that requests need not wait. Runs until cancelled."""
        while True:
            try:
                if self.signed_in:
                    await self.token()
            except ApiError as error:
                log.debug("token keeper", error=error.error.message)
            if self._unsaved and self._credentials is not None:
                self._save(self._credentials)
            await trio.sleep(_KEEP_INTERVAL)

    # --- the file

    def _reread(self) -> None:
        try:
            signature = store.signature(self._path)
            if signature is None and self._credentials is not None and not self._unsaved:
                self._adopt(None, None, _NEVER)
                log.warning("signed out: the credentials file is gone", path=str(self._path))
            elif signature is not None and signature != self._signature:
                credentials = store.load(self._path)
                self._adopt(credentials, signature, None if credentials else _NEVER)
                log.info("credentials loaded", account_id=credentials and credentials.account())
        except StoreError as error:
            if self._unsaved:
                return  # this process holds the newest tokens, and the only copy
            fault = _Fault(str(error))
            if self._fault != fault:
                log.error("credentials cannot be used", reason=reason_of(error))
            self._adopt(None, None, fault)

    def _adopt(self, credentials: Credentials | None, signature: store.Signature | None, fault: _Fault | None) -> None:
        changed = (credentials, fault) != (self._credentials, self._fault)
        self._credentials, self._signature, self._fault = credentials, signature, fault
        self._unsaved = False
        self._failures, self._failed, self._retry_at = 0, None, -float("inf")
        if changed:
            self._on_change()

    def _require(self) -> Credentials:
        if self._credentials is None or self._fault is not None:
            raise errors.signed_out((self._fault or _NEVER).why)
        return self._credentials

    def _seconds_left(self, credentials: Credentials) -> float:
        expiry = credentials.expiry()
        if expiry is None or credentials.access_token == self._beyond_clock:
            return float("inf")
        return expiry - self._clock()

    # --- the refresh

    async def _renew(self, reason: RefreshReason, stale: str) -> Access:
        async with self._lock:
            self._reread()
            credentials = self._require()
            if credentials.access_token == stale:
                if credentials.refresh_token is None:
                    return self._without_refresh(credentials)
                await self._try_refresh(reason, credentials)
                credentials = self._require()
            if credentials.access_token != stale or (
                reason == "proactive_expiry" and self._seconds_left(credentials) > 0
            ):
                return _access(credentials)
            raise errors.issuer_unavailable(
                self._failed or "the sign-in server did not answer",
                max(1, round(self._retry_at - trio.current_time())),
                valid=reason == "scheduled" and self._seconds_left(credentials) > 0,
            )

    def _without_refresh(self, credentials: Credentials) -> Access:
        if self._seconds_left(credentials) > 0:
            return _access(credentials)
        raise errors.signed_out(_EXPIRED)

    async def _try_refresh(self, reason: RefreshReason, credentials: Credentials) -> None:
        """Tries a refresh once, unless the last failure was too recent. A failure leaves everything unchanged."""
        if trio.current_time() < self._retry_at:
            return
        try:
            with trio.fail_after(REFRESH_DEADLINE) as scope:
                scope.shield = True
                await self._rotate(reason, credentials)
        except (_Transient, trio.TooSlowError) as error:
            pause = _BACKOFF[min(self._failures, len(_BACKOFF) - 1)]
            self._failures += 1
            self.refresh_failures += 1
            self._failed = str(error) or "the sign-in server did not answer in time"
            self._retry_at = trio.current_time() + pause
            log.warning("token refresh failed", reason=self._failed, next_try_seconds=pause)

    async def _rotate(self, reason: RefreshReason, credentials: Credentials) -> None:
        async with self._file_lock() as locked:
            if not locked:
                # Without the lock nothing can be saved, and an unsaved refresh would lose the account.
                raise _Transient(f"{self._path.parent} cannot be written: make it writable")
            self._reread()
            if self._require() != credentials:
                return  # another process was faster; use its tokens
            renewed = await self._post(reason, credentials)
            self._credentials = renewed
            self._failures, self._failed, self._refreshed_at = 0, None, trio.current_time()
            self.refreshes += 1
            self._save(renewed)
            log.info("token refreshed", reason=reason, expires_at=renewed.expires_at)
            if self._seconds_left(renewed) <= REFRESH_MARGIN:
                # Every request would refresh it again. Use it until the backend refuses it with a 401.
                self._beyond_clock = renewed.access_token
                log.warning("the new token is already expired according to this machine's clock; check the time")

    @asynccontextmanager
    async def _file_lock(self) -> AsyncIterator[bool]:
        """Holds the lock against other processes; yields False when the directory is not writable."""
        try:
            # flock has no event to wait for.
            while (descriptor := try_lock(self._path)) is None:  # noqa: ASYNC110
                await trio.sleep(0.05)
        except OSError as error:
            log.error("the state directory cannot be written", reason=reason_of(error))
            yield False
            return
        try:
            yield True
        finally:
            os.close(descriptor)

    def _save(self, credentials: Credentials) -> None:
        # In this task, not in a thread: it takes milliseconds every few days, and no cancellation can come between the
        # issuer's answer and the file.
        try:
            store.save(self._path, credentials)
        except OSError as error:
            # The old refresh token is used up: continue with the new one in memory, and try again to save it.
            self._unsaved = True
            log.error(
                "tokens could not be written to disk; do not stop codexd until this is fixed", reason=reason_of(error)
            )
        else:
            self._unsaved = False
            self._signature = store.signature(self._path)

    async def _post(self, reason: RefreshReason, credentials: Credentials) -> Credentials:
        try:
            response = await self._issuer.refresh(reason, credentials.refresh_token or "")
        except IssuerUnreachable as error:
            raise _Transient(str(error)) from error
        if response.status != 200:
            refused = refusal(response.status, response.body)
            if refused.permanent:
                self._fault = _Fault(f"The ChatGPT sign-in has ended ({refused.why})")
                log.error("signed out: the refresh token was refused; run `codexctl login`", reason=refused.why)
                self._on_change()
                raise errors.signed_out(self._fault.why)
            raise _Transient(refused.why)
        try:
            answer = decoding.decode(response.body, type=TokenResponse)
        except msgspec.DecodeError as error:
            raise _Transient(f"the sign-in server's answer cannot be read: {reason_of(error)}") from error
        if answer.access_token is None and answer.refresh_token is None:
            raise _Transient("the sign-in server's answer contains no token")
        return self._merged(credentials, answer)

    def _from_answer(self, answer: TokenResponse) -> Credentials:
        fresh = self._merged(Credentials(access_token=answer.access_token or ""), answer)
        # The answer's account id first, then the tokens' claims.
        return msgspec.structs.replace(fresh, account_id=answer.account_id or fresh.account())

    def _merged(self, old: Credentials, answer: TokenResponse) -> Credentials:
        now = self._clock()
        access_token = answer.access_token or old.access_token
        expires_at = sane(claims(access_token).exp)
        if expires_at is None and answer.expires_in is not None:
            expires_at = sane(now + answer.expires_in)
        return msgspec.structs.replace(
            old,
            access_token=access_token,
            refresh_token=answer.refresh_token or old.refresh_token,
            id_token=answer.id_token or old.id_token,
            expires_at=expires_at,
            updated_at=now,
        )


def _access(credentials: Credentials) -> Access:
    return Access(credentials.access_token, credentials.account(), credentials.residency())

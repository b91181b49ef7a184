"""Sign-in over HTTP, for programs on this machine."""

from typing import Literal

import msgspec

from codexd import errors
from codexd.api.access import name_in
from codexd.api.exchange import Document, Exchange, decode, json
from codexd.api.routing import Route
from codexd.auth.login import Attempt, Logins
from codexd.auth.session import Session
from codexd.config.addresses import is_loopback
from codexd.errors import DEVICE_CODES_OFF_HINT
from codexd.protocol import decoding


class _LoginRequest(msgspec.Struct):
    method: Literal["device", "browser"] = "device"


class _LoginState(msgspec.Struct, omit_defaults=True):
    """``state``: ``none``, ``pending``, ``succeeded`` or ``failed``. ``expires_at`` is in Unix seconds."""

    state: str
    signed_in: bool
    method: str | None = None
    authorization_url: str | None = None
    verification_url: str | None = None
    user_code: str | None = None
    expires_at: int | None = None
    email: str | None = None
    message: str | None = None
    instructions: str | None = None


_LOGIN = decoding.Decoder(_LoginRequest)


class LoginEndpoints:
    def __init__(self, session: Session, logins: Logins) -> None:
        self._session = session
        self._logins = logins

    def routes(self) -> list[Route]:
        return [Route("POST", "/auth/login", self.login, api=False), Route("GET", "/auth/login", self.state, api=False)]

    async def login(self, exchange: Exchange) -> Document:
        """Starts a sign-in, or joins the one in progress; the answer says what the user has to do."""
        _refuse_from_afar(exchange)
        body = await exchange.body()
        asked = decode(_LOGIN, body) if body else _LoginRequest()
        attempt, _ = await self._logins.start(asked.method)
        return json(self._state_of(attempt))

    async def state(self, exchange: Exchange) -> Document:
        """Returns the state of the sign-in in progress, or of the last one."""
        _refuse_from_afar(exchange)
        attempt = self._logins.current
        if attempt is None:
            return json(_LoginState("none", self._session.signed_in))
        return json(self._state_of(attempt))

    def _state_of(self, attempt: Attempt) -> _LoginState:
        signed_in = self._session.signed_in
        if attempt.signed_in is not None:
            return _LoginState("succeeded", signed_in, attempt.method, email=attempt.signed_in.email)
        if attempt.error is not None:
            return _LoginState("failed", signed_in, attempt.method, message=attempt.error.error.message)
        state = _LoginState("pending", signed_in, attempt.method)
        if not attempt.ready.is_set():
            return state
        state.expires_at = int(attempt.expires_at)
        if attempt.user_code is None:
            state.authorization_url = attempt.url
            state.instructions = "Open the address in a browser on the machine where codexd runs, and sign in."
        else:
            state.verification_url, state.user_code = attempt.url, attempt.user_code
            state.instructions = f"Open the address, and enter the code. {DEVICE_CODES_OFF_HINT}"
        return state


def _refuse_from_afar(exchange: Exchange) -> None:
    """Raises ApiError 403 unless the request is local: a sign-in decides which account all clients use."""
    host = (exchange.client or ("127.0.0.1",))[0]
    # Checked with a key too, and over a unix socket, where a proxy may forward remote requests. A Host that is not
    # loopback may be DNS rebinding, and web pages of any origin are refused.
    foreign = [name for name in ("forwarded", "x-forwarded-for", "x-real-ip", "origin") if name in exchange.headers]
    site = exchange.headers.get("sec-fetch-site", "none")
    if foreign or site != "none" or not is_loopback(host) or not is_loopback(name_in(exchange.headers.get("host", ""))):
        raise errors.not_local()

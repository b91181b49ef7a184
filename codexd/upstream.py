"""The Codex backend over httpx: its headers, its cookies, its refusals. Foreign exceptions end here."""

import math
import platform
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple

import httpx
import structlog

from codexd import __version__, errors
from codexd.auth.session import Access, Session
from codexd.config import Backend
from codexd.protocol import failure

MAX_ERROR_BODY = 256 * 1024
"""Bytes of an error's body that are read; the rest of it is of no use to anyone."""

CONNECT_TIMEOUT = 15.0

USER_AGENT = f"codexd/{__version__} ({platform.system()} {platform.release()}; {platform.machine()})"

log = structlog.get_logger()


class Call(NamedTuple):
    """One request to ``/codex/responses``. ``key`` is the prompt cache key; headers repeat it as the thread's id."""

    body: bytes
    key: str
    lite: bool


class _CloudflareOnly(DefaultCookiePolicy):
    """Keeps the cookies of the edge, which knows its visitors by them, and no others: those would be an identity."""

    def set_ok(self, cookie: Cookie, request: Any) -> bool:
        name = cookie.name
        wanted = name in ("__cf_bm", "_cfuvid", "cf_clearance", "__cflb", "__cfruid") or name.startswith("cf_chl_")
        return wanted and super().set_ok(cookie, request)


def make_client(*, trust_env: bool = True) -> httpx.AsyncClient:
    """The one HTTP client of the process, for backend and issuer. ``trust_env`` honours the environment's proxies.

    HTTP/1.1: over one HTTP/2 connection only 100 streams run, and the rest wait without an error. The pool is unbounded
    because one stream is one connection. Reads have no deadline of their own: ``relay`` and ``session`` set those.
    """
    client = httpx.AsyncClient(
        cookies=CookieJar(_CloudflareOnly()),
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=90),
        follow_redirects=False,
        trust_env=trust_env,
    )
    # The official client asks for no compression; a compressed event stream arrives in lumps.
    del client.headers["accept-encoding"]
    client.headers["user-agent"] = USER_AGENT
    return client


class Upstream:
    """The backend, as one account sees it. ``clock`` gives Unix seconds."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        session: Session,
        config: Backend,
        *,
        on_models_etag: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._session = session
        self._base = config.url.rstrip("/")
        self._url = httpx.URL(f"{self._base}/codex/responses")
        self._config = config
        self._on_models_etag = on_models_etag
        self._clock = clock

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[httpx.Response]:
        """The backend's event stream, its status checked; closed on leaving. A 401 is mended once on the way.

        Raises ApiError, also for faults while the caller reads.
        """
        try:
            access = await self._session.token()
            response = await self._send(call, access)
            if response.status_code == 401:
                body = await self._read_error(response)
                access_again = await self._session.replace(access.token)
                if access_again is None:
                    raise failure.from_http(401, response.headers, body, self._clock())
                log.info("the backend refused the access token; trying once with a new one")
                response = await self._send(call, access_again)
            if response.status_code != 200:
                body = await self._read_error(response)
                error = failure.from_http(response.status_code, response.headers, body, self._clock())
                error.headers += limit_headers(response.headers, self._clock())
                raise error
            if etag := response.headers.get("x-models-etag"):
                self._on_models_etag(etag)
            try:
                yield response
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise _foreign(error) from error

    async def models(self, etag: str | None) -> httpx.Response:
        """``GET /codex/models``. Raises ApiError when the backend cannot be reached or nobody is signed in."""
        access = await self._session.token()
        headers = self._identity(access) | {"accept": "*/*"}
        if etag is not None:
            headers["if-none-match"] = etag
        try:
            return await self._client.get(
                f"{self._base}/codex/models", params={"client_version": self._config.client_version}, headers=headers,
                timeout=30,
            )  # fmt: skip
        except httpx.HTTPError as error:
            raise _foreign(error) from error

    async def _send(self, call: Call, access: Access) -> httpx.Response:
        # session_id, conversation_id and OpenAI-Beta are what earlier clients sent, the others what today's sends.
        headers = self._identity(access) | {
            "accept": "text/event-stream",
            "content-type": "application/json",
            "openai-beta": "responses=experimental",
            "session_id": call.key,
            "conversation_id": call.key,
            "session-id": call.key,
            "thread-id": call.key,
            "x-client-request-id": call.key,
        }
        if call.lite:
            headers["x-openai-internal-codex-responses-lite"] = "true"
        request = self._client.build_request("POST", self._url, content=call.body, headers=headers)
        return await self._client.send(request, stream=True)

    def _identity(self, access: Access) -> dict[str, str]:
        headers = {
            "version": self._config.client_version,
            "authorization": f"Bearer {access.token}",
            "originator": self._config.originator,
        }
        if access.account_id is not None:
            headers["chatgpt-account-id"] = access.account_id
        return headers

    @staticmethod
    async def _read_error(response: httpx.Response) -> bytes:
        body = b""
        try:
            async for data in response.aiter_bytes():
                body += data
                if len(body) > MAX_ERROR_BODY:
                    break
        finally:
            await response.aclose()
        return body


def _foreign(error: Exception) -> errors.ApiError:
    if isinstance(error, httpx.ConnectTimeout):
        return errors.upstream_unreachable(f"no connection within {CONNECT_TIMEOUT:g} seconds")
    if isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol | httpx.InvalidURL):
        return errors.upstream_unreachable(str(error) or type(error).__name__)
    if isinstance(error, httpx.LocalProtocolError):
        # Its text quotes the header that could not be sent, and that may be the authorization.
        return errors.upstream_unreachable("the request cannot be sent: a header holds what HTTP does not allow")
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError | httpx.CloseError):
        return errors.stream_ended()
    return errors.upstream_unreachable(str(error) or type(error).__name__)


_WINDOWS = ("primary", "secondary")


def limit_headers(headers: Mapping[str, str], now: float) -> list[tuple[str, str]]:
    """The backend's limit headers for the client, and the fullest window in the ``x-ratelimit-*`` words of OpenAI.

    The backend gives percentages, so the limit is 100 and what remains is the rest of it.
    """
    passed = [
        (name, value)
        for name, value in headers.items()
        if name.startswith("x-codex-") and value.isascii() and value.isprintable()
    ]
    passed = [(name, value) for name, value in passed if name != "x-codex-turn-state"]
    fullest: tuple[float, str] | None = None
    for window in _WINDOWS:
        used = _number(headers.get(f"x-codex-{window}-used-percent"))
        if used is not None and (fullest is None or used > fullest[0]):
            fullest = (used, window)
    if fullest is not None:
        used, window = fullest
        passed += [
            ("x-ratelimit-limit-requests", "100"),
            ("x-ratelimit-remaining-requests", str(max(0, int(100 - used)))),
        ]
        reset_at = _number(headers.get(f"x-codex-{window}-reset-at"))
        reset_after = _number(headers.get(f"x-codex-{window}-reset-after-seconds"))
        seconds = reset_at - now if reset_at is not None else reset_after
        if seconds is not None:
            passed.append(("x-ratelimit-reset-requests", f"{max(0, round(seconds))}s"))
    return passed


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None

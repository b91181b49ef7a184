"""Client of the Codex backend: headers, cookies, errors. Exceptions of httpx stop here and become ApiError."""

import email.utils
import math
import os
import platform
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple, cast

import httpx
import msgspec
import structlog
import trio

from codexd import __version__, errors
from codexd.auth.session import Access, Session
from codexd.config.model import Backend
from codexd.protocol import sse, zstd
from codexd.protocol.codex import failures as failure
from codexd.protocol.codex import rate_limits as limits
from codexd.protocol.codex.rate_limits import Limits
from codexd.system import certificates
from codexd.telemetry.trace import Timings
from codexd.upstream import proxies
from codexd.upstream.transport import ResponseBody, Transport, origin_of, target_of
from codexd.upstream.tunnel import CannotConnect

MAX_ERROR_BODY = 256 * 1024
"""Bytes of an error's body to read at most."""

PAGE_TIMEOUT = 30.0
"""Seconds for requests that are not streams: the catalogue, the usage page."""

WARM_SECONDS = 3600.0
"""Seconds after the last request during which a connection is kept open; later, a closed one is not replaced."""

WARM_INTERVAL = 5.0
"""Seconds between checks of that connection; grows to a minute while connecting fails."""

COOKIE_SECONDS = 30.0
"""Seconds for which the cookie header is reused. The cookies live for half an hour or longer."""

USER_AGENT = f"codexd/{__version__} ({platform.system()} {platform.release()}; {platform.machine()})"

log = structlog.get_logger()


class Call(NamedTuple):
    """One request to ``/codex/responses``. ``key``: prompt cache key and thread id. ``timings``: filled in later."""

    body: bytes
    key: str
    lite: bool
    timings: Timings


class _AccountEntry(msgspec.Struct):
    id: str | None = None


class _Accounts(msgspec.Struct):
    accounts: list[_AccountEntry] = []


class _CloudflareOnly(DefaultCookiePolicy):
    """Keeps the cookies that Cloudflare requires, and no others, because those could identify the user."""

    def set_ok(self, cookie: Cookie, request: Any) -> bool:
        name = cookie.name
        wanted = name in ("__cf_bm", "_cfuvid", "cf_clearance", "__cflb", "__cfruid") or name.startswith("cf_chl_")
        return wanted and super().set_ok(cookie, request)


def make_transport(ca_file: str | None, *, trust_env: bool = True) -> Transport:
    """Returns the transport to backend and issuer. ``trust_env``: use the environment's proxies and certificates."""
    environ = os.environ if trust_env else {}
    return Transport(trusting(ca_file, trust_env=trust_env), partial(proxies.route, environ))


def trusting(ca_file: str | None, *, trust_env: bool = True) -> Callable[[], ssl.SSLContext]:
    """Returns a function that makes the TLS context; it raises CannotTrust."""
    return lambda: certificates.context(certificates.store(os.environ if trust_env else {}, ca_file))


HttpClient = httpx.AsyncClient


def make_client(transport: httpx.AsyncBaseTransport) -> HttpClient:
    """Returns the process's HTTP client, for requests that are not streams: issuer, catalogue, usage page."""
    client = httpx.AsyncClient(
        transport=transport,
        cookies=CookieJar(_CloudflareOnly()),
        timeout=None,  # noqa: S113 - callers set deadlines, and the transport one for connecting
        follow_redirects=False,
        trust_env=False,
    )
    # The official client requests no compression, which would also delay events.
    del client.headers["accept-encoding"]
    client.headers["user-agent"] = USER_AGENT
    return client


class _PlainResponse(NamedTuple):
    """An uncompressed response, without the cost of an httpx.Response."""

    headers: Mapping[str, str]
    stream: ResponseBody
    status_code: int = 200

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        return aiter(self.stream)

    async def aclose(self) -> None:
        await self.stream.aclose()


class EventStream:
    """A response with status 200, as events."""

    __slots__ = ("_decoder", "_push", "headers")

    def __init__(self, response: httpx.Response | _PlainResponse) -> None:
        self.headers: Mapping[str, str] = response.headers
        self._decoder = sse.EventDecoder()
        if isinstance(response, _PlainResponse):
            self._push = response.stream.push
        else:
            self._push = partial(_push, _chunks(response))

    async def push(self, step: Callable[[Sequence[bytes]], bool]) -> bool:
        """Calls ``step`` as the relay's ``UpstreamSource`` says. Raises ApiError for an event that is too large."""
        feed = self._decoder.feed
        try:
            return await self._push(lambda data: step(feed(data)))
        except sse.EventTooLarge as error:
            raise errors.stream_ended() from error


def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    """Returns the body piece by piece, decompressed if a proxy has compressed it."""
    match response.headers.get("content-encoding", "").strip().lower():
        case "":
            return aiter(cast("httpx.AsyncByteStream", response.stream))
        case "zstd":
            return _Unzstd(response.aiter_raw())
        case _:
            return response.aiter_bytes()


async def _push(chunks: AsyncIterator[bytes], step: Callable[[bytes], bool]) -> bool:
    async for data in chunks:
        if not step(data):
            return False
    return True


class Upstream:
    """The backend for one account. ``clock`` gives Unix seconds.

    If ``transport`` is given, answers are requested from it directly: the client's other work (merging headers,
    redirects, authentication, a cookie jar for each response) costs more than the rest of a request.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        session: Session,
        config: Backend,
        *,
        on_models_etag: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float],
        transport: Transport | None = None,
    ) -> None:
        self._client = client
        self._transport = transport
        self._session = session
        self._set(config)
        self._on_models_etag = on_models_etag
        self._clock = clock
        self._seen: tuple[Mapping[str, str], float] | None = None
        self._cookie: tuple[float, bytes] = (-1.0, b"")
        self._limits: Limits | None = None
        self._used_at = -math.inf

    def configure(self, config: Backend) -> None:
        """Applies a new configuration, and reads the certificates again, because their files may have changed."""
        self._set(config)
        if self._transport is not None:
            self._transport.configure(trusting(config.ca_file))

    def _set(self, config: Backend) -> None:
        base = config.url.rstrip("/")
        self._url = httpx.URL(f"{base}/codex/responses")
        self._target = target_of(self._url)
        self._base, self._config = base, config

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[EventStream]:
        """Opens the backend's event stream with status 200, and closes it on exit. Retries a 401 once with a new token.

        Raises ApiError, also for failures while the caller reads.
        """
        timings = call.timings
        self._used_at = now = trio.current_time()
        timings.asked = timings.asked or now
        try:
            access = await self._session.token()
            timings.token = trio.current_time()
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
                error.headers += limits.client_headers(response.headers, self._clock())
                self._seen = response.headers, self._clock()
                raise error
            del call
            self._seen = response.headers, self._clock()
            if etag := response.headers.get("x-models-etag"):
                self._on_models_etag(etag)
            try:
                yield EventStream(response)
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise _foreign(error) from error

    async def keep_warm(self) -> None:
        """Keeps a connection open, so that requests need not wait for name, proxy and TLS. Runs until cancelled."""
        if self._transport is None:
            return
        self._used_at, pause = trio.current_time(), WARM_INTERVAL
        while True:
            self._transport.sweep()
            try:
                if trio.current_time() < self._used_at + WARM_SECONDS and self._session.signed_in:
                    await self._transport.warm(self._target.origin)
                pause = WARM_INTERVAL
            except httpx.HTTPError as error:
                pause = min(pause * 2, 60.0)
                log.debug("no connection to the backend can be kept ready", reason=str(error))
            await trio.sleep(pause)

    async def models(self, etag: str | None) -> httpx.Response:
        """Sends ``GET /codex/models``. Raises ApiError if signed out or the backend is unreachable."""
        access = await self._session.token()
        headers = self._identity(access) | {"accept": "*/*"}
        if etag is not None:
            headers["if-none-match"] = etag
        return await self._page(f"{self._base}/codex/models?client_version={self._config.client_version}", headers)

    async def usage(self) -> Limits:
        """Returns ``GET /wham/usage``, decoded. Raises ApiError."""
        document = await self.usage_document()
        try:
            self._limits = limits.from_usage(document, self._clock())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.upstream_unreachable(f"its usage answer cannot be read ({error})") from error
        return self._limits

    async def usage_document(self) -> bytes:
        """Returns the body of ``GET /wham/usage``. Raises ApiError."""
        return (await self._get("/wham/usage")).content

    def limits(self) -> Limits | None:
        """Returns the newest known limits, from the usage endpoint or the last answer's headers, without a request."""
        if self._seen is not None:
            headers, moment = self._seen
            self._seen = None
            self._limits = limits.from_headers(headers, moment) or self._limits
        return self._limits

    async def account_check(self) -> bool:
        """Returns whether ``GET /wham/accounts/check`` lists the account in use. Raises ApiError."""
        access = await self._session.token()
        response = await self._get("/wham/accounts/check")
        try:
            known = msgspec.json.decode(response.content, type=_Accounts).accounts
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.upstream_unreachable(f"its accounts answer cannot be read ({error})") from error
        return access.account_id is None or any(account.id == access.account_id for account in known)

    def route(self, url: str) -> proxies.ProxyRoute:
        """Returns the proxy for an address. Raises BadProxy."""
        if self._transport is None:
            return proxies.ProxyRoute(None, "no network is in use")
        return self._transport.route(origin_of(httpx.URL(url)))

    async def reach(self, url: str) -> float | None:
        """Sends HEAD without credentials, accepts any status; returns its Unix time or None. Raises ApiError."""
        try:
            async with self._client.stream("HEAD", url, timeout=None) as response:
                return _moment(response.headers.get("date"))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _foreign(error) from error

    async def _get(self, path: str) -> httpx.Response:
        """Returns a page of the account with status 200. Retries a 401 once with a new token. Raises ApiError."""
        access = await self._session.token()
        response = await self._get_once(path, access)
        if response.status_code == 401 and (again := await self._session.replace(access.token)) is not None:
            response = await self._get_once(path, again)
        if response.status_code != 200:
            raise failure.from_http(response.status_code, response.headers, response.content, self._clock())
        return response

    async def _get_once(self, path: str, access: Access) -> httpx.Response:
        # Without originator and version, as in the official client.
        headers = {"authorization": f"Bearer {access.token}", "accept": "*/*"}
        if access.account_id is not None:
            headers["chatgpt-account-id"] = access.account_id
        return await self._page(f"{self._base}{path}", headers)

    async def _page(self, url: str, headers: dict[str, str]) -> httpx.Response:
        try:
            with trio.fail_after(PAGE_TIMEOUT):
                return await self._client.get(url, headers=headers)
        except trio.TooSlowError as error:
            raise errors.upstream_unreachable(f"no answer within {PAGE_TIMEOUT:g} seconds") from error
        except httpx.HTTPError as error:
            raise _foreign(error) from error

    async def _send(self, call: Call, access: Access) -> httpx.Response | _PlainResponse:
        # Earlier official clients sent session_id, conversation_id and OpenAI-Beta; the current one sends the others.
        headers = self._identity(access) | {
            "user-agent": USER_AGENT,
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
        timings = call.timings
        timings.tries += 1
        if self._transport is None:
            request = self._client.build_request("POST", self._url, content=call.body, headers=headers)
            proxied = await self._client.send(request, stream=True)
            _note(timings, proxied.status_code, proxied.headers)
            return proxied
        fields = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        if cookie := self._cookie_header():
            fields.append((b"cookie", cookie))
        answer = await self._transport.post(self._target, fields, call.body, timings.resend)
        status, received, body, timings.connected, timings.ready = answer
        found = {name.decode("latin-1"): value.decode("latin-1") for name, value in received}
        _note(timings, status, found)
        plain = status == 200 and "content-encoding" not in found
        if plain and "set-cookie" not in found:
            return _PlainResponse(found, body)
        response = httpx.Response(status, headers=received, stream=body, request=httpx.Request("POST", self._url))
        self._client.cookies.extract_cookies(response)
        self._cookie = (-1.0, b"")
        return _PlainResponse(found, body) if plain else response

    def _cookie_header(self) -> bytes:
        """Returns the cookie header, cached: making it takes as long as making all other headers."""
        if not self._client.cookies:
            return b""
        until, cookie = self._cookie
        if trio.current_time() >= until:
            request = httpx.Request("POST", self._url)
            self._client.cookies.set_cookie_header(request)
            cookie = request.headers.get("cookie", "").encode("latin-1")
            self._cookie = trio.current_time() + COOKIE_SECONDS, cookie
        return cookie

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
    async def _read_error(response: httpx.Response | _PlainResponse) -> bytes:
        body = b""
        try:
            async for data in response.aiter_bytes():
                body += data
                if len(body) > MAX_ERROR_BODY:
                    break
        finally:
            await response.aclose()
        return body


class _Unzstd:
    """Decodes a zstd body, which httpx can do only with another package.

    Not a generator, because the garbage collector would finalise an unfinished one with a warning.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._decoder = zstd.ZstdDecoder()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return self._decoder.feed(await anext(self._chunks))
        except zstd.Undecodable as error:
            raise httpx.DecodingError(str(error)) from error


def _note(timings: Timings, status: int, headers: Mapping[str, str]) -> None:
    timings.status, timings.head = status, trio.current_time()
    timings.request_id = headers.get("x-request-id") or headers.get("x-oai-request-id")


def _moment(date: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None


def _foreign(error: Exception) -> errors.ApiError:
    if isinstance(error, CannotConnect):
        return errors.cannot_connect(error.what, error.advice, error.code, retryable=error.again)
    if isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol | httpx.InvalidURL):
        return errors.upstream_unreachable(str(error) or type(error).__name__)
    if isinstance(error, httpx.LocalProtocolError):
        # Its text may quote the authorization header.
        return errors.upstream_unreachable("the request cannot be sent: a header contains invalid characters")
    if isinstance(error, httpx.TransportError | httpx.DecodingError | httpx.StreamError):
        return errors.stream_ended()
    return errors.upstream_unreachable(str(error) or type(error).__name__)

"""Client of the Codex backend: lanes, tokens, cookies, errors. Exceptions of httpx stop here and become ApiError."""

import contextlib
import email.utils
import math
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple

import httpx
import msgspec
import structlog
import trio

from codexd import errors
from codexd.auth.session import Access, Session
from codexd.config.model import Backend
from codexd.lowlevel import timers, workers
from codexd.protocol import decoding
from codexd.protocol.codex import failures as failure
from codexd.protocol.codex import rate_limits as limits
from codexd.protocol.codex.models import RESERVE
from codexd.protocol.codex.rate_limits import Limits
from codexd.reasons import reason_of
from codexd.system import certificates
from codexd.upstream import identity, proxies
from codexd.upstream.call import Call
from codexd.upstream.conversations import PATIENCE, Conversations, Entry, Head
from codexd.upstream.frames import Closed
from codexd.upstream.http_lane import BodyTooLarge, EventStream, PlainResponse, note, read, read_error
from codexd.upstream.lane import Failure, Lane
from codexd.upstream.transport import RawResponse, Transport, origin_of, target_of
from codexd.upstream.tunnel import CannotConnect
from codexd.upstream.turn_state import TurnStates
from codexd.upstream.websocket import handshake
from codexd.upstream.websocket_lane import MAX_MESSAGE, WebsocketStream, message

PAGE_TIMEOUT = 30.0
"""Seconds for requests that are not streams: the catalogue, the usage page."""

MAX_PAGE = 16 * 1024 * 1024
"""Bytes; the catalogue, the largest page, has some hundred thousand."""

WARM_SECONDS = 3600.0
"""Seconds after the last request during which a connection is kept open; later, a closed one is not replaced."""

WARM_INTERVAL = 5.0
"""Seconds between checks of that connection; grows to a minute while connecting fails."""

_REFUSALS: Mapping[int, Failure] = {426: "unsupported", 400: "final", 429: "final"}
"""What the status of a refused handshake means; any other one: refused."""

_ACCOUNTS = "/wham/accounts/check"
_UNCONSTRAINED = "NO_CONSTRAINT"

ROUTING_PAUSE = 600.0
"""Seconds before the account's routing is asked for again after a failure."""

HANDSHAKE_SECONDS = 8.0
"""Seconds for connection and handshake of a websocket."""

_SPEAKING = (400, 401, 402, 403, 429)
"""Statuses that refuse the request or the account, and not the websocket."""

REFUSED_PAUSE = 1.0
"""Seconds before the second handshake after a 403."""

COOKIE_SECONDS = 30.0
"""Seconds for which the cookie header is reused. The cookies live for half an hour or longer."""

log = structlog.get_logger()


class Page(NamedTuple):
    """An answer that is not a stream, with its whole body."""

    status_code: int
    headers: httpx.Headers
    content: bytes


class _AccountEntry(msgspec.Struct):
    """``workspace_backend_origin`` replaces the origin of requests for answers; NO_CONSTRAINT or nothing keeps it."""

    id: str | None = None
    workspace_backend_origin: str | None = None
    account_routing_override: str | None = None


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
    client.headers["user-agent"] = identity.USER_AGENT
    return client


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
        self._conversations = Conversations(config.max_connections, config.idle_seconds)
        self._lane = Lane()
        self._turn_states = TurnStates()
        self._headers: Mapping[str, str] = {}
        self._seen: tuple[Mapping[str, str], float] | None = None
        self._cookie: tuple[float, bytes] = (-1.0, b"")
        self._limits: Limits | None = None
        self._used_at = -math.inf
        self._routing: str | None = None
        self._routed: str | None = None

    def configure(self, config: Backend) -> None:
        """Applies a new configuration, and reads the certificates again, because their files may have changed."""
        self._set(config)
        self._conversations.configure(config.max_connections, config.idle_seconds)
        if config.transport == "http":
            self._conversations.close_idle()
        if self._transport is not None:
            self._transport.configure(trusting(config.ca_file))

    def _set(self, config: Backend) -> None:
        base = config.url.rstrip("/")
        self._url = httpx.URL(f"{base}/codex/responses")
        self._target = target_of(self._url)
        self._base, self._config = base, config

    @asynccontextmanager
    async def open(self, call: Call, failures: int = 0) -> AsyncIterator[EventStream | WebsocketStream]:
        """Opens the backend's answer as events, and closes it on exit.

        ``failures`` counts the websockets that failed for this request: after one a new one is opened, after two the
        request is sent over HTTP. Raises ApiError, also for failures while the caller reads.
        """
        timings = call.timings
        self._used_at = now = trio.current_time()
        timings.asked = timings.asked or now
        try:
            access = await self._session.token()
            timings.token = trio.current_time()
            await self._digest(call)
            call.turn_state = call.turn_state or self._turn_states.find(call)
            found = await self._websocket(call, access, failures)
            opened = self._response(call, access) if found is None else self._answer(call, *found)
            del call  # it may be megabytes, and the answer may take an hour
            async with opened as answer:
                yield answer
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise foreign(error) from error

    async def _digest(self, call: Call) -> None:
        """Makes the digests that will be asked of a large request, off the loop."""
        if self._may_use_websocket(call) or self._turn_states.any:
            await workers.run(call.weight, call.encode_items)

    # --- the websocket lane

    async def _websocket(self, call: Call, access: Access, failures: int) -> tuple[Entry, Head | None] | None:
        """Returns a connection for the request, and the head that it continues; None if it must be sent over HTTP."""
        wanted = call.timings.only or self._config.transport
        if not self._may_use_websocket(call):
            return None
        timings = call.timings
        if failures > 1 and wanted == "auto":
            timings.fallback = "failed"
            return None
        fits = call.chain.size <= MAX_MESSAGE
        if failures == 0 and (kept := await self._conversations.claim(call, access.token, whole=fits)) is not None:
            timings.connected, timings.ready = trio.current_time(), True
            return kept
        if not fits and wanted == "auto":
            timings.fallback = "too large"
            return None
        if not self._lane.take(trio.current_time()) and wanted == "auto":
            timings.fallback = "paused"
            return None
        with self._conversations.room(patience=PATIENCE if wanted == "auto" else None) as wait:
            if wait is not None:
                return await self._dial(call, access, wait)
        self._lane.gave_up()
        if wanted == "auto":
            timings.fallback = "busy"
            return None
        raise errors.too_many_websockets(self._config.max_connections)

    def _may_use_websocket(self, call: Call) -> bool:
        # The reserve's header would hold for all requests of a websocket.
        wanted = call.timings.only or self._config.transport
        return self._transport is not None and wanted != "http" and call.request.model != RESERVE

    async def _dial(self, call: Call, access: Access, wait: float) -> tuple[Entry, None] | None:
        """Opens a websocket in ``wait`` seconds; returns None if the backend offers none now.

        Raises httpx's errors of connecting.
        """
        why: Failure = "silent"
        reason = f"no answer within {HANDSHAKE_SECONDS:g} seconds"
        error: errors.ApiError | None = None
        try:
            if wait:
                await trio.sleep(wait)
            with trio.move_on_after(HANDSHAKE_SECONDS):
                found = await self._handshakes(call, access)
                if isinstance(found, Entry):
                    self._conversations.add(found, call)
                    return found, None
                why, error = found
                reason = error.error.message.partition(" Set ")[0]
        except CannotConnect:
            self._lane.gave_up()
            raise
        except httpx.HTTPError as failed:
            why, reason = "refused", str(failed) or type(failed).__name__
        except BaseException:
            self._lane.gave_up()
            raise
        self._close_lane(why, reason)
        if (call.timings.only or self._config.transport) == "websocket":
            raise error or errors.websocket_refused(reason)
        call.timings.fallback = why
        return None

    async def _handshakes(self, call: Call, access: Access) -> Entry | tuple[Failure, errors.ApiError]:
        """Tries once more after a 403, which is often sporadic, and after a 401 with another token."""
        assert self._transport is not None  # noqa: S101 - ``_websocket`` has checked it
        again = True
        while True:
            headers = identity.of_handshake(self._config, access, call, self._routing)
            fields = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
            if cookie := self._cookie_header():
                fields.insert(0, (b"cookie", cookie))
            call.timings.handshakes += 1
            found = await handshake(self._transport, self._target, fields)
            if not isinstance(found, RawResponse):
                socket, upgraded = found
                call.timings.connected, call.timings.ready = upgraded.connected, upgraded.ready
                return Entry(socket, call, access.token)
            body = await read_error(PlainResponse({}, found.body))
            if found.status == 401 and again:
                if (other := await self._session.replace(access.token)) is not None:
                    access, again = other, False
                    continue
            elif found.status == 403 and again:
                again = False
                await trio.sleep(REFUSED_PAUSE)
                continue
            fields_found = {name.decode("latin-1"): value.decode("latin-1") for name, value in found.fields}
            why = _REFUSALS.get(found.status, "refused")
            error = failure.from_http(found.status, fields_found, body, self._clock())
            if error.retry_after is None and found.status not in _SPEAKING:
                error = errors.websocket_refused(f"it answers the handshake with status {found.status}")
                error.retryable = found.status >= 500
            return why, error

    @asynccontextmanager
    async def _answer(self, call: Call, entry: Entry, head: Head | None) -> AsyncIterator[WebsocketStream]:
        timings = call.timings
        timings.tries += 1
        timings.lane, timings.kept, timings.delta = "websocket", entry.kept, head is not None
        stream = WebsocketStream(entry, call, head, lambda: self._headers, self._on_limits, self._clock)
        kept: Head | None = None
        try:
            data = await workers.run(call.weight, partial(message, call, head))
            timings.sent = len(data)
            try:
                await entry.socket.send(data)
            except (httpx.HTTPError, Closed) as error:
                raise errors.stream_ended() from error
            del call, data
            yield stream
            kept = stream.head()
        finally:
            self._conversations.release(entry, kept)
            if stream.turn_state is not None:
                self._turn_states.keep(entry.digest, stream.turn_state)
            if kept is None:
                self._lane.gave_up()
            elif self._lane.worked():
                log.info("websockets to the backend work again")

    def _on_limits(self, data: bytes) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            if found := limits.headers_of_event(data):
                self._seen, self._headers = (found, self._clock()), found

    def _close_lane(self, why: Failure, reason: str) -> None:
        if (pause := self._lane.failed(why, trio.current_time())) is not None:
            log.warning("websockets to the backend do not work; using HTTP", seconds=round(pause), reason=reason)

    # --- the HTTP lane

    @asynccontextmanager
    async def _response(self, call: Call, access: Access) -> AsyncIterator[EventStream]:
        """Opens a response with status 200. Retries a 401 once with a new token."""
        timings = call.timings
        timings.lane, timings.kept, timings.delta = "http", False, False
        response = await self._send(call, access)
        if response.status_code == 401:
            body = await read_error(response)
            access_again = await self._session.replace(access.token)
            if access_again is None:
                raise failure.from_http(401, response.headers, body, self._clock())
            log.info("the backend refused the access token; trying once with a new one")
            response = await self._send(call, access_again)
        if response.status_code != 200:
            body = await read_error(response)
            error = failure.from_http(response.status_code, response.headers, body, self._clock())
            error.headers += limits.client_headers(response.headers, self._clock())
            self._seen = response.headers, self._clock()
            raise error
        if (state := call.turn_state or response.headers.get(identity.TURN_STATE)) is not None:
            await workers.run(call.weight, call.encode_items)
            self._turn_states.keep(call.chain.digest, state)
        if timings.fallback == "failed":
            # Only now: where HTTP fails too, it is not the websockets.
            self._close_lane("refused", "two websockets ended before an answer")
        del call
        self._seen, self._headers = (response.headers, self._clock()), response.headers
        if etag := response.headers.get("x-models-etag"):
            self._on_models_etag(etag)
        try:
            yield EventStream(response)
        finally:
            await response.aclose()

    # --- connections

    @property
    def lane(self) -> str:
        """How requests are sent now, in words."""
        if self._transport is None or self._config.transport == "http":
            return "HTTP"
        if self._lane.open or self._config.transport == "websocket":
            return "websockets"
        return "HTTP, because websockets failed"

    @property
    def websockets(self) -> tuple[int, int]:
        """The numbers of open and of idle websockets."""
        return self._conversations.counts

    async def run(self) -> None:
        """Watches idle websockets, and keeps a connection ready. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._conversations.run)
            nursery.start_soon(self._keep_warm)
            nursery.start_soon(self._learn_routing)

    async def _learn_routing(self) -> None:
        """Asks once for each account where its requests must be sent; until then they go to the usual place."""
        while True:
            pause = WARM_INTERVAL
            if self._session.fresh and self._session.describe().account_id != self._routed:
                try:
                    # Without another token after a 401: a refresh is for a request that somebody waits for.
                    access = await self._session.token()
                    response = await self._get_once(_ACCOUNTS, access)
                    if response.status_code == 200:
                        self._learn_from(response, access)
                    else:
                        pause = ROUTING_PAUSE
                except errors.ApiError as error:
                    pause = ROUTING_PAUSE
                    log.debug("the account's routing is unknown", reason=error.error.message)
            await timers.pause(pause)

    async def _keep_warm(self) -> None:
        """Keeps a connection open, so that requests need not wait for name, proxy and TLS.

        It also closes idle websockets of an access token that is not in use any more, such as after a sign-out.
        """
        if self._transport is None:
            return
        self._used_at, pause = trio.current_time(), WARM_INTERVAL
        while True:
            self._transport.sweep()
            self._conversations.sweep(self._session.access_token or "")
            try:
                if trio.current_time() < self._used_at + WARM_SECONDS and self._session.signed_in:
                    await self._transport.warm(self._target.origin)
                pause = WARM_INTERVAL
            except httpx.HTTPError as error:
                pause = min(pause * 2, 60.0)
                log.debug("no connection to the backend can be kept ready", reason=str(error))
            await timers.pause(pause)

    async def models(self, etag: str | None) -> Page:
        """Sends ``GET /codex/models``. Raises ApiError if signed out or the backend is unreachable."""
        access = await self._session.token()
        headers = identity.base(self._config, access) | {"accept": "*/*"}
        if etag is not None:
            headers["if-none-match"] = etag
        return await self._page(f"{self._base}/codex/models?client_version={self._config.client_version}", headers)

    async def usage(self) -> Limits:
        """Returns ``GET /wham/usage``, decoded. Raises ApiError."""
        document = await self.usage_document()
        try:
            self._limits = limits.from_usage(document, self._clock())
        except msgspec.DecodeError as error:
            raise errors.upstream_unreadable(f"its usage data cannot be read ({reason_of(error)})") from error
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
        """Returns whether ``GET /wham/accounts/check`` lists the account, and keeps its routing. Raises ApiError."""
        access = await self._session.token()
        return self._learn_from(await self._get(_ACCOUNTS), access)

    def _learn_from(self, response: Page, access: Access) -> bool:
        """Keeps the account's routing; returns whether the account is listed. Raises ApiError."""
        try:
            known = decoding.decode(response.content, type=_Accounts).accounts
        except msgspec.DecodeError as error:
            raise errors.upstream_unreadable(f"its list of accounts cannot be read ({reason_of(error)})") from error
        account = next((each for each in known if each.id == access.account_id), None)
        if account is not None:
            self._route_by(account)
        self._routed = access.account_id
        return access.account_id is None or account is not None

    def _route_by(self, account: _AccountEntry) -> None:
        """Sends requests for answers where the workspace wants them."""
        origin, override = account.workspace_backend_origin, account.account_routing_override
        self._routing = None if override in (None, _UNCONSTRAINED) else override
        if origin not in (None, _UNCONSTRAINED) and origin.startswith("https://"):
            place = httpx.URL(origin)
            self._url = self._url.copy_with(scheme=place.scheme, host=place.host, port=place.port)
            self._target = target_of(self._url)
            log.info("the workspace has its own backend", origin=origin)

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
            raise foreign(error) from error

    async def _get(self, path: str) -> Page:
        """Returns a page of the account with status 200. Retries a 401 once with a new token. Raises ApiError."""
        access = await self._session.token()
        response = await self._get_once(path, access)
        if response.status_code == 401 and (again := await self._session.replace(access.token)) is not None:
            response = await self._get_once(path, again)
        if response.status_code != 200:
            raise failure.from_http(response.status_code, response.headers, response.content, self._clock())
        return response

    async def _get_once(self, path: str, access: Access) -> Page:
        # Without originator and version, as in the official client.
        headers = {"authorization": f"Bearer {access.token}", "accept": "*/*"}
        if access.account_id is not None:
            headers["chatgpt-account-id"] = access.account_id
        return await self._page(f"{self._base}{path}", headers)

    async def _page(self, url: str, headers: dict[str, str]) -> Page:
        try:
            with trio.fail_after(PAGE_TIMEOUT):
                async with self._client.stream("GET", url, headers=headers) as response:
                    return Page(response.status_code, response.headers, await read(response, MAX_PAGE))
        except trio.TooSlowError as error:
            raise errors.upstream_unreachable(f"no answer within {PAGE_TIMEOUT:g} seconds") from error
        except BodyTooLarge as error:
            raise errors.upstream_unreadable(f"its answer is larger than {MAX_PAGE} bytes") from error
        except httpx.HTTPError as error:
            raise foreign(error) from error

    async def _send(self, call: Call, access: Access) -> httpx.Response | PlainResponse:
        headers = identity.of_post(self._config, access, call, self._routing)
        timings = call.timings
        await workers.run(call.weight, call.encode_whole)
        timings.tries += 1
        timings.sent = len(call.body)
        if self._transport is None:
            request = self._client.build_request("POST", self._url, content=call.body, headers=headers)
            proxied = await self._client.send(request, stream=True)
            note(timings, proxied.status_code, proxied.headers)
            return proxied
        fields = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        if cookie := self._cookie_header():
            fields.append((b"cookie", cookie))
        answer = await self._transport.post(self._target, fields, call.body, timings.resend)
        status, received, body, timings.connected, timings.ready = answer
        found = {name.decode("latin-1"): value.decode("latin-1") for name, value in received}
        note(timings, status, found)
        plain = status == 200 and "content-encoding" not in found
        if plain and "set-cookie" not in found:
            return PlainResponse(found, body)
        response = httpx.Response(status, headers=received, stream=body, request=httpx.Request("POST", self._url))
        self._client.cookies.extract_cookies(response)
        self._cookie = (-1.0, b"")
        return PlainResponse(found, body) if plain else response

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


def _moment(date: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None


def foreign(error: Exception) -> errors.ApiError:
    """Returns an error of httpx as one for a client."""
    if isinstance(error, CannotConnect):
        return errors.cannot_connect(error.what, error.advice, error.code, retryable=error.again)
    if isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol | httpx.InvalidURL):
        return errors.upstream_unreachable(reason_of(error))
    if isinstance(error, httpx.LocalProtocolError):
        # Its text may quote the authorization header.
        return errors.unsendable()
    if isinstance(error, httpx.TransportError | httpx.DecodingError | httpx.StreamError):
        return errors.stream_ended()
    return errors.upstream_unreachable(reason_of(error))

"""The ASGI application: its routes, who may use them, and how failures are told."""

import base64
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import trio
from quart import Response, has_request_context, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.routing.exceptions import WebsocketMismatch

from codexd import __version__, errors
from codexd.api import cors
from codexd.api.answers import Answers
from codexd.api.chat import ChatEndpoints
from codexd.api.login import LoginEndpoints
from codexd.api.messages import MessagesEndpoints
from codexd.api.responses import ResponsesEndpoints
from codexd.api.websocket import ResponsesWebsocket
from codexd.auth.login import Logins
from codexd.auth.session import Session
from codexd.config.model import Config
from codexd.errors import ApiError
from codexd.exchange import (
    AFTER,
    Document,
    Exchange,
    Fields,
    HttpConnection,
    Incoming,
    Page,
    PageRequest,
    Record,
    Reply,
    Route,
    Streamed,
    bug,
    failed,
    foreign_host,
    is_forwarded,
    json,
    record_of_page,
    response_of,
    take,
)
from codexd.relay.relay import Client
from codexd.server.request import Handler, Lane
from codexd.state.instructions import Instructions
from codexd.state.keys import Keys
from codexd.state.responses import ResponseStore
from codexd.state.usage import Ledger
from codexd.telemetry.metrics import CONTENT_TYPE, Gauges, Metrics
from codexd.telemetry.trace import Recent, Trace
from codexd.upstream.catalog import Catalog
from codexd.upstream.client import Upstream

WEBSOCKET = "/responses"
"""The path that is served over websockets too, under /v1 and under nothing."""

_HEALTH = ("/health", "/v1/health")
_UNINTERESTING = ("/health", "/metrics")
PULSES = 4
PULSE_INTERVAL = 0.25
"""Seconds. Together they tell a proxy that buffers from one that does not."""


class _ModelObject(msgspec.Struct):
    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "openai"


class _ModelList(msgspec.Struct):
    data: list[_ModelObject]
    object: str = "list"


class _Health(msgspec.Struct):
    status: str
    version: str
    signed_in: bool
    uptime_seconds: int


class _Pulse:
    """A short stream for whoever wants to know whether something on the way holds events back."""

    error: ApiError | None = None
    done = False

    async def stream(self, client: Client) -> None:
        await client.start([])
        for number in range(PULSES):
            await client.write(b"data: %d\n\n" % number)
            await trio.sleep(PULSE_INTERVAL)
        await client.end()


class Api:
    """All endpoints. ``clock`` gives Unix seconds."""

    def __init__(
        self,
        config: Config,
        *,
        session: Session,
        logins: Logins,
        keys: Keys,
        catalog: Catalog,
        upstream: Upstream,
        store: ResponseStore,
        ledger: Ledger,
        instructions: Instructions,
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._keys = keys
        self._catalog = catalog
        self._upstream = upstream
        self._started = self._last_request = trio.current_time()
        self.answers = Answers(
            config, keys=keys, catalog=catalog, upstream=upstream, instructions=instructions, clock=clock
        )
        self.chat = ChatEndpoints(self.answers)
        self._responses = ResponsesEndpoints(self.answers, store)
        self._messages = MessagesEndpoints(self.answers)
        self._websocket = ResponsesWebsocket(self._responses, self._authenticate_websocket, keys.counted, self._watched)
        self._clock = clock
        self._ledger = ledger
        self.metrics = Metrics()
        self.recent = Recent()
        self._under_way: set[Record] = set()
        self._login = LoginEndpoints(session, logins)
        self._taken = 0
        self._table = self._by_path()

    def idle_seconds(self) -> float:
        """How long nobody has asked for anything; 0 while an answer is on its way or a websocket is open."""
        if self.answers.open or self._websocket.connections:
            self._last_request = trio.current_time()
        return trio.current_time() - self._last_request

    def serves_websocket(self, path: str) -> bool:
        return self.answers.config.server.websocket and path in (WEBSOCKET, f"/v1{WEBSOCKET}")

    def drain(self) -> None:
        """Begin to end: answers that are on their way may finish, and nothing waits for another request."""
        self._websocket.drain()

    def configure(self, config: Config) -> None:
        """Take over a changed configuration; answers that are on their way go on under the old one."""
        self.answers.configure(config)

    # --- who takes what

    @property
    def lane(self) -> Lane:
        """What has a fixed path, straight from the connection."""
        return Lane(self.find, lambda: self.answers.config.server.max_body_bytes)

    def find(self, method: str, path: str) -> Handler | None:
        methods = self._methods(path)
        handler = methods.get(method)
        if handler is None and method == "HEAD":
            return methods.get("GET")
        if handler is None and method == "OPTIONS" and self.answers.config.server.allowed_origins:
            fitting = [page for page in self._pages() if _fits(path, page)]
            known = list(methods) or [page.method for page in fitting]
            # What is counted is the pattern: anybody may ask so, for any name.
            counted = path if methods else "".join(page.path for page in fitting[:1])
            return self._taking(Route("OPTIONS", counted, partial(_preflight, known))) if known else None
        return handler

    def _methods(self, path: str) -> dict[str, Handler]:
        found = self._table.get(path)
        return self._table.get(path.removesuffix("/"), {}) if found is None else found

    def app(self) -> QuartTrio:
        """The ASGI application, for the rest."""
        app = QuartTrio("codexd", static_folder=None, template_folder=None)
        app.asgi_http_class = HttpConnection
        app.extensions[AFTER] = self._watch_over
        app.request_class = PageRequest
        # A path with a slash too many is not there, in JSON; by default it is an HTML redirect.
        app.url_map.merge_slashes = False
        app.url_map.strict_slashes = False
        for page in self._pages():
            # The API lies under /v1, and under nothing for clients that were given a base URL without it.
            for prefix in ("/v1", ""):
                path, name = f"{prefix}{page.path}", f"{page.method} {prefix}{page.path}"
                view = partial(_view, page.handler)
                app.add_url_rule(path, name, view, methods=[page.method], provide_automatic_options=False)
        for prefix in ("/v1", ""):
            app.add_websocket(f"{prefix}{WEBSOCKET}", f"websocket {prefix}", self._websocket.serve)
        app.before_request(self._authenticate_page)
        app.register_error_handler(ApiError, _handle_api_error)
        app.register_error_handler(HTTPException, self._handle_http_error)
        app.register_error_handler(Exception, _handle_bug)
        return app

    def _by_path(self) -> dict[str, dict[str, Handler]]:
        table: dict[str, dict[str, Handler]] = {}
        for route in self._routes():
            for prefix in ("/v1", "") if route.api else ("",):
                table.setdefault(f"{prefix}{route.path}", {})[route.method] = self._taking(route)
        return table

    def _taking(self, route: Route) -> Handler:
        async def handler(incoming: Incoming) -> None:
            self._taken += 1
            try:
                await take(incoming, route, self._before, self._after, self.answers.config.server.max_body_bytes)
            finally:
                self._taken -= 1

        return handler

    def _routes(self) -> list[Route]:
        return [
            *self.chat.routes(),
            *self._responses.routes(),
            *self._messages.routes(),
            Route("GET", "/models", self.models),
            Route("GET", "/health", self.health),
            Route("GET", "/openapi.json", self.openapi, api=False),
            Route("GET", "/metrics", self.exposition, api=False),
            Route("GET", "/", self.status, api=False),
            Route("GET", "/api/codex/usage", self.usage, api=False),
            *self._login.routes(),
        ]

    def _pages(self) -> list[Page]:
        return [*self._responses.pages(), Page("GET", "/models/<path:name>", self.model, "One model.")]

    # --- endpoints

    async def models(self, exchange: Exchange) -> Reply:
        """OpenAI's list; the Codex CLI, which names its version, gets the backend's own catalogue."""
        if "client_version" in exchange.query:
            catalogue, etag = await self._catalog.document()
            return Document(catalogue, [("etag", etag)] if etag else [])
        key = exchange.record.key
        slugs = [slug for slug in self._catalog.models.listed if key is None or self._keys.may_use(key, slug)]
        return json(_ModelList([_ModelObject(slug) for slug in slugs]))

    async def model(self, name: str) -> Document:
        self._catalog.resolve(name)
        return json(_ModelObject(name))

    async def usage(self, _: Exchange) -> Reply:
        """The backend's usage page, where the Codex CLI looks for it."""
        return Document(await self._upstream.usage_document())

    async def openapi(self, _: Exchange) -> Reply:
        """This document."""
        # Imported when it is asked for: few do, and nobody twice.
        from codexd.api import openapi

        pages = [openapi.Path(page.method, f"/v1{_readable(page.path)}", page.summary) for page in self._pages()]
        return Document(openapi.document(self._routes(), pages, __version__))

    async def status(self, exchange: Exchange) -> Reply:
        """A page for people: the sign-in, the limits, what was used, how to use it."""
        # Imported when somebody looks: few do.
        from codexd.api import page

        signed_in, known, headers = self._session.describe(), self._upstream.limits(), exchange.headers
        scheme = "https" if headers.get("x-forwarded-proto", "") == "https" else "http"
        key = exchange.record.key
        return page.page(
            page.View(
                version=__version__,
                uptime=page.uptime(trio.current_time() - self._started),
                now=self._clock(),
                base=f"{scheme}://{headers.get('host', '') or 'localhost'}/v1",
                key_required=self._keys.required,
                who=(signed_in.email or signed_in.account_id or "an account") if signed_in.signed_in else None,
                why=signed_in.why,
                streams=self.answers.open,
                windows=() if known is None else known.windows,
                models=[slug for slug in self._catalog.models.listed if key is None or self._keys.may_use(key, slug)],
                hours=self._ledger.hours(),
            )
        )

    async def exposition(self, exchange: Exchange) -> Reply:
        """Prometheus's metrics, for this machine."""
        if exchange.record.client is not None or is_forwarded(exchange.headers):
            raise errors.only_local(exchange.path)
        return Document(self.metrics_text(), content_type=CONTENT_TYPE)

    def metrics_text(self) -> bytes:
        """All metrics, in Prometheus's text format."""
        session, known = self._session, self._upstream.limits()
        return self.metrics.render(
            Gauges(
                version=__version__,
                signed_in=session.signed_in,
                streams_open=self.answers.open,
                refreshes=session.refreshes,
                refresh_failures=session.refresh_failures,
                windows=() if known is None else known.windows,
            )
        )

    async def health(self, exchange: Exchange) -> Reply:
        """Whether codexd serves, and with ``ready=1`` whether requests would be."""
        query = exchange.query
        if query.get("stream", "0") not in ("0", "false"):
            exchange.record.streamed = True
            return Streamed(_Pulse())
        signed_in = self._session.signed_in
        ready = self._session.ready or query.get("ready", "0") in ("0", "false")
        uptime = int(trio.current_time() - self._started)
        found = json(_Health("ok" if signed_in else "signed out", __version__, signed_in, uptime))
        return found if ready else found._replace(status=503)

    # --- before and after the endpoints

    def _before(self, exchange: Exchange) -> None:
        """Raises ApiError 401, 403 or 503."""
        self._under_way.add(exchange.record)
        if exchange.method == "OPTIONS":
            self._admit_page(exchange.headers, exchange.record)
            return
        self._authenticate(exchange.headers, exchange.server, exchange.path, exchange.record)
        limit, record = self.answers.config.server.max_requests, exchange.record
        if self._taken > limit and exchange.path not in _HEALTH:
            raise errors.too_many_requests(limit)
        if record.key is not None and exchange.method == "POST":
            record.counted = self._keys.enter(record.key)

    async def ask(self, incoming: Incoming) -> None:
        """Answer a question that came another way, and may."""
        self._last_request = trio.current_time()
        route = Route("POST", "/chat/completions", self.chat.chat_completions)
        limit = self.answers.config.server.max_body_bytes
        await take(incoming, route, lambda exchange: self._under_way.add(exchange.record), self._after, limit)

    @contextmanager
    def _watched(self, record: Record) -> Iterator[None]:
        self._under_way.add(record)
        try:
            yield
        finally:
            self._watch_over(record)

    def _watch_over(self, record: Record) -> None:
        """It has ended: it is counted, and can be asked for."""
        self._under_way.discard(record)
        trace = record.trace(self._clock(), over=True, bodies=True)
        self.metrics.add(trace)
        self._ledger.add(trace)
        # Probes come every few seconds, and would push out what somebody looks for.
        if trace.endpoint not in _UNINTERESTING or trace.error is not None:
            self.recent.add(trace)

    def under_way(self, begin: str = "", *, bodies: bool = False) -> list[Trace]:
        """The requests that have not ended and whose id begins so, the oldest first."""
        now = self._clock()
        found = [record for record in self._under_way if record.id.startswith(begin)]
        traces = [record.trace(now, over=False, bodies=bodies) for record in found]
        return sorted(traces, key=lambda trace: trace.at)

    def _after(self, record: Record) -> None:
        self._watch_over(record)
        if record.counted and record.key is not None:
            self._keys.leave(record.key)

    async def _authenticate_page(self) -> None:
        self._authenticate(request.headers, request.scope.get("server"), request.path, record_of_page())

    def _authenticate(self, headers: Fields, server: Any, path: str, record: Record) -> None:
        """Raises ApiError 401 or 403."""
        self._admit_page(headers, record)
        if not self._keys.required:
            if not record.cors and headers.get("sec-fetch-site", "") in ("cross-site", "same-site"):
                # Any web page can post to loopback, and without a key the account would be its to spend.
                raise errors.cross_site()
            if (name := foreign_host(server, headers, self._hosts)) is not None:
                raise errors.foreign_host(name)
        if path not in _HEALTH:
            self._last_request = trio.current_time()
            try:
                # Only there: a browser sends what it was told once with every request, whichever page has caused it.
                record.key = self._key(headers, basic=path == "/")
            except ApiError as error:
                if path == "/":
                    # A browser asks its person then: any name, and the key as the password.
                    error.headers.append(("www-authenticate", 'Basic realm="codexd: a client key as password"'))
                raise

    def _admit_page(self, headers: Fields, record: Record) -> None:
        """Raises ApiError 403 for a page of another origin, when it has to show no key and is not expected."""
        origin, by_key = headers.get("origin", ""), self._keys.required
        if not origin:
            return
        allowed = self.answers.config.server.allowed_origins
        # A page that anybody may have written needs a key of the person whom it asks for.
        if cors.is_allowed(origin, allowed if by_key else [each for each in allowed if each != "*"]):
            record.cors = cors.fields(origin)
        elif not by_key and not cors.is_own(origin, headers):
            raise errors.foreign_origin(origin)

    @property
    def _hosts(self) -> tuple[str, ...]:
        return self.answers.config.server.hosts

    def _authenticate_websocket(self) -> str | None:
        """Raises ApiError 401 or 403."""
        # A page can open a websocket to loopback, whatever its origin: browsers ask nobody first.
        self._admit_page(websocket.headers, Record(""))
        if not self._keys.required and (
            name := foreign_host(websocket.scope.get("server"), websocket.headers, self._hosts)
        ):
            raise errors.foreign_host(name)
        return self._key(websocket.headers)

    def _key(self, headers: Fields, *, basic: bool = False) -> str | None:
        """The name of the client's key; None when none is asked for. Raises ApiError 401."""
        if not self._keys.required:
            return None
        given = _given(headers, basic=basic)
        name = self._keys.check(given)
        if name is None:
            raise errors.key_required(given=bool(given), any_known=self._keys.any, fault=self._keys.fault)
        return name

    async def _handle_http_error(self, error: HTTPException) -> Response:
        """Quart's and Werkzeug's own refusals, in OpenAI's shape."""
        status, path, method = error.code or 500, request.path, request.method
        allowed = set(getattr(error, "valid_methods", None) or ()) | set(self._methods(path))
        if allowed and (status == 404 or isinstance(error, WebsocketMismatch)):
            status = 405
        match status:
            case 404:
                routes = [f"{route.method} {'/v1' if route.api else ''}{route.path}" for route in self._routes()]
                pages = [f"{page.method} /v1{_readable(page.path)}" for page in self._pages()]
                message = f"There is no {method} {path} here. There is: {', '.join([*routes, *pages])}."
            case 405 if "x-upgrade" in request.headers:
                status = 426
                off = self.answers.config.server.websocket is False and path.endswith(WEBSOCKET)
                why = " (server.websocket is off)" if off else ""
                message = f"There is no websocket at {path}{why}: send a POST."
            case 405:
                message = f"{path} does not take {method}, but {', '.join(sorted(allowed))}."
            case _:
                message = error.description or error.name
        codes = {404: "unknown_url", 405: "method_not_allowed", 426: "upgrade_required"}
        failure = ApiError(status, message, code=codes.get(status))
        if status == 405:
            failure.headers.append(("allow", ", ".join(sorted(allowed))))
        return response_of(failed(failure, record_of_page()))


def _given(headers: Fields, *, basic: bool) -> str:
    """The key that a request brings, if any: as OpenAI's clients send it, as Anthropic's do, or as a browser may."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    if basic and scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(token.strip(), validate=True).decode().partition(":")[2]
    return headers.get("x-api-key", "")


def _fits(path: str, page: Page) -> bool:
    parts = re.split(r"<[^>]*>", page.path)
    return re.fullmatch(f"(/v1)?{'[^/]+'.join(map(re.escape, parts))}", path) is not None


async def _preflight(methods: list[str], exchange: Exchange) -> Reply:
    return cors.preflight(exchange.headers, methods)


async def _view(handler: Callable[..., Awaitable[Document]], **names: str) -> Response:
    return response_of(await handler(**names))


def _readable(path: str) -> str:
    return path.replace("<path:name>", "{id}").replace("<id>", "{id}")


async def _handle_api_error(error: ApiError) -> Response:
    return response_of(failed(error, record_of_page()))


async def _handle_bug(error: Exception) -> Response:
    return response_of(bug(error, record_of_page() if has_request_context() else Record("websocket")))

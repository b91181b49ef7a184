"""The ASGI application: its routes, who may use them, and how failures are told."""

from collections.abc import Callable

import msgspec
import structlog
import trio
from quart import Response, has_request_context, request, websocket
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from codexd import __version__, errors
from codexd.api.answers import Answers
from codexd.api.chat import ChatEndpoints
from codexd.api.login import LoginEndpoints
from codexd.api.messages import MessagesEndpoints
from codexd.api.responses import ResponsesEndpoints
from codexd.api.websocket import ResponsesWebsocket
from codexd.auth.login import Logins
from codexd.auth.session import Session
from codexd.catalog import Catalog
from codexd.config import Config
from codexd.errors import ApiError
from codexd.exchange import (
    ApiRequest,
    HttpConnection,
    Record,
    Route,
    Streamed,
    document,
    error_response,
    foreign_host,
    json,
    record_of_request,
)
from codexd.keys import Keys
from codexd.relay import Client
from codexd.store import ResponseStore
from codexd.upstream import Upstream

BODY_TIMEOUT = 300.0
"""Seconds for a request body to arrive: big images over a slow line."""

WEBSOCKET = "/responses"
"""The path that is served over websockets too, under /v1 and under nothing."""

PULSES = 4
PULSE_INTERVAL = 0.25
"""Seconds. Together they tell a proxy that buffers from one that does not."""

log = structlog.get_logger()


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
        clock: Callable[[], float],
    ) -> None:
        self._app: QuartTrio | None = None
        self._failures: dict[str, Callable[[ApiError], bytes]] = {}
        self._session = session
        self._keys = keys
        self._catalog = catalog
        self._upstream = upstream
        self._started = self._last_request = trio.current_time()
        self.answers = Answers(config, keys=keys, catalog=catalog, upstream=upstream, clock=clock)
        self.chat = ChatEndpoints(self.answers)
        self._responses = ResponsesEndpoints(self.answers, store)
        self._messages = MessagesEndpoints(self.answers)
        self._websocket = ResponsesWebsocket(self._responses, self._authenticate_websocket)
        self._login = LoginEndpoints(session, logins)

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
        if self._app is not None:
            self._app.config["MAX_CONTENT_LENGTH"] = config.server.max_body_bytes

    def app(self) -> QuartTrio:
        """The ASGI application."""
        self._app = app = QuartTrio("codexd", static_folder=None, template_folder=None)
        app.asgi_http_class = HttpConnection
        app.request_class = ApiRequest
        # Quart's own limits, set on purpose: its 60 s for a response would cut streams, 16 MiB is one photograph.
        app.config["RESPONSE_TIMEOUT"] = None
        app.config["BODY_TIMEOUT"] = BODY_TIMEOUT
        # A path with a slash too many is not there, in JSON; by default it is an HTML redirect.
        app.url_map.merge_slashes = False
        app.url_map.strict_slashes = False
        app.config["MAX_CONTENT_LENGTH"] = self.answers.config.server.max_body_bytes
        for route in self._routes():
            # The API lies under /v1, and under nothing for clients that were given a base URL without it.
            for prefix in ("/v1", "") if route.api else ("",):
                path, name = f"{prefix}{route.path}", f"{route.method} {prefix}{route.path}"
                self._failures[name] = route.failure
                app.add_url_rule(path, name, route.handler, methods=[route.method], provide_automatic_options=False)
        for prefix in ("/v1", ""):
            app.add_websocket(f"{prefix}{WEBSOCKET}", f"websocket {prefix}", self._websocket.serve)
        app.before_request(self._authenticate)
        app.register_error_handler(ApiError, _handle_api_error)
        app.register_error_handler(HTTPException, self._handle_http_error)
        app.register_error_handler(Exception, _handle_bug)
        return app

    def _routes(self) -> list[Route]:
        return [
            *self.chat.routes(),
            *self._responses.routes(),
            *self._messages.routes(),
            Route("GET", "/models", self.models),
            Route("GET", "/models/<path:name>", self.model),
            Route("GET", "/health", self.health),
            Route("GET", "/api/codex/usage", self.usage, api=False),
            *self._login.routes(),
        ]

    # --- endpoints

    async def models(self) -> Response:
        """OpenAI's list; the Codex CLI, which names its version, gets the backend's own catalogue."""
        if "client_version" in request.args:
            catalogue, etag = await self._catalog.document()
            return document(catalogue, [("etag", etag)] if etag else [])
        listed = [_ModelObject(slug) for slug in self._catalog.models.listed]
        return json(_ModelList(listed))

    async def model(self, name: str) -> Response:
        self._catalog.resolve(name)
        return json(_ModelObject(name))

    async def usage(self) -> Response:
        """The backend's usage page, where the Codex CLI looks for it."""
        return document(await self._upstream.usage_document(), [])

    async def health(self) -> Response:
        if request.args.get("stream", "0") not in ("0", "false"):
            record_of_request().streamed = True
            return Streamed(_Pulse())
        signed_in = self._session.signed_in
        ready = self._session.ready or request.args.get("ready", "0") in ("0", "false")
        uptime = int(trio.current_time() - self._started)
        response = json(_Health("ok" if signed_in else "signed out", __version__, signed_in, uptime))
        response.status_code = 200 if ready else 503
        return response

    # --- before and after the endpoints

    async def _authenticate(self) -> None:
        """Raises ApiError 401 or 403."""
        record_of_request().failure = self._failures.get(request.endpoint or "", ApiError.body)
        if not self._keys.required and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # Any web page can post to loopback, and without a key the account would be its to spend.
            raise errors.cross_site()
        if not self._keys.required and (name := foreign_host(request.scope, request.headers, self._hosts)) is not None:
            raise errors.foreign_host(name)
        if request.path not in ("/health", "/v1/health"):
            self._last_request = trio.current_time()
            record_of_request().key = self._key(request.headers)

    @property
    def _hosts(self) -> tuple[str, ...]:
        return self.answers.config.server.hosts

    def _authenticate_websocket(self) -> str | None:
        """Raises ApiError 401 or 403."""
        if not self._keys.required and "origin" in websocket.headers:
            # A page can open a websocket to loopback, whatever its origin: browsers ask nobody first.
            raise errors.cross_site()
        if not self._keys.required and (name := foreign_host(websocket.scope, websocket.headers, self._hosts)):
            raise errors.foreign_host(name)
        return self._key(websocket.headers)

    def _key(self, headers: Headers) -> str | None:
        """The name of the client's key; None when none is asked for. Raises ApiError 401."""
        if not self._keys.required:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        name = self._keys.check(given)
        if name is None:
            raise errors.key_required(given=bool(given), any_known=self._keys.any, fault=self._keys.fault)
        return name

    async def _handle_http_error(self, error: HTTPException) -> Response:
        """Quart's and Werkzeug's own refusals, in OpenAI's shape."""
        status = error.code or 500
        match status:
            case 404:
                known = ", ".join(
                    f"{route.method} {'/v1' if route.api else ''}{_readable(route.path)}" for route in self._routes()
                )
                message = f"There is no {request.method} {request.path} here. There is: {known}."
            case 405 if "x-upgrade" in request.headers:
                status = 426
                off = self.answers.config.server.websocket is False and request.path.endswith(WEBSOCKET)
                why = " (server.websocket is off)" if off else ""
                message = f"There is no websocket at {request.path}{why}: send a POST."
            case 405:
                allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
                message = f"{request.path} does not take {request.method}, but {allowed}."
            case 413:
                limit = self.answers.config.server.max_body_bytes
                message = f"The request body is larger than {limit} bytes (server.max_body_bytes)."
            case 408:
                message = f"The request body did not arrive within {BODY_TIMEOUT:g} seconds."
            case _:
                message = error.description or error.name
        codes = {
            404: "unknown_url",
            405: "method_not_allowed",
            426: "upgrade_required",
            413: "request_too_large",
            408: "request_timeout",
        }
        failure = ApiError(status, message, code=codes.get(status))
        failure.headers += [(name, value) for name, value in error.get_headers() if name.lower() == "allow"]
        if isinstance(error, RequestEntityTooLarge):
            # The rest of the body is still on its way, and nobody will read it.
            failure.headers.append(("connection", "close"))
        return error_response(failure, record_of_request())


def _readable(path: str) -> str:
    return path.replace("<path:name>", "{id}").replace("<id>", "{id}")


async def _handle_api_error(error: ApiError) -> Response:
    return error_response(error, record_of_request())


async def _handle_bug(error: Exception) -> Response:
    log.error("a request met a fault of codexd itself", exc_info=error)
    record = record_of_request() if has_request_context() else Record("websocket")
    return error_response(errors.internal(record.id), record)

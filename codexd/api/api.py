"""The API: all endpoints in one router, with access control, limits and accounting around each request."""

from collections.abc import Callable, Mapping

import trio

from codexd.api import cors, exchange, ollama
from codexd.api.access import HEALTH, AccessControl, client_of
from codexd.api.anthropic import MESSAGES, MessagesEndpoints
from codexd.api.budget import Budget
from codexd.api.chat import CHAT, COMPLETIONS, ChatEndpoints
from codexd.api.exchange import Exchange, Reply
from codexd.api.images import IMAGES, ImagesEndpoints
from codexd.api.journal import Journal
from codexd.api.login import LoginEndpoints
from codexd.api.ollama import OllamaEndpoints
from codexd.api.pipeline import Pipeline
from codexd.api.record import begin
from codexd.api.responses import RESPONSES, ResponsesEndpoints
from codexd.api.routing import Route, Router, fold
from codexd.api.search import SearchEndpoints
from codexd.api.service_endpoints import ServiceEndpoints
from codexd.api.transcriptions import TRANSCRIPTIONS, TranscriptionEndpoints
from codexd.api.websocket import ResponsesWebsocket
from codexd.auth.login import Logins
from codexd.auth.session import Session
from codexd.config.model import Config, Server
from codexd.errors import ApiError
from codexd.protocol.anthropic.failures import failure_document
from codexd.server.request import ServerRequest
from codexd.state.images import ImageStore
from codexd.state.keys import Keys
from codexd.state.responses import ResponseStore
from codexd.state.usage import Ledger
from codexd.system.memory import UNBOUNDED, Room
from codexd.upstream.account_tools import AccountTools
from codexd.upstream.catalog import Catalog
from codexd.upstream.client import Upstream

KINDS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, IMAGES, TRANSCRIPTIONS, ollama.CHAT, ollama.GENERATE)
"""All kinds of requests that have parameters; each is the kind of a route."""

WEBSOCKET = ("/responses", "/v1/responses")
"""Paths that are also served over websockets."""


class Api:
    """All endpoints. ``pipeline`` makes the answers, ``journal`` accounts for them.

    ``room`` is the memory for requests in progress. ``faults`` returns the background tasks that have failed.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        journal: Journal,
        *,
        session: Session,
        logins: Logins,
        keys: Keys,
        catalog: Catalog,
        upstream: Upstream,
        account: AccountTools,
        images: ImageStore,
        responses: ResponseStore,
        usage: Ledger,
        room: Room = UNBOUNDED,
        faults: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._pipeline = pipeline
        self._journal = journal
        self._keys = keys
        self._access = AccessControl(keys, pipeline.config.server)
        self._budget = Budget(keys, usage, upstream.limits, clock=pipeline.clock)
        stored = ResponsesEndpoints(pipeline, responses)
        self.websocket = ResponsesWebsocket(stored, self._access, keys, self._budget, journal, pipeline.capacity, room)
        self.service = ServiceEndpoints(
            pipeline, journal, session, keys, catalog, upstream, usage, lambda: self._router.routes, faults, room
        )
        endpoints = (
            ChatEndpoints(pipeline),
            stored,
            MessagesEndpoints(pipeline),
            ImagesEndpoints(pipeline, session, account, images),
            TranscriptionEndpoints(pipeline, account),
            SearchEndpoints(pipeline, account),
            OllamaEndpoints(pipeline),
            self.service,
        )
        self._router = Router(
            [route for each in (*endpoints, LoginEndpoints(session, logins)) for route in each.routes()],
            self._serve,
            refuse=self._refuse,
            preflight=_preflight,
            preflights=lambda: bool(self._server.allowed_origins),
        )
        self.find = self._router.find

    @property
    def _server(self) -> Server:
        return self._pipeline.config.server

    def configure(self, config: Config) -> None:
        """Applies a changed configuration; answers in progress keep the old one."""
        self._pipeline.configure(config)
        self._access.configure(config.server)

    def serves_websocket(self, path: str) -> bool:
        return self._server.websocket and fold(path) in WEBSOCKET

    def idle_seconds(self) -> float:
        """Returns the seconds since the last request; 0 while an answer is in progress or a websocket is open."""
        if self._pipeline.open or self.websocket.connections:
            self._journal.last_request = trio.current_time()
        return trio.current_time() - self._journal.last_request

    def drain(self) -> None:
        """Starts the drain: answers in progress may finish, and websockets accept no further request."""
        self.websocket.drain()

    # --- a request

    async def _serve(self, route: Route, names: dict[str, str], request: ServerRequest) -> None:
        client = client_of(request.client, request.headers)
        record = begin(request.method, request.path, route.path, request.headers, client)
        record.failure = route.failure
        if route.dialect is not None:
            record.stream_type = route.dialect.stream_type
        found = Exchange(request, record, names, self._server.max_body_bytes, self._server.max_items)
        self._pipeline.capacity.enter()
        try:
            with self._journal.entry(record):
                await exchange.answer(found, request, self._reply(found, route))
        finally:
            self._pipeline.capacity.leave(1 + record.others)
            if record.counted and record.key is not None:
                self._keys.leave(record.key)

    async def _reply(self, exchange: Exchange, route: Route) -> Reply:
        if route.method == "OPTIONS":
            # A preflight: browsers send it without the page's key.
            self._access.admit_page(exchange.headers, exchange.record)
        else:
            self._admit(exchange, route)
        return await route.handler(exchange)

    def _admit(self, exchange: Exchange, route: Route) -> None:
        """Checks access and the limits on requests. Raises ApiError 401, 403, 429 or 503."""
        record = exchange.record
        self._access.admit(exchange.headers, exchange.server, exchange.path, record, keyless=route.keyless)
        if exchange.path not in HEALTH:
            self._pipeline.capacity.check()
        if record.key is not None and exchange.method == "POST":
            if route.spends:
                self._budget.admit(record.key)
            record.counted = self._keys.enter(record.key)

    async def _refuse(self, allowed: list[str], exchange: Exchange) -> Reply:
        """Raises ApiError 404, 405 or 426; ``allowed`` are the methods of the path."""
        path, method = exchange.path, exchange.method
        if path.startswith("/anthropic/") or "anthropic-version" in exchange.headers:
            exchange.record.failure = failure_document
        if path.startswith("/api/") and not path.startswith("/api/codex/"):
            exchange.record.failure = ollama.CHAT.failure
            if (error := ollama.refused(path)) is not None:
                raise error
        if not allowed:
            if (why := absent(fold(path))) is not None:
                raise ApiError(404, why, code="not_supported")
            known = ", ".join(f"{route.method} {route.public_path}" for route in self._router.routes)
            raise ApiError(404, f"There is no {method} {path}. Available: {known}.", code="unknown_url")
        if "upgrade" in exchange.headers:
            off = not self._server.websocket and fold(path) in WEBSOCKET
            why = " (server.websocket is off)" if off else ""
            raise ApiError(426, f"There is no websocket at {path}{why}. Send a POST request.", code="upgrade_required")
        methods = ", ".join(sorted(allowed))
        raise ApiError(
            405,
            f"{path} does not support {method}. Use {methods}.",
            code="method_not_allowed",
            headers=[("allow", methods)],
        )


_ABSENT: tuple[tuple[str, str], ...] = (
    ("/embeddings", "embeddings"),
    ("/audio/speech", "speech synthesis"),
    ("/audio/translations", "speech translation"),
    ("/images/variations", "image variations (send an edit with a prompt instead)"),
    ("/videos", "videos"),
    ("/moderations", "moderation"),
    ("/realtime", "realtime sessions"),
    ("/files", "file storage"),
    ("/uploads", "file storage"),
    ("/vector_stores", "vector stores"),
    ("/containers", "containers"),
    ("/batches", "batches"),
    ("/messages/batches", "batches"),
    ("/fine_tuning", "fine-tuning"),
    ("/assistants", "assistants"),
    ("/threads", "threads"),
    ("/conversations", "conversations API"),
    ("/evals", "evals"),
    ("/complete", "Anthropic's legacy completions"),
    ("/rerank", "reranking"),
)
"""Paths of the APIs that the backend has nothing for, and what that is."""


def absent(path: str) -> str | None:
    """Returns why a known path of the APIs does not exist here; None for an unknown one."""
    path = path.removeprefix("/v1")
    found = next(
        (what for prefix, what in _ABSENT if path == prefix.rstrip("/") or path.startswith(_under(prefix))), None
    )
    if found is None:
        return None
    return f"The ChatGPT backend does not offer {found}. Set another provider for it in your client."


def _under(prefix: str) -> str:
    return prefix if prefix.endswith("/") else f"{prefix}/"


async def _preflight(methods: list[str], exchange: Exchange) -> Reply:
    return cors.preflight(exchange.headers, methods)

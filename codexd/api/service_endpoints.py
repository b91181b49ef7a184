"""The endpoints that ask no model: models, health, metrics, usage, the OpenAPI document, the status page."""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec
import trio

from codexd import __version__, errors
from codexd.api.access import is_forwarded
from codexd.api.exchange import Document, Exchange, Reply, json
from codexd.api.journal import Journal
from codexd.api.pipeline import Pipeline
from codexd.api.routing import Route
from codexd.auth.session import Session
from codexd.errors import ApiError
from codexd.lowlevel import workers
from codexd.relay.relay import Client, write
from codexd.state.keys import Keys
from codexd.state.usage import Ledger
from codexd.system.memory import Room
from codexd.telemetry.metrics import CONTENT_TYPE, Gauges
from codexd.upstream.catalog import Catalog
from codexd.upstream.client import Upstream

PULSES = 4
PULSE_INTERVAL = 0.25
"""Seconds between pulses. The client sees from their times whether a proxy buffers."""


CREATED = 1_795_564_800
"""Unix seconds: the date of the catalogue that codexd ships, because the backend's own has no dates."""

SHOWN, FAILURES = 50, 5
"""Requests in progress and failures on the status page, at most."""

MAX_OUTPUT = 128_000
"""Tokens. OpenAI's published limit of these models; the catalogue has none."""


class _ModelObject(msgspec.Struct):
    """A model as in OpenAI's API, with the members by which clients of routers size their requests."""

    id: str
    context_length: int | None
    input_modalities: Sequence[str]
    output_modalities: Sequence[str] = ("text",)
    max_output: int = MAX_OUTPUT
    object: str = "model"
    created: int = CREATED
    owned_by: str = "openai"


class _ModelList(msgspec.Struct):
    data: list[_ModelObject]
    object: str = "list"


class _ModelInfo(msgspec.Struct):
    """A model as in Anthropic's API."""

    id: str
    display_name: str
    created_at: str
    max_input_tokens: int | None
    max_tokens: int = MAX_OUTPUT
    type: str = "model"
    lifecycle: str = "active"


class _ModelPage(msgspec.Struct):
    data: list[_ModelInfo]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class _Health(msgspec.Struct, omit_defaults=True):
    status: str
    version: str
    signed_in: bool
    uptime_seconds: int
    faults: Sequence[str] = ()


class _Pulse:
    """A short stream that shows whether a proxy on the way buffers events."""

    error: ApiError | None = None
    done = False

    async def stream(self, client: Client) -> None:
        await client.start([])
        for number in range(PULSES):
            await write(client, b"data: %d\n\n" % number)
            await trio.sleep(PULSE_INTERVAL)
        await client.end()


def _is_anthropic(exchange: Exchange) -> bool:
    return "anthropic-version" in exchange.headers


class ServiceEndpoints:
    """``routes_of_all`` returns all routes of the API, for the OpenAPI document; ``faults`` failed background tasks."""

    def __init__(
        self,
        pipeline: Pipeline,
        journal: Journal,
        session: Session,
        keys: Keys,
        catalog: Catalog,
        upstream: Upstream,
        ledger: Ledger,
        routes_of_all: Callable[[], Sequence[Route]],
        faults: Callable[[], Mapping[str, str]],
        room: Room,
    ) -> None:
        self._room = room
        self._pipeline = pipeline
        self._journal = journal
        self._session = session
        self._keys = keys
        self._catalog = catalog
        self._upstream = upstream
        self._ledger = ledger
        self._routes_of_all = routes_of_all
        self._faults = faults
        self._started = trio.current_time()

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/models", self.models),
            Route("GET", "/models/<path:name>", self.model),
            Route("GET", "/health", self.health),
            Route("GET", "/openapi.json", self.openapi, api=False),
            Route("GET", "/metrics", self.metrics, api=False),
            Route("GET", "/", self.status_page, api=False),
            Route("GET", "/docs", self.docs, api=False, keyless=True),
            Route("GET", "/docs/<path:page>", self.docs_page, api=False, keyless=True),
            Route("GET", "/api/codex/usage", self.usage, api=False),
        ]

    async def models(self, exchange: Exchange) -> Reply:
        """Lists the models; with `client_version`, as from the Codex CLI, returns the backend's catalogue."""
        if "client_version" in exchange.query:
            catalogue, etag = await self._catalog.document()
            return Document(catalogue, [("etag", etag)] if etag else [])
        names = self._listed(exchange)
        if _is_anthropic(exchange):
            return json(
                _ModelPage(list(map(self._info, names)), names[0] if names else None, names[-1] if names else None)
            )
        return json(_ModelList(list(map(self._object, names))))

    def _object(self, name: str) -> _ModelObject:
        model = self._catalog.resolve(name).model
        return _ModelObject(name, model.context_window, model.modalities)

    def _info(self, name: str) -> _ModelInfo:
        created = datetime.fromtimestamp(CREATED, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return _ModelInfo(name, name, created, self._catalog.resolve(name).model.context_window)

    def _listed(self, exchange: Exchange) -> list[str]:
        """Returns the listed models that the client's key may use."""
        key = exchange.record.key
        return [slug for slug in self._catalog.models.listed if key is None or self._keys.may_use(key, slug)]

    async def model(self, exchange: Exchange) -> Reply:
        """Returns one model."""
        name = exchange.names["name"]
        return json(self._info(name) if _is_anthropic(exchange) else self._object(name))

    async def usage(self, _: Exchange) -> Reply:
        """Returns the backend's usage document, at the path that the Codex CLI uses."""
        return Document(await self._upstream.usage_document())

    async def openapi(self, _: Exchange) -> Reply:
        """Returns the OpenAPI document."""
        # Imported here because it is rarely requested.
        from codexd.api import openapi

        return Document(openapi.document(self._routes_of_all(), __version__))

    async def status_page(self, exchange: Exchange) -> Reply:
        """Returns the status page (HTML): sign-in, limits, usage, and examples for clients."""
        # Imported here because it is rarely requested.
        from codexd.api import status_page

        signed_in, known, headers = self._session.describe(), self._upstream.limits(), exchange.headers
        in_progress = await self._journal.all_in_progress()
        failures = [each for each in self._journal.recent.errors() if not each.endpoint.startswith("/docs")]
        scheme = "https" if headers.get("x-forwarded-proto", "") == "https" else "http"
        return status_page.page(
            status_page.View(
                version=__version__,
                uptime=status_page.uptime(trio.current_time() - self._started),
                now=self._pipeline.clock(),
                base=f"{scheme}://{headers.get('host', '') or 'localhost'}/v1",
                key_required=self._keys.required,
                who=(signed_in.email or signed_in.account_id or "an account") if signed_in.signed_in else None,
                why=signed_in.why if signed_in.ended else None,
                streams=self._pipeline.open,
                lane=self._upstream.lane,
                websockets=self._upstream.websockets[0],
                windows=() if known is None else known.windows,
                models=self._listed(exchange),
                hours=self._ledger.hours(),
                in_progress=in_progress[:SHOWN],
                failures=failures[-FAILURES:],
                keys=self._ledger.by_key(days=7),
            )
        )

    async def docs(self, _: Exchange) -> Reply:
        """Redirects to the first page of the documentation."""
        from codexd.api import docs_pages  # here: rarely requested

        return docs_pages.start()

    async def docs_page(self, exchange: Exchange) -> Reply:
        """Returns a page of the documentation (HTML) for the version that is running."""
        from codexd.api import docs_pages

        return await workers.run(sys.maxsize, partial(docs_pages.page, exchange.names["page"]))

    async def metrics(self, exchange: Exchange) -> Reply:
        """Returns the metrics in Prometheus's text format, only to clients on this machine."""
        if exchange.record.client is not None or is_forwarded(exchange.headers):
            raise errors.only_local(exchange.path)
        return Document(self.metrics_text(), content_type=CONTENT_TYPE)

    def metrics_text(self) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        session, known = self._session, self._upstream.limits()
        websockets, idle = self._upstream.websockets
        return self._journal.metrics.render(
            Gauges(
                version=__version__,
                signed_in=session.signed_in,
                streams_open=self._pipeline.open,
                websockets=websockets,
                websockets_idle=idle,
                refreshes=session.refreshes,
                refresh_failures=session.refresh_failures,
                memory_used=self._room.used,
                memory_limit=self._room.size,
                windows=() if known is None else known.windows,
            )
        )

    async def health(self, exchange: Exchange) -> Reply:
        """Returns the health of codexd; with `ready=1`, 503 if requests would fail for lack of a token."""
        query = exchange.query
        if query.get("stream", "0") not in ("0", "false"):
            exchange.record.streamed = True
            return _Pulse()
        signed_in = self._session.signed_in
        ready = self._session.ready or query.get("ready", "0") in ("0", "false")
        uptime = int(trio.current_time() - self._started)
        found = json(_Health("ok" if signed_in else "signed out", __version__, signed_in, uptime, list(self._faults())))
        return found if ready else found._replace(status=503)

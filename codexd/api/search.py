"""The search endpoint of the Codex CLI, passed on: it calls ``<base URL>/alpha/search`` of its provider."""

from functools import partial

import msgspec
import trio

from codexd import errors
from codexd.api.exchange import Document, Exchange, Reply
from codexd.api.pipeline import Pipeline
from codexd.api.routing import Route
from codexd.lowlevel import workers
from codexd.protocol import members
from codexd.protocol.raw import encoded, plain
from codexd.upstream.account_tools import AccountTools


class SearchEndpoints:
    def __init__(self, pipeline: Pipeline, account: AccountTools) -> None:
        self._pipeline = pipeline
        self._account = account

    def routes(self) -> list[Route]:
        return [Route("POST", "/alpha/search", self.search)]

    async def search(self, exchange: Exchange) -> Reply:
        """Searches the web for the Codex CLI. Request and answer have the backend's format."""
        record = exchange.record
        given = await exchange.body()
        found = await workers.run(len(given), partial(members.split, given))
        name = plain(found.get("model"))
        if not name:
            raise errors.bad_request("model must name a model; GET /v1/models lists them.", param="model")
        record.model = self._pipeline.catalog.resolve(name).model.slug
        self._pipeline.admit_model(record, record.model)
        wanted = found | {"model": encoded(record.model)}
        body = await workers.run(len(given), partial(msgspec.json.encode, wanted))
        record.timings.asked, record.timings.tries = trio.current_time(), 1
        answer = await self._account.search(body)
        record.timings.status = 200
        return Document(answer.body, answer.headers)

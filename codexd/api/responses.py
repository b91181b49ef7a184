"""The endpoints of the Responses API, and the store of its responses."""

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import Raw

from codexd import errors
from codexd.api.exchange import BYTES, Document, Exchange, Reply, json
from codexd.api.fallback import FallbackAnswer
from codexd.api.pipeline import Context, Dialect, Pipeline, Prepared
from codexd.api.record import Record
from codexd.api.routing import Route
from codexd.lowlevel import workers
from codexd.protocol import decoding, parameters
from codexd.protocol.conversion import DONE, Conversion
from codexd.protocol.convert import Converted
from codexd.protocol.raw import RawObject
from codexd.protocol.responses import stored
from codexd.protocol.responses.convert import from_responses
from codexd.protocol.responses.stream import ECHOED, ResponsesStream, failure_document
from codexd.protocol.responses.truncation import Truncation
from codexd.protocol.responses.wire import REQUEST, ResponsesRequest
from codexd.protocol.stops import Cutoff, limits_of
from codexd.protocol.tokens import counted, prompt_tokens
from codexd.relay.fanout import Fanout
from codexd.relay.relay import Relay
from codexd.state.responses import Entry, ResponseStore, Stored
from codexd.system.memory import Hold


class _Identified(msgspec.Struct):
    id: str


class _Deleted(msgspec.Struct):
    id: str
    object: str = "response"
    deleted: bool = True


class _InputTokens(msgspec.Struct):
    input_tokens: int
    object: str = "response.input_tokens"


class Understood(NamedTuple):
    """A request with its complete input; the first ``earlier`` items come from its ``previous_response_id``.

    ``echo`` holds the members that the answer repeats. ``on_done`` gets the final response object. ``websocket``:
    errors carry the status, and the stream has no ``[DONE]``.
    """

    asked: ResponsesRequest
    input: list[RawObject]
    earlier: int
    echo: RawObject
    on_done: Callable[[bytes], None] = lambda _: None
    websocket: bool = False


class Last:
    """The last response of a websocket, stored or not; ``previous_response_id`` may name it.

    ``evicted``: the websocket has to end, for others.
    """

    evicted = False

    def __init__(self, memory: Hold) -> None:
        self._memory = memory
        self.response: Entry | None = None

    def keep(self, entry: Entry | None) -> None:
        """Keeps a response in place of the one before, or none if there is no memory for it."""
        self._memory.release()
        self.response = entry if entry is not None and self._memory.take(entry.size) else None


def understood(
    asked: ResponsesRequest,
    members: RawObject,
    before: Stored | None = None,
    lookup: Callable[[str], RawObject | None] = lambda _: None,
    limit: int = sys.maxsize,
) -> Understood:
    """Returns the request with the items of the response that it continues before its own input.

    ``lookup`` returns the stored item that a reference names. Raises ApiError 404 if one names none, and 413 if all
    that are named have more bytes than ``limit``.
    """
    own = stored.resolved(stored.as_items(asked.input), lookup, limit)
    if not isinstance(asked.input, str):
        asked = msgspec.structs.replace(asked, input=own)
    earlier: list[RawObject] = []
    if before is not None:
        earlier = [*before.input, *before.output()]
        asked = msgspec.structs.replace(asked, input=[*earlier, *own])
    echo = {key: members[key] for key in ECHOED if key in members and bytes(members[key]) != b"null"}
    echo["store"] = Raw(b"false" if asked.store is False else b"true")
    return Understood(asked, [*earlier, *own], len(earlier), echo)


def convert(found: Understood, context: Context) -> Converted:
    """Returns the backend request. Raises ApiError 400."""
    return from_responses(found.asked, context.resolved, context.settings, earlier=found.earlier)


def prepare(found: Understood, context: Context) -> Prepared:
    """Returns the backend request and its conversion. Raises ApiError 400."""
    converted = convert(found, context)
    wanted = limits_of(None, ("max_output_tokens", found.asked.max_output_tokens))
    # Only if a limit needs it.
    tokens = int if wanted.max_tokens is None else counted(converted.request, now=context.large)

    def conversion() -> Conversion:
        truncation = Truncation(Cutoff(wanted)) if wanted.max_tokens is not None else None
        stream = ResponsesStream(
            found.echo, converted.names, truncation, tokens, found.on_done, websocket=found.websocket
        )
        return Conversion(stream, b"" if found.websocket else DONE)

    return Prepared([(converted, conversion)], lossless=True)


RESPONSES = Dialect("responses", REQUEST, parameters.RESPONSES, None, failure_document, prepare)


class ResponsesEndpoints:
    def __init__(self, pipeline: Pipeline, store: ResponseStore) -> None:
        self._pipeline = pipeline
        self._store = store

    @property
    def max_items(self) -> int:
        return self._pipeline.config.server.max_items

    def routes(self) -> list[Route]:
        one = "/responses/<id>"
        return [
            Route("POST", "/responses", self.responses, RESPONSES, streams=True),
            Route("POST", "/responses/input_tokens", self.input_tokens, RESPONSES),
            Route("POST", "/responses/compact", self.compact, RESPONSES),
            Route("GET", one, self.response),
            Route("DELETE", one, self.delete),
            Route("GET", f"{one}/input_items", self.input_items),
            Route("POST", f"{one}/cancel", self.cancel),
        ]

    async def responses(self, exchange: Exchange) -> Reply:
        """Creates a response (OpenAI's Responses API)."""
        found, context = await self._read(exchange)
        found = found._replace(on_done=partial(self._keep, found, None, exchange.record.weight))
        return await self._pipeline.answer(exchange.record, context, partial(prepare, found))

    async def _read(self, exchange: Exchange) -> tuple[Understood, Context]:
        body = await exchange.body()
        members, asked = await self._pipeline.decode(body, REQUEST)
        return await self.understand(exchange.record, asked, members, body)

    async def understand(
        self, record: Record, asked: ResponsesRequest, members: RawObject, body: bytes, last: Last | None = None
    ) -> tuple[Understood, Context]:
        """Returns the request with what it continues, and its context; ``last`` is the websocket's.

        Raises ApiError 400, 403, 404, 413 or 503.
        """
        context = self._pipeline.understand(record, asked, members, RESPONSES, body)
        entry = None
        if (name := asked.previous_response_id) is not None:
            entry = last.response if last and last.response and last.response.id == name else self._store.get(name)
            if entry is None:
                raise errors.no_such_response(name, "previous_response_id")
            record.weight += entry.length
            if not record.memory.take(BYTES * entry.length):
                raise errors.no_memory(record.memory.room.size)
        items = [] if isinstance(asked.input, str) else asked.input
        names = await workers.run(record.weight, partial(stored.references, items))
        sources = self._store.sources(names)
        limit = self._pipeline.config.server.max_body_bytes
        if record.weight > limit and record.weight > len(body):
            raise errors.too_large_together(limit)

        def work() -> Understood:
            before = None if entry is None else entry.stored()
            named = {name: item for source in sources for name, item in source.items().items()}
            return understood(asked, members, before, named.get, limit)

        # What was prepared for a large request is for this one too.
        context = context._replace(large=record.weight > workers.LARGE)
        return await workers.run(record.weight + sum(source.length for source in sources), work), context

    async def open(
        self, record: Record, found: Understood, context: Context, last: Last
    ) -> Relay | Fanout | FallbackAnswer:
        """Returns what streams an answer on a websocket. Raises ApiError 400."""
        found = found._replace(on_done=partial(self._keep, found, last, record.weight), websocket=True)
        opened = await self._pipeline.open_model_answer(record, context, partial(prepare, found))
        return opened if isinstance(opened, FallbackAnswer) else opened.body

    def warm(self, record: Record, found: Understood, context: Context, last: Last) -> bytes:
        """Returns the events of a response without output, which the next request can continue. Raises ApiError 400."""
        self._pipeline.refuse_drops(record)
        head = {"id": f"resp_{context.id}", "created_at": context.created, "model": context.resolved.model.slug}
        keep = partial(self._keep, found, last, record.weight)
        return ResponsesStream(found.echo, on_done=keep).warm(msgspec.json.encode(head))

    def _keep(self, found: Understood, last: Last | None, weight: int, done: bytes) -> None:
        if found.asked.store is False and last is None:
            return
        name = decoding.decode(done, type=_Identified).id
        entry = self._store.entry(name, found.input, done, weight)

        def keep() -> None:
            if found.asked.store is not False:
                self._store.add(entry)
            if last is not None:
                last.keep(self._store.private(entry))

        workers.on_loop(keep)

    async def input_tokens(self, exchange: Exchange) -> Reply:
        """Estimates the number of input tokens. The backend has no such endpoint for ChatGPT accounts."""
        found, context = await self._read(exchange)
        count = partial(_tokens_of, found, context)
        return json(_InputTokens(await workers.run(exchange.record.weight, count)))

    async def compact(self, exchange: Exchange) -> Reply:
        """Compacts a conversation with the model; returns the input items to continue with."""
        found, context = await self._read(exchange)
        asked = msgspec.structs.replace(
            found.asked, input=[*found.input, stored.COMPACTION_TRIGGER], max_output_tokens=None
        )
        work = partial(prepare, found._replace(asked=asked, echo={}), context)
        prepared = await workers.run(exchange.record.weight, work)
        relay = self._pipeline.open_answer(exchange.record, prepared)
        assert isinstance(relay, Relay)  # noqa: S101 - one answer
        collected, headers = await relay.collect()
        made = await workers.run(exchange.record.weight, partial(_compacted, collected, found.input))
        return Document(made, headers)

    # --- stored responses

    async def response(self, exchange: Exchange) -> Reply:
        """Returns a stored response."""
        return Document(bytes((await self._stored(exchange)).response))

    async def delete(self, exchange: Exchange) -> Reply:
        """Deletes a stored response."""
        entry = self._entry(exchange)
        self._store.delete(entry.id)
        return json(_Deleted(entry.id))

    async def input_items(self, exchange: Exchange) -> Reply:
        """Lists the input items of a stored response."""
        entry, query = self._entry(exchange), exchange.query
        limit = query.get("limit", "20")
        if not limit.isdecimal():
            raise errors.bad_request("limit must be a number.", param="limit")
        order, after = query.get("order", "desc"), query.get("after")

        def work() -> Document:
            return json(stored.input_items(entry.stored().input, limit=int(limit[:6]), order=order, after=after))

        return await workers.run(entry.size, work)

    async def cancel(self, exchange: Exchange) -> Reply:
        """Always refused: codexd runs no background responses."""
        self._entry(exchange)
        raise errors.bad_request(
            "Only background responses can be cancelled, and codexd has none. To end a stream, close its connection.",
            code="not_cancellable",
        )

    async def _stored(self, exchange: Exchange) -> Stored:
        entry = self._entry(exchange)
        return await workers.run(entry.size, entry.stored)

    def _entry(self, exchange: Exchange) -> Entry:
        found = self._store.get(exchange.names["id"])
        if found is None:
            raise errors.no_such_response(exchange.names["id"])
        return found


def _tokens_of(found: Understood, context: Context) -> int:
    return prompt_tokens(convert(found, context).request)


def _compacted(collected: bytes, before: list[RawObject]) -> bytes:
    return msgspec.json.encode(stored.compacted(collected, before))

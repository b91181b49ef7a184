"""The endpoints of the Responses API, over a store of what was answered."""

import secrets
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import Raw
from quart import request

from codexd import errors
from codexd.api.answers import Answers
from codexd.exchange import Document, Exchange, Page, Record, Reply, Route, decode, json
from codexd.protocol import conversion as conversions
from codexd.protocol import cut, parameters, responses, state
from codexd.protocol import request as convert
from codexd.protocol.conversion import Conversion
from codexd.protocol.cut import limits as limits_of
from codexd.protocol.estimate import prompt_tokens
from codexd.protocol.models import Resolved
from codexd.protocol.passthrough import ECHOED, ResponsesStream
from codexd.protocol.responses import RawObject, ResponsesRequest
from codexd.protocol.truncation import Truncation
from codexd.relay.relay import Relay
from codexd.state.responses import ResponseStore, Stored


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
    """A request and its model; its whole input, of which so many items are ``earlier``; what the answer repeats."""

    asked: ResponsesRequest
    resolved: Resolved
    input: list[RawObject]
    earlier: int
    echo: RawObject


class Last:
    """The last response of a connection that has a memory of its own."""

    response: Stored | None = None


class ResponsesEndpoints:
    def __init__(self, answers: Answers, store: ResponseStore) -> None:
        self._answers = answers
        self._store = store

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/responses", self.responses),
            Route("POST", "/responses/input_tokens", self.input_tokens),
            Route("POST", "/responses/compact", self.compact),
        ]

    def pages(self) -> list[Page]:
        one = "/responses/<id>"
        return [
            Page("GET", one, self.response, "A stored response."),
            Page("DELETE", one, self.delete, "Delete a stored response."),
            Page("GET", f"{one}/input_items", self.input_items, "The input of a stored response."),
            Page("POST", f"{one}/cancel", self.cancel, "Refused: nothing runs in the background."),
        ]

    async def responses(self, exchange: Exchange) -> Reply:
        """A response, as OpenAI's Responses API has it."""
        body = await exchange.body()
        record = exchange.record
        understood = self.understand(record, decode(responses.REQUEST, body), body)
        return await self._answers.respond(record, self.relay(record, understood))

    def understand(self, record: Record, asked: ResponsesRequest, body: bytes, last: Last | None = None) -> Understood:
        """``last`` is what the client's connection remembers. Raises ApiError 400 or 404."""
        resolved = self._answers.understand(record, asked, body, parameters.RESPONSES)
        own = state.as_items(asked.input)
        earlier: list[RawObject] = []
        if (name := asked.previous_response_id) is not None:
            before = last.response if last and last.response and last.response.id == name else self._store.get(name)
            if before is None:
                raise errors.no_such_response(name, "previous_response_id")
            earlier = [*before.input, *before.output()]
            asked = msgspec.structs.replace(asked, input=[*earlier, *own])
        given = msgspec.json.decode(body, type=RawObject)
        echo = {key: given[key] for key in ECHOED if key in given and bytes(given[key]) != b"null"}
        echo["store"] = Raw(b"false" if asked.store is False else b"true")
        return Understood(asked, resolved, [*earlier, *own], len(earlier), echo)

    def relay(self, record: Record, understood: Understood, last: Last | None = None) -> Relay:
        """The answer, to be streamed or collected; with ``last`` a websocket's. Raises ApiError 400."""
        converted = self._convert(understood)
        wanted = limits_of(None, ("max_output_tokens", understood.asked.max_output_tokens))

        def conversion() -> Conversion:
            truncation = Truncation(cut.Cut(wanted)) if wanted.max_tokens is not None else None
            # Only what may be asked for: it keeps the request for as long as the answer takes.
            counted = partial(prompt_tokens, converted.request) if truncation else int
            keep = partial(self._keep, understood, last)
            own = last is not None
            stream = ResponsesStream(understood.echo, converted.names, truncation, counted, keep, websocket=own)
            return conversions.responses(stream, b"" if own else conversions.DONE)

        return self._answers.single(record, converted, conversion)

    def warm(self, record: Record, understood: Understood, last: Last) -> bytes:
        """An answer that nobody generates: it gives its input a name, which the next request then goes on from."""
        self._answers.refuse_drops(record)
        created = int(self._answers.clock())
        head = {"id": f"resp_{secrets.token_hex(24)}", "created_at": created, "model": understood.resolved.model.slug}
        keep = partial(self._keep, understood, last)
        return ResponsesStream(understood.echo, on_done=keep).warm(msgspec.json.encode(head))

    def _convert(self, understood: Understood) -> convert.Converted:
        asked, resolved = understood.asked, understood.resolved
        return convert.from_responses(asked, resolved, self._answers.settings(resolved), earlier=understood.earlier)

    def _keep(self, understood: Understood, last: Last | None, done: bytes) -> None:
        name = msgspec.json.decode(done, type=_Identified).id
        if understood.asked.store is not False:
            self._store.add(name, understood.input, done)
        if last is not None:
            made = Stored(name, self._answers.clock(), understood.input, Raw(done))
            config = self._answers.config
            bound = max(config.storage.response_bytes, config.server.max_body_bytes)
            last.response = made if made.size() <= bound else None

    async def response(self, id: str) -> Document:  # noqa: A002 - the API's own word
        return Document(bytes(self._stored(id).response))

    async def delete(self, id: str) -> Document:  # noqa: A002 - the API's own word
        self._stored(id)
        self._store.delete(id)
        return json(_Deleted(id))

    async def input_items(self, id: str) -> Document:  # noqa: A002 - the API's own word
        found, asked = self._stored(id), request.args
        limit = asked.get("limit", "20")
        if not limit.isdecimal():
            raise errors.bad_request("limit must be a number.", param="limit")
        page = state.input_items(
            found.input, limit=int(limit[:6]), order=asked.get("order", "desc"), after=asked.get("after")
        )
        return json(page)

    async def cancel(self, id: str) -> Document:  # noqa: A002 - the API's own word
        """There is nothing to cancel: what is stored is complete, and what streams ends with its connection."""
        self._stored(id)
        raise errors.bad_request(
            "Only background responses can be cancelled, and codexd has none: to end a stream, close its connection.",
            code="not_cancellable",
        )

    async def input_tokens(self, exchange: Exchange) -> Reply:
        """An estimate: the backend has no such endpoint for this sign-in."""
        body = await exchange.body()
        understood = self.understand(exchange.record, decode(responses.REQUEST, body), body)
        return json(_InputTokens(prompt_tokens(self._convert(understood).request)))

    async def compact(self, exchange: Exchange) -> Reply:
        """The conversation, made short by the model: input items to go on with."""
        body = await exchange.body()
        record = exchange.record
        understood = self.understand(record, decode(responses.REQUEST, body), body)
        asked = msgspec.structs.replace(understood.asked, input=[*understood.input, state.COMPACTION_TRIGGER])
        converted = self._convert(understood._replace(asked=asked))
        stream = partial(ResponsesStream, {}, converted.names)
        relay = self._answers.single(record, converted, lambda: conversions.responses(stream()))
        collected, headers = await relay.collect()
        return Document(msgspec.json.encode(state.compacted(collected, understood.input)), headers)

    def _stored(self, id: str) -> Stored:  # noqa: A002 - the API's own word
        found = self._store.get(id)
        if found is None:
            raise errors.no_such_response(id)
        return found

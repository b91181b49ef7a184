"""The endpoints of the Responses API, over a store of what was answered."""

from functools import partial

import msgspec
from msgspec import Raw
from quart import Response, request

from codexd import errors
from codexd.api.answers import Answers
from codexd.exchange import Route, decode, document, json, read_body, record_of_request
from codexd.protocol import conversion as conversions
from codexd.protocol import cut, parameters, responses, state
from codexd.protocol import request as convert
from codexd.protocol.conversion import Conversion
from codexd.protocol.cut import limits as limits_of
from codexd.protocol.estimate import prompt_tokens
from codexd.protocol.passthrough import ECHOED, ResponsesStream
from codexd.protocol.responses import RawObject, ResponsesRequest
from codexd.protocol.truncation import Truncation
from codexd.store import ResponseStore, Stored


class _Identified(msgspec.Struct):
    id: str


class _Deleted(msgspec.Struct):
    id: str
    object: str = "response"
    deleted: bool = True


class _InputTokens(msgspec.Struct):
    input_tokens: int
    object: str = "response.input_tokens"


class ResponsesEndpoints:
    def __init__(self, answers: Answers, store: ResponseStore) -> None:
        self._answers = answers
        self._store = store

    def routes(self) -> list[Route]:
        one = "/responses/<id>"
        return [
            Route("POST", "/responses", self.responses),
            Route("POST", "/responses/input_tokens", self.input_tokens),
            Route("POST", "/responses/compact", self.compact),
            Route("GET", one, self.response),
            Route("DELETE", one, self.delete),
            Route("GET", f"{one}/input_items", self.input_items),
            Route("POST", f"{one}/cancel", self.cancel),
        ]

    async def responses(self) -> Response:
        body = await read_body()
        asked = decode(responses.REQUEST, body)
        record = record_of_request()
        resolved = self._answers.understand(record, asked, body, parameters.RESPONSES)
        asked, whole, earlier = self._with_history(asked)
        converted = convert.from_responses(asked, resolved, self._answers.settings(resolved), earlier=earlier)
        given = msgspec.json.decode(body, type=RawObject)
        echo = {key: given[key] for key in ECHOED if key in given and bytes(given[key]) != b"null"}
        stored = asked.store is not False
        echo["store"] = Raw(b"true" if stored else b"false")
        wanted = limits_of(None, ("max_output_tokens", asked.max_output_tokens))

        def keep(done: bytes) -> None:
            if stored:
                self._store.add(msgspec.json.decode(done, type=_Identified).id, whole, done)

        def conversion() -> Conversion:
            truncation = Truncation(cut.Cut(wanted)) if wanted.max_tokens is not None else None
            counted = partial(prompt_tokens, converted.request)
            return conversions.responses(ResponsesStream(echo, converted.names, truncation, counted, keep))

        return await self._answers.answer(record, converted, conversion)

    def _with_history(self, asked: ResponsesRequest) -> tuple[ResponsesRequest, list[RawObject], int]:
        """The request with the turns before it, its whole input, and how many items of that are earlier ones.

        Raises ApiError 400 when these are not there.
        """
        own = state.as_items(asked.input)
        if asked.previous_response_id is None:
            return asked, own, 0
        before = self._store.get(asked.previous_response_id)
        if before is None:
            raise errors.no_such_response(asked.previous_response_id, "previous_response_id")
        whole = [*before.input, *before.output(), *own]
        return msgspec.structs.replace(asked, input=whole), whole, len(whole) - len(own)

    async def response(self, id: str) -> Response:  # noqa: A002 - the API's own word
        return document(bytes(self._stored(id).response), [])

    async def delete(self, id: str) -> Response:  # noqa: A002 - the API's own word
        self._stored(id)
        self._store.delete(id)
        return json(_Deleted(id))

    async def input_items(self, id: str) -> Response:  # noqa: A002 - the API's own word
        found, asked = self._stored(id), request.args
        limit = asked.get("limit", "20")
        if not limit.isdecimal():
            raise errors.bad_request("limit must be a number.", param="limit")
        page = state.input_items(
            found.input, limit=int(limit[:6]), order=asked.get("order", "desc"), after=asked.get("after")
        )
        return json(page)

    async def cancel(self, id: str) -> Response:  # noqa: A002 - the API's own word
        """There is nothing to cancel: what is stored is complete, and what streams ends with its connection."""
        self._stored(id)
        raise errors.bad_request(
            "Only background responses can be cancelled, and codexd has none: to end a stream, close its connection.",
            code="not_cancellable",
        )

    async def input_tokens(self) -> Response:
        """An estimate: the backend has no such endpoint for this sign-in."""
        body = await read_body()
        asked = decode(responses.REQUEST, body)
        resolved = self._answers.understand(record_of_request(), asked, body, parameters.RESPONSES)
        asked, _, earlier = self._with_history(asked)
        converted = convert.from_responses(asked, resolved, self._answers.settings(resolved), earlier=earlier)
        return json(_InputTokens(prompt_tokens(converted.request)))

    async def compact(self) -> Response:
        """The conversation, made short by the model: input items to go on with."""
        body = await read_body()
        asked = decode(responses.REQUEST, body)
        record = record_of_request()
        resolved = self._answers.understand(record, asked, body, parameters.RESPONSES)
        asked, whole, earlier = self._with_history(asked)
        asked = msgspec.structs.replace(asked, input=[*whole, state.COMPACTION_TRIGGER])
        converted = convert.from_responses(asked, resolved, self._answers.settings(resolved), earlier=earlier)
        relay = self._answers.single(
            record, converted, lambda: conversions.responses(ResponsesStream({}, converted.names))
        )
        collected, headers = await relay.collect()
        return document(msgspec.json.encode(state.compacted(collected, whole)), headers)

    def _stored(self, id: str) -> Stored:  # noqa: A002 - the API's own word
        found = self._store.get(id)
        if found is None:
            raise errors.no_such_response(id)
        return found

"""The Responses API over a websocket: several responses on one connection, one at a time.

    state      | left by                                                         | to
    -----------|-----------------------------------------------------------------|----------
    handshake  | admitted, or an HTTP refusal (401, 403)                         | idle, closed
    idle       | a ``response.create`` frame, which is admitted again            | answering
    idle       | ``evict``: no connection is left for others                     | closed 1013
    idle       | a drain, or ``LIFETIME`` (after an ``error`` event)             | closed 1001
    answering  | the last event, or an ``error`` event with its HTTP status      | idle
    any        | more than ``MAX_WAITING`` frames wait                           | closed 1008
    any        | the client disconnects                                          | closed

A frame of the client is the body of ``POST /v1/responses`` with a ``type``; each frame to it is one event, without
``[DONE]``. ``previous_response_id`` also finds the connection's last response if that was not stored (``Last``).
"""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec
import structlog
import trio

from codexd import errors
from codexd.api.access import AccessControl, client_of
from codexd.api.budget import Budget
from codexd.api.capacity import Capacity
from codexd.api.exchange import TOO_DEEP, failed, take
from codexd.api.journal import Journal
from codexd.api.pipeline import Context
from codexd.api.record import Record, new_id
from codexd.api.responses import Last, ResponsesEndpoints, Understood
from codexd.errors import ApiError, ErrorObject
from codexd.lowlevel import workers
from codexd.protocol import decoding, sse
from codexd.protocol.members import RequestDecoder, split
from codexd.protocol.raw import RawObject, plain
from codexd.protocol.responses.stream import own_error
from codexd.protocol.responses.wire import REQUEST, ResponsesRequest
from codexd.relay.relay import Header
from codexd.state.keys import Keys
from codexd.system.memory import Hold, Room

if TYPE_CHECKING:
    from quart import Response, Websocket

LIFETIME = 3600.0
"""Seconds that a connection may last, as at OpenAI. An answer in progress is finished first."""

MAX_WAITING = 4
"""Requests that may wait while one is answered. A client that sends more is disconnected."""

GOING_AWAY, TOO_BUSY, TRY_AGAIN = 1001, 1008, 1013

log = structlog.get_logger()


class _Frame(msgspec.Struct):
    type: Literal["response.create"]
    generate: bool = True


class _Error(msgspec.Struct):
    status: int
    error: ErrorObject
    headers: dict[str, str]
    type: str = "error"


class _Head(msgspec.Struct):
    type: str = ""


_FRAME = RequestDecoder(_Frame)
_HEAD = decoding.Decoder(_Head)

NOTICES = frozenset({"response.processed", "response.interrupt", "ping", "pong"})
"""Frames that ask for no response: an error in reply would be read as part of the next one. An answer in progress is
not interrupted, which the official client accepts."""

MAX_NOTICE = 4096
"""Characters; a longer frame is a request."""

_NOT_OF_THE_REQUEST = ("type", "generate", "stream")


class _Message:
    """A frame of the client that waits or is answered, and the memory that it takes."""

    __slots__ = ("frame", "memory")

    def __init__(self, frame: str | bytes, memory: Hold) -> None:
        self.frame = frame
        self.memory = memory


class _Events:
    """The client of a relay, over a websocket: one event a frame. SSE comments (keep-alives) are not sent."""

    def __init__(self, send: Callable[[str], Awaitable[None]]) -> None:
        self._send = send
        self._decoder = sse.EventDecoder()

    async def start(self, headers: Sequence[Header]) -> None:
        pass

    def write_now(self, data: bytes) -> bytes:
        return data

    async def write_rest(self, rest: memoryview | bytes) -> None:
        for event in self._decoder.feed(bytes(rest)):
            await self._send(event.decode())

    async def end(self) -> None:
        pass


class ResponsesWebsocket:
    """Serves websockets. Each request is admitted again, because its key may have been revoked."""

    def __init__(
        self,
        endpoints: ResponsesEndpoints,
        access: AccessControl,
        keys: Keys,
        budget: Budget,
        journal: Journal,
        capacity: Capacity,
        room: Room,
    ) -> None:
        self._capacity = capacity
        self._room = room
        self._budget = budget
        self._endpoints = endpoints
        self._access = access
        self._keys = keys
        self._journal = journal
        self._idle: dict[trio.CancelScope, Last] = {}
        self._draining = False
        self.connections = 0

    def drain(self) -> None:
        """Closes idle connections; answers in progress are finished first."""
        self._draining = True
        for waiting in self._idle:
            waiting.cancel()

    def evict(self) -> bool:
        """Ends the connection that has been idle for longest, for a new one; returns whether there was one."""
        if not self._idle:
            return False
        oldest = next(iter(self._idle))
        self._idle.pop(oldest).evicted = True
        oldest.cancel()
        return True

    async def serve(self) -> "Response | None":
        try:
            self._admit()
        except ApiError as error:
            record = _record()
            with self._journal.entry(record):
                record.status, record.complete = error.status, True
                return _refusal(error, record)
        self.connections += 1
        try:
            await self._converse()
        finally:
            self.connections -= 1
        return None

    async def _converse(self) -> None:
        await _websocket().accept()
        frames, queue = trio.open_memory_channel[_Message](MAX_WAITING)
        code, why = TOO_BUSY, f"more than {MAX_WAITING} requests are waiting"

        async def answer_all() -> None:
            nonlocal code, why
            code, why = await self._answer_all(queue)
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_all)
                while True:
                    # Read during an answer too: otherwise a disconnect goes unnoticed.
                    message = _Message(await _websocket().receive() or "", self._room.hold())
                    if not message.memory.take(len(message.frame)):
                        code, why = TRY_AGAIN, "no memory is left for another request (server.memory_mb)"
                        break
                    try:
                        frames.send_nowait(message)
                    except trio.WouldBlock:
                        message.memory.release()
                        break
                nursery.cancel_scope.cancel()
        finally:
            with contextlib.suppress(trio.WouldBlock):
                while True:
                    queue.receive_nowait().memory.release()
        # Only after the writer has ended: the host does not order a close and a concurrent event.
        await _websocket().close(code, why)

    async def _answer_all(self, queue: "trio.MemoryReceiveChannel[_Message]") -> tuple[int, str]:
        """Answers requests until the connection has to end; returns the code and the reason to close it with."""
        ends = trio.current_time() + LIFETIME
        last = Last(self._room.hold())
        try:
            while (message := await self._next(queue, ends, last)) is not None:
                try:
                    await self._answer(message, last)
                finally:
                    message.memory.release()
        finally:
            # The ended task may be in a reference cycle; this releases its large part at once.
            last.keep(None)
        if self._draining:
            return GOING_AWAY, "codexd is shutting down"
        if last.evicted:
            return TRY_AGAIN, "this idle connection was closed to make room for other clients; open a new one"
        await _send_error(errors.websocket_expired(LIFETIME), Record(new_id()))
        return GOING_AWAY, "this connection is too old; open a new one"

    async def _next(self, queue: "trio.MemoryReceiveChannel[_Message]", ends: float, last: Last) -> "_Message | None":
        with trio.CancelScope(deadline=ends) as waiting:
            self._idle[waiting] = last
            try:
                if not self._draining:
                    return await queue.receive()
            finally:
                self._idle.pop(waiting, None)
        return None

    async def _answer(self, message: "_Message", last: Last) -> None:
        if _is_notice(message.frame):
            return
        record = _record()
        self._capacity.enter()
        with structlog.contextvars.bound_contextvars(request_id=record.id), self._journal.entry(record):
            try:
                record.memory = message.memory
                record.key = self._admit()
                self._capacity.check()
                with self._keys.counted(record.key):
                    record.status = 200
                    await self._respond(message, record, last)
            except ApiError as error:
                await _send_error(error, record)
            except TOO_DEEP:
                await _send_error(errors.too_deep(), record)
            except Exception as error:
                log.error("internal error while handling a request", exc_info=error)
                await _send_error(errors.internal(record.id), record)
            finally:
                self._capacity.leave(1 + record.others)

    def _admit(self) -> str | None:
        """Returns the name of the client's key. Raises ApiError 401, 403 or 429."""
        name = self._access.admit_websocket(_websocket().headers, _websocket().scope.get("server"))
        if name is not None:
            self._budget.admit(name)
        return name

    async def _respond(self, message: "_Message", record: Record, last: Last) -> None:
        frame, message.frame = message.frame, ""
        data = await workers.run(len(frame), frame.encode) if isinstance(frame, str) else frame
        del frame
        record.weight = len(data)
        await take(record.memory, data, self._endpoints.max_items)
        members, asked, generate = await workers.run(len(data), partial(self._decoded, data))
        before = last.response
        continued = before is not None and plain(members.get("previous_response_id")) == before.id
        try:
            found, context = await self._endpoints.understand(record, asked, members, data, last)
            await self._stream(found, context, record, last, generate=generate)
        except ApiError:
            if continued:
                last.keep(None)
            raise
        if continued and record.error is not None and last.response is before:
            last.keep(None)  # as in OpenAI's API: the connection no longer holds what failed to be continued

    def _decoded(self, data: bytes) -> tuple[RawObject, ResponsesRequest, bool]:
        """Returns the members of a frame, the request that they are, and whether an answer is wanted."""
        members = split(data)
        generate = _FRAME.decode(members).generate
        for name in _NOT_OF_THE_REQUEST:
            members.pop(name, None)
        return members, REQUEST.decode(members), generate

    async def _stream(self, found: Understood, context: Context, record: Record, last: Last, *, generate: bool) -> None:
        record.streamed = True
        events = _Events(_websocket().send)
        if not generate:
            await events.write_rest(self._endpoints.warm(record, found, context, last))
            record.complete = True
            return
        relay = await self._endpoints.open(record, found, context, last)
        try:
            await relay.stream(events)
        finally:
            # An error that was sent completes the response too; otherwise the client has disconnected.
            record.complete = relay.done or relay.error is not None
            if relay.error is not None:
                record.fail(relay.error)


def _is_notice(frame: str | bytes) -> bool:
    """Returns whether a frame tells something and asks for nothing, such as that an event was processed."""
    if len(frame) > MAX_NOTICE:
        return False
    try:
        return _HEAD.decode(frame).type in NOTICES
    except msgspec.DecodeError:
        return False


def _websocket() -> "Websocket":
    """Returns the websocket that this task serves. Quart is imported only where one is (``quart_app``)."""
    from quart import websocket

    return websocket


def _record() -> Record:
    record = Record(new_id(), "WS", _websocket().path, "/responses")
    record.client = client_of(_websocket().scope.get("client"), _websocket().headers)
    return record


def _refusal(error: ApiError, record: Record) -> "Response":
    from quart import Response

    document = failed(error, record)
    response = Response(document.body, document.status, content_type=document.content_type)
    response.headers.update(dict(document.headers))
    return response


async def _send_error(error: ApiError, record: Record) -> None:
    record.status = error.status
    record.fail(error)
    await _websocket().send(msgspec.json.encode(_Error(error.status, own_error(error), error.all_headers())).decode())
    record.complete = True

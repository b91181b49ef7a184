"""One API request and its answer, without ASGI.

    state    | left by                                                                   | to
    ---------|---------------------------------------------------------------------------|-------------------
    new      | ``answer`` or ``start`` of the handler                                    | ``begun``
    begun    | the end of ``answer``; ``end``                                            | ended
    any      | the client leaves (``StreamClosed``): the handler is cancelled            | ended
    any      | the handler returns or raises before the end: the connection is closed    | ended

ASGI passes a request through a channel, two tasks and Quart's context, and checks an answer's headers three times; that
was measured as half the cost of a request. Here Hypercorn reads the connection and h11 enforces HTTP's rules. Other
header fields and the pieces of a body bypass h11.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, Protocol

import h11
import structlog
import trio
from hypercorn.protocol.events import Body, EndBody, Event, StreamClosed

from codexd.system.memory import UNBOUNDED, Hold, Room

BODY_TIMEOUT = 300.0
"""Seconds for a request body to arrive; long enough for large images over a slow line."""

JOIN_BODY = 64 * 1024
"""An answer up to this size goes out in one write with its head."""

Address = tuple[str, int]
Field = tuple[str, str]

_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LISTS = frozenset({"forwarded", "x-forwarded-for"})
_CHUNKED = [(b"transfer-encoding", b"chunked")]
_END = h11.EndOfMessage()

log = structlog.get_logger()


class BodyTooLarge(Exception):
    """The body is larger than the limit. Its rest is not read."""


class BodyTimeout(Exception):
    """The body did not arrive within BODY_TIMEOUT."""


class NoMemory(Exception):
    """There is no room for the body. Its rest is not read."""


class ConnectionWriter(Protocol):
    """What the protocol needs of its connection: ``codexd.server.connection.ClientConnection``."""

    async def protocol_send(self, event: Any) -> None: ...

    def send_now(self, data: memoryview | bytes) -> memoryview | bytes: ...

    async def send_data(self, data: memoryview | bytes) -> None: ...


class Host(Protocol):
    """What a request needs of its protocol: ``codexd.server.hypercorn.Http1``. ``connection`` is h11's."""

    connection: Any
    client: Address | None
    server: Address | None

    @property
    def send_now(self) -> Callable[[bytes], memoryview | bytes]: ...

    @property
    def send_data(self) -> Callable[[memoryview | bytes], Awaitable[None]]: ...

    def common_fields(self) -> list[tuple[bytes, bytes]]:
        """Returns the header fields common to all answers."""

    async def finish(self) -> None:
        """Ends the exchange: the connection reads the next request, or is closed."""

    async def close(self) -> None: ...


class ServerRequest:
    """A request. Its handler runs in a separate task and is cancelled when the client leaves.

    Replaces Hypercorn's stream. ``max_body`` is in bytes; ``memory`` is what it takes until its end. ``headers`` have
    lower-case names; the first of each counts.
    """

    idle = False

    def __init__(self, host: Host, request: h11.Request, path: str, query: bytes, max_body: int, memory: Hold) -> None:
        self.method = request.method.decode("ascii")
        self.path = path
        self.query = query
        self.client = host.client
        self.server = host.server
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(request.headers)}
        if len(self.headers) < len(request.headers):
            for name in _LISTS & self.headers.keys():
                # A proxy adds its own at the end; as lists the fields are one (RFC 9110, section 5.3).
                values = [value.decode("latin-1") for each, value in request.headers if each == name.encode()]
                self.headers[name] = ", ".join(values)
        self._ambiguous = "transfer-encoding" in self.headers and "content-length" in self.headers
        self._host = host
        self._chunked = request.http_version >= b"1.1"
        self._scope = trio.CancelScope()
        self._parts: list[bytes] = []
        self._room = max_body
        self.memory = memory
        self._no_memory = False
        self._whole = False
        self._moved: trio.Event | None = None
        self._head = b""
        self._ended = False
        self.begun = False

    # --- hypercorn's side

    async def handle(self, event: Event) -> None:
        if isinstance(event, Body):
            self._room -= len(event.data)
            if self._room >= 0 and not self._no_memory:
                if self.memory.take(len(event.data)):
                    self._parts.append(bytes(event.data))
                    return
                self._no_memory = True
            self._parts.clear()
        elif isinstance(event, EndBody):
            self._whole = True
        elif isinstance(event, StreamClosed) and not self._ended:
            self._ended = True
            self._scope.cancel()
        if self._moved is not None:
            self._moved.set()

    async def run(self, handler: "Handler") -> None:
        try:
            with self._scope:
                await handler(self)
        except Exception as error:
            log.error("internal error while handling a request", exc_info=error)
        finally:
            self._no_memory = True  # nothing more is kept
            self.memory.release()
        if not self._ended:
            # No answer, or half of one, which cannot be completed.
            await self._host.close()

    # --- the handler's side

    async def body(self) -> bytes:
        """Returns the body. Raises BodyTimeout, NoMemory, or BodyTooLarge, also for too large a content-length."""
        announced = self.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._room + sum(map(len, self._parts)):
            raise BodyTooLarge
        if self._incomplete:
            self._moved = trio.Event()
            with trio.move_on_after(BODY_TIMEOUT):
                await self._moved.wait()
            if self._incomplete:
                raise BodyTimeout
        if self._room < 0:
            raise BodyTooLarge
        if self._no_memory:
            raise NoMemory
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def _incomplete(self) -> bool:
        return not self._whole and self._room >= 0 and not self._no_memory

    async def answer(self, status: int, fields: Iterable[Field], body: bytes) -> None:
        """Sends the whole answer. Raises ValueError for a field with invalid characters."""
        await self._still_there()
        head = self._head_of(status, fields, (b"content-length", b"%d" % len(body)))
        if self.method != "HEAD":
            # h11 only counts the bytes; the body itself is sent below.
            self._host.connection.send_with_data_passthrough(h11.Data(data=body))
        else:
            body = b""
        if len(body) > JOIN_BODY:
            await self._host.send_data(head)
            head = b""
        await self._finish(head + body if head else body)

    async def start(self, fields: Iterable[Field]) -> None:
        """Starts a streamed answer with status 200. Its head is sent with the first piece. Raises ValueError."""
        await self._still_there()
        self._head = self._head_of(200, fields, *_CHUNKED)

    async def _still_there(self) -> None:
        """Cancels the request if the client has left, or broke HTTP's rules in the body and got a 400 for it."""
        if self._host.connection.their_state is h11.ERROR:
            self._scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def write(self, data: bytes) -> None:
        if data and (rest := self.write_now(data)):
            await self.write_rest(rest)

    def write_now(self, data: bytes) -> memoryview | bytes:
        """Writes a piece of the body, not empty, without waiting. Bypasses h11, which keeps no state of chunks.

        Returns the rest, which the caller passes to ``write_rest`` before any other write.
        """
        if self._head:
            head, self._head = self._head, b""
        else:
            head = b""
        if self.method == "HEAD":
            return self._host.send_now(head)
        if self._chunked:
            return self._host.send_now(b"%b%x\r\n%b\r\n" % (head, len(data), data))
        return self._host.send_now(head + data)

    async def write_rest(self, rest: memoryview | bytes) -> None:
        await self._host.send_data(rest)

    async def end(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        head, self._head = self._head, b""
        await self._finish(head)

    async def _finish(self, data: bytes) -> None:
        end = self._host.connection.send(_END) or b""
        self._ended = True
        if data or end:
            await self._host.send_data(data + end if end else data)
        await self._host.finish()

    def _head_of(self, status: int, fields: Iterable[Field], *framing: tuple[bytes, bytes]) -> bytes:
        """Returns the head: the fields on framing and connection come from h11, and ``fields`` are appended."""
        of_h11 = [*framing, *self._host.common_fields()]
        if self._host.connection.their_state is h11.SEND_BODY or self._ambiguous:
            # The rest of the request body will not be read, or a proxy may have seen another end of it (RFC 9112, 6.1).
            of_h11.append((b"connection", b"close"))
        fields = list(fields)
        if _UNSENDABLE.search("".join([value for _, value in fields])) is not None:
            names = ", ".join(name for name, value in fields if _UNSENDABLE.search(value))
            raise ValueError(f"the field {names} contains invalid characters")
        lines = [f"{name}: {value}\r\n" for name, value in fields]
        self.begun = True
        response = h11.Response(status_code=status, headers=of_h11)
        head = self._host.connection.send(response) or b""
        return b"%b%b\r\n" % (head[:-2], "".join(lines).encode("latin-1"))


Handler = Callable[[ServerRequest], Awaitable[None]]


class Dispatch(NamedTuple):
    """Handlers by method and path; None: the ASGI application. ``max_body_bytes`` also limits websocket messages.

    ``memory`` is the room for bodies that arrive.
    """

    find: Callable[[str, str], Handler | None]
    serves_websocket: Callable[[str], bool]
    max_body_bytes: Callable[[], int]
    memory: Room = UNBOUNDED

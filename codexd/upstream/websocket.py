"""A websocket to the backend: handshake, sending, reading (RFC 6455). ``frames`` has the protocol, this the I/O.

    state   | left by                                                                 | to
    --------|-------------------------------------------------------------------------|--------
    (none)  | ``handshake``: a 101 with the right accept key                          | busy
    busy    | ``rest``; ``watch`` then runs until ``claim``                           | idle
    idle    | ``claim``                                                               | busy
    idle    | the end, or any message: nobody asked for it, so the next answer could  | closed
            | be taken for another one's                                              |
    any     | ``close``; a failure                                                    | closed

Pings are answered whenever something is read: while an answer streams, while idle, and between two fragments that are
sent. The backend closes with 1011 if a pong is missing for about a minute (reported by several peers).
"""

import contextlib
import os
from base64 import b64encode
from collections.abc import Callable, Sequence

import httpx
import trio
from wsproto.utilities import generate_accept_token

from codexd.lowlevel import reactor
from codexd.upstream.frames import Closed, Frames
from codexd.upstream.http1 import Fields
from codexd.upstream.transport import RawResponse, RequestTarget, Transport, Upgraded


async def handshake(
    transport: Transport, target: RequestTarget, fields: Fields
) -> "tuple[WebSocket, Upgraded] | RawResponse":
    """Opens a websocket; returns the response if the server refuses. Raises httpx's exceptions.

    The order of the headers is the official client's, which is why wsproto does not write them.
    """
    key = b64encode(os.urandom(16))
    asked = [
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", key),
        *fields,
    ]
    answer = await transport.upgrade(target, asked)
    if isinstance(answer, RawResponse):
        return answer
    found = dict(answer.fields)
    if (
        found.get(b"upgrade", b"").lower() != b"websocket"
        or b"upgrade" not in [each.strip() for each in found.get(b"connection", b"").lower().split(b",")]
        or found.get(b"sec-websocket-accept") != generate_accept_token(key)
        or b"sec-websocket-extensions" in found
        or b"sec-websocket-protocol" in found
    ):
        answer.connection.close()
        raise httpx.RemoteProtocolError("the server's websocket handshake is invalid")
    try:
        opened = WebSocket(answer)
    except (httpx.HTTPError, Closed) as error:
        answer.connection.close()
        raise httpx.RemoteProtocolError(f"the server closed the websocket immediately: {error}") from error
    if opened.ended:
        opened.close()
        raise httpx.RemoteProtocolError("the server closed the websocket immediately")
    return opened, answer


class WebSocket:
    """An open websocket. Methods raise httpx.ReadError, WriteError or RemoteProtocolError, and Closed."""

    __slots__ = ("_closing", "_connection", "_early", "_frames", "_watched", "_watching", "opened_at")

    def __init__(self, upgraded: Upgraded) -> None:
        self._connection = upgraded.connection
        self._frames = Frames()
        self._watching: trio.CancelScope | None = None
        self._watched = trio.Event()
        self._closing = False
        self._early = self._take(upgraded.rest) if upgraded.rest else []
        self.opened_at = trio.current_time()

    @property
    def pending(self) -> int:
        """Bytes of a message that has not come to its end."""
        return self._frames.pending

    @property
    def ended(self) -> bool:
        """Whether the server has ended it: its last frame was read, if not yet all messages before."""
        return self._frames.ended is not None

    @property
    def closed(self) -> bool:
        return self._closing or self._connection.closed

    def close(self) -> None:
        """Ends the TCP connection without a close frame, as the official client does.

        While idle it ends with ``watch``, because the reactor may have the descriptor until then.
        """
        self._closing = True
        if self._watching is not None:
            self._watching.cancel()
        else:
            self._connection.close()

    async def send(self, message: bytes) -> None:
        """Sends a text message. Between fragments, pings are answered and an end is noticed."""
        connection = self._connection
        first = True
        for frame in self._frames.encode(message):
            if not first:
                await trio.lowlevel.checkpoint()
                if (data := connection.read_now()) is not None:
                    self._early += self._take(data)
                    if self.ended:
                        return  # ``push`` tells what came before the end
            await connection.send(frame)
            first = False

    async def push(self, step: Callable[[Sequence[bytes]], bool]) -> None:
        """Calls ``step`` with the messages of each read until it returns False. ``step`` must not wait.

        A read of a part of a message calls it with none, one of pings does not: they are not progress.
        """
        connection, going_on = self._connection, True

        def ready() -> bool:
            nonlocal going_on
            if (data := connection.read_now()) is None:
                return True
            if (messages := self._take(data)) or self._frames.growing:
                going_on = step(messages)
            return going_on and not connection.over and self._frames.ended is None

        if self._early:
            messages, self._early = self._early, []
            going_on = step(messages)
        while going_on:
            if self._frames.ended is not None:
                raise self._frames.ended
            if connection.over:
                self._take(await connection.read())  # raises
            else:
                await reactor.watch(connection.fd, ready)

    def rest(self) -> None:
        """Makes the websocket idle. ``watch`` must follow in a task of its own; it may start after ``claim``."""
        self._watching, self._watched = trio.CancelScope(), trio.Event()

    async def watch(self) -> None:
        """Answers pings until ``claim``; closes the websocket when it ends or when anything else arrives."""
        assert self._watching is not None  # noqa: S101 - ``rest`` has made it
        try:
            with self._watching:
                with contextlib.suppress(httpx.HTTPError, Closed):
                    await self.push(self._unasked)
                self._closing = True
        finally:
            self._watching = None
            if self._closing:
                self._connection.close()
            self._watched.set()

    def _unasked(self, _: Sequence[bytes]) -> bool:
        """Ends the websocket: also if ``claim`` has already ended ``watch``, which then does not see this."""
        self._closing = True
        return False

    async def claim(self) -> bool:
        """Ends ``watch``; returns whether the websocket can be used."""
        if self._watching is not None:
            self._watching.cancel()
            await self._watched.wait()
        return not (self.closed or self.ended)

    def _take(self, data: bytes) -> list[bytes]:
        if not data:
            raise httpx.RemoteProtocolError("the connection ended")
        messages = self._frames.feed(data)
        if self._frames.replies:
            replies, self._frames.replies = self._frames.replies, b""
            self._connection.send_now(replies)
        return messages

"""The server's side of a websocket, as polite or rude as a test wants it."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from wsproto.connection import SERVER, Connection
from wsproto.events import Event, Ping, TextMessage
from wsproto.utilities import generate_accept_token

from support.serving import Server


class Peer:
    """One connection whose request came. ``head`` is that request, ``ws`` makes and reads frames."""

    def __init__(self, stream: Any, head: bytes) -> None:
        self.stream = stream
        self.head = head
        self.ws = Connection(SERVER)
        self._events: list[Event] = []

    @property
    def fields(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def accept(self, *behind: Event, but: dict[str, str | None] | None = None) -> None:
        """Answers 101, with these events in the same segment; ``but`` changes headers, or leaves them out."""
        token = generate_accept_token(self.fields["sec-websocket-key"].encode()).decode()
        headers = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": token} | (but or {})
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        head = "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode()
        await self.stream.send_all(head + self.encoded(*behind))

    def encoded(self, *events: Event) -> bytes:
        return b"".join(self.ws.send(event) for event in events)

    async def say(self, *events: Event) -> None:
        """Sends these events in one segment."""
        await self.stream.send_all(self.encoded(*events))

    async def hear(self) -> Event | None:
        """Returns the next event; None at the end."""
        while not self._events:
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self.ws.receive_data(data)
            self._events += self.ws.events()
        return self._events.pop(0)

    async def hear_message(self) -> str:
        """Returns a whole text message, however it was cut. Answers no pings."""
        text = ""
        while True:
            event = await self.hear()
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                return text

    async def pinged(self, payload: bytes) -> bytes:
        """Sends a ping; returns the payload of what came back."""
        await self.say(Ping(payload))
        return bytes(getattr(await self.hear(), "payload", b""))


def peers(talk: Callable[[Peer], Awaitable[None]]) -> Server:
    """A server that talks like this on each connection, after its request, and closes it then."""
    server = Server()

    async def handle(stream: Any) -> None:
        server.connections += 1
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                received = await stream.receive_some(65536)
                if not received:
                    return
                head += received
            server.requests.append(head)
            await talk(Peer(stream, head))
        except trio.BrokenResourceError:
            pass
        finally:
            server.closed.set()
            await trio.aclose_forcefully(stream)

    server.handle = handle  # type: ignore[method-assign]
    return server

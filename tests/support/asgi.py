"""The whole API without a socket: requests in, ``httpx.MockTransport`` out, so that the clock can jump."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import trio

from codexd.api.api import WEBSOCKET
from codexd.api.quart_app import WebsocketApp
from codexd.auth import store as credentials
from codexd.auth.store import Credentials
from codexd.config.model import Config
from codexd.services import ConfigInForce, Services, compose
from codexd.system.memory import UNBOUNDED
from codexd.upstream.client import make_client
from codexd.upstream.transport import Transport
from support.secrets import ACCOUNT, access_token


class Answer:
    """What the app sent: status, headers, and the pieces of the body with their times."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[tuple[float, bytes]] = []
        self.ended = False

    def begin(self, status: int, headers: dict[str, str]) -> None:
        assert self.status == 0, "an answer starts once"
        self.status, self.headers = status, headers

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Incoming:
    """What ``codexd.server.request.ServerRequest`` is to an exchange, without a connection."""

    client, server, begun = ("127.0.0.1", 1), ("127.0.0.1", 2), False

    def __init__(
        self, method: str, path: str, query: str, headers: dict[str, str], body: bytes, answer: Answer
    ) -> None:
        self.method, self.path, self.query, self.headers = method, path, query.encode(), headers
        self._body, self._answer = body, answer
        self.memory = UNBOUNDED.hold()

    async def body(self) -> bytes:
        return self._body

    async def answer(self, status: int, fields: Sequence[tuple[str, str]], body: bytes) -> None:
        self._answer.begin(status, dict(fields))
        await self.write_rest(body)
        await self.end()

    async def start(self, fields: Sequence[tuple[str, str]]) -> None:
        await trio.lowlevel.checkpoint()
        self.begun = True
        self._answer.begin(200, dict(fields))

    def write_now(self, data: bytes) -> bytes:
        return data

    async def write_rest(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if data:
            self._answer.pieces.append((trio.current_time(), data))

    async def end(self) -> None:
        await trio.lowlevel.checkpoint()
        self._answer.ended = True


class Client:
    def __init__(self, services: Services) -> None:
        self._app = WebsocketApp(WEBSOCKET, services.api.websocket.serve)
        self._app.load()  # a thread and the autojump clock do not go together
        self.services = services
        self.keys = services.keys

    async def request(
        self,
        method: str,
        path: str,
        body: Any = b"",
        *,
        headers: dict[str, str] | None = None,
        leave_after: float = 1e9,
    ) -> Answer:
        """One request; the client leaves after so many seconds."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        path, _, query = path.partition("?")
        fields = {"host": "localhost", **(headers or {})}
        answer = Answer()
        incoming = Incoming(method, path, query, fields, data, answer)
        with trio.CancelScope(deadline=trio.current_time() + leave_after):
            await self.services.api.find(method, path)(incoming)
        return answer

    @asynccontextmanager
    async def websocket(self, headers: dict[str, str] | None = None) -> AsyncIterator["Socket"]:
        """A websocket to /v1/responses; the client leaves at the end."""
        to_app, from_client = trio.open_memory_channel[dict[str, Any]](100)
        to_client, from_app = trio.open_memory_channel[dict[str, Any]](1000)
        scope = {
            "type": "websocket", "http_version": "1.1", "asgi": {"spec_version": "2.3", "version": "3.0"},
            "scheme": "ws", "path": "/v1/responses", "raw_path": b"/v1/responses", "query_string": b"", "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in {"host": "localhost", **(headers or {})}.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "subprotocols": [],
            "extensions": {"websocket.http.response": {}}, "state": {},
        }  # fmt: skip
        socket = Socket(to_app, from_app)
        await to_app.send({"type": "websocket.connect"})
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await self._app(scope, from_client.receive, to_client.send)
                socket.over.set()

            nursery.start_soon(run)
            yield socket
            await to_app.send({"type": "websocket.disconnect", "code": 1006})
            await socket.over.wait()


class Socket:
    """The client's end: ``send`` and ``receive`` JSON; ``over`` when the app is done with it."""

    def __init__(self, to_app: trio.MemorySendChannel[Any], from_app: trio.MemoryReceiveChannel[Any]) -> None:
        self._to_app = to_app
        self._from_app = from_app
        self.over = trio.Event()

    async def raw(self) -> dict[str, Any]:
        """The app's next message, as ASGI has it."""
        return await self._from_app.receive()

    async def send(self, frame: Any) -> None:
        if isinstance(frame, bytes):
            await self._to_app.send({"type": "websocket.receive", "text": None, "bytes": frame})
            return
        text = frame if isinstance(frame, str) else msgspec.json.encode(frame).decode()
        await self._to_app.send({"type": "websocket.receive", "text": text, "bytes": None})

    async def receive(self) -> Any:
        message = await self.raw()
        assert message["type"] == "websocket.send", message
        return msgspec.json.decode(message["text"])

    async def answer(self) -> list[Any]:
        """Events up to the one that ends a response."""
        events = [await self.receive()]
        while events[-1]["type"] not in ("response.completed", "response.failed", "response.incomplete", "error"):
            events.append(await self.receive())
        return events


@asynccontextmanager
async def client(
    folder: Path, backend: Callable[[httpx.Request], Any] | Transport, config: Config | None = None
) -> AsyncIterator[Client]:
    """The app over a backend that is a function from request to response, or over the real transport."""
    config = config or Config()
    credentials.save(folder / "tokens.json", Credentials(access_token=access_token(9e9), account_id=ACCOUNT))
    transport = backend if isinstance(backend, Transport) else None
    mocked = transport or httpx.MockTransport(cast("Callable[[httpx.Request], Any]", backend))
    async with make_client(mocked) as http:
        in_force = ConfigInForce(config, None, lambda: (config, None))
        yield Client(compose(in_force, folder, http, transport, clock=lambda: 1.8e9))

"""A ChatGPT that misbehaves to the byte, over HTTP and over websockets: each test says what it writes, and when."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import h11
import msgspec
import trio
from wsproto.connection import SERVER, Connection
from wsproto.events import CloseConnection, Ping, Pong, TextMessage
from wsproto.utilities import generate_accept_token

from codexd.protocol import sse
from codexd.protocol.codex.models import BUILT_IN
from support.secrets import MARKER

Json = dict[str, Any]

CONTINUATION, TEXT, BINARY = 0, 1, 2
"""Opcodes of frames."""


class Call:
    """One request as it arrived, and the bare connection to answer on."""

    lane = "http"

    def __init__(self, request: h11.Request, body: bytes, stream: trio.SocketStream) -> None:
        self.target = request.target.decode()
        self.headers = [(name.decode(), value.decode()) for name, value in request.headers]
        self.body = body
        self.stream = stream
        self.upgraded = False

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    @property
    def json(self) -> Json:
        decoded: Json = msgspec.json.decode(self.body)
        return decoded

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def start(self, status: int = 200, *headers: str) -> None:
        """A status line and headers; chunked, and by default as bare as the real backend's."""
        lines = [f"HTTP/1.1 {status} X", *headers, "transfer-encoding: chunked", "", ""]
        await self.raw("\r\n".join(lines).encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def events(self, *events: Json) -> None:
        for event in events:
            await self.chunk(sse.encode(event["type"].encode(), msgspec.json.encode(event)))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def answer(self, status: int, body: bytes | Json, *headers: str) -> None:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        lines = [f"HTTP/1.1 {status} X", *headers, f"content-length: {len(data)}", "", ""]
        await self.raw("\r\n".join(lines).encode() + data)

    async def upgrade(self, *headers: str, token: str | None = None) -> None:
        """Accepts the handshake of a websocket; ``token`` in place of the right one."""
        token = token or generate_accept_token((self.header("sec-websocket-key") or "").encode()).decode()
        lines = ["HTTP/1.1 101 X", "upgrade: websocket", "connection: Upgrade", f"sec-websocket-accept: {token}"]
        self.upgraded = True
        await self.raw("\r\n".join([*lines, *headers, "", ""]).encode())

    async def gone(self) -> None:
        """Wait until the other side has closed the connection."""
        try:
            while await self.stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass


class WebsocketCall(Call):
    """One message as it arrived on a websocket. The verbs of ``Call`` send frames; others are for rude framing.

    ``headers`` are those of the handshake. What is sent as an answer's head or end over HTTP has no place here.
    """

    lane = "websocket"

    def __init__(self, handshake: Call, body: bytes, websocket: "Websocket") -> None:
        self.target, self.headers, self.stream = handshake.target, handshake.headers, handshake.stream
        self.body = body
        self.upgraded = False
        self.websocket = websocket

    async def start(self, status: int = 200, *headers: str) -> None:
        pass

    async def chunk(self, data: bytes) -> None:
        """One text frame."""
        await self.frame(data)

    async def events(self, *events: Json) -> None:
        for event in events:
            await self.chunk(msgspec.json.encode(event))

    async def end(self) -> None:
        pass

    async def answer(self, status: int, body: bytes | Json, *headers: str) -> None:
        """An ``error`` frame with what would be status, body and headers over HTTP."""
        try:
            document = body if isinstance(body, dict) else msgspec.json.decode(body)
            error = document.get("error") or {"message": document.get("detail")}
        except (msgspec.DecodeError, AttributeError):
            error = {"message": bytes(body).decode()}
        event: Json = {"type": "error", "status": status, "error": error}
        if headers:
            event["headers"] = dict(each.split(": ", 1) for each in headers)
        await self.events(event)

    async def gone(self) -> None:
        """Wait until the other side has closed the connection, or has sent another message."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self.websocket.wait()

    async def frame(self, payload: bytes, opcode: int = TEXT, *, last: bool = True) -> None:
        """One frame as it is: ``opcode`` TEXT, CONTINUATION or BINARY; ``last``: the message ends with it."""
        await self.raw(framed(payload, opcode, last=last))

    async def ping(self) -> None:
        await self.raw(self.websocket.protocol.send(Ping(b"here?")))

    async def heard(self) -> None:
        """Waits until the other side has read all that was sent: a pong says so."""
        await self.ping()
        await self.websocket.pong()

    async def close(self, code: int, reason: str = "") -> None:
        await self.raw(self.websocket.protocol.send(CloseConnection(code=code, reason=reason)))


def framed(payload: bytes, opcode: int = TEXT, *, last: bool = True) -> bytes:
    """A frame as a server sends it."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
    return bytes([opcode | 0x80 * last]) + length + payload


class Websocket:
    """What a websocket brings, as messages. One task reads it at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.protocol = Connection(SERVER)
        self.pongs = 0
        self._stream = stream
        self._pieces: list[str] = []
        self._messages: list[bytes] = []

    async def receive(self) -> bytes | None:
        """The next message; None at the end. Raises trio's exceptions of a broken stream."""
        return self._messages.pop(0) if await self.wait() else None

    async def wait(self) -> bool:
        """Waits for a message, which stays for ``receive``; False at the end."""
        while not self._messages:
            if not await self._read():
                return False
        return True

    async def pong(self) -> None:
        """Waits for the pong to the last ping."""
        before = self.pongs
        while self.pongs == before:
            if not await self._read():
                raise trio.BrokenResourceError

    async def _read(self) -> bool:
        data = await self._stream.receive_some(65536)
        if not data:
            return False
        self.protocol.receive_data(data)
        for event in self.protocol.events():
            if isinstance(event, TextMessage):
                self._pieces.append(event.data)
                if event.message_finished:
                    self._messages.append("".join(self._pieces).encode())
                    self._pieces = []
            else:
                assert isinstance(event, Pong), f"an unexpected frame: {event}"
                self.pongs += 1
        return True


Script = Callable[[Call], Awaitable[None]]


class Upstream:
    """Serves ``/codex/responses`` by the scripts in ``plays``, one a call, the last one for ever; the rest politely.

    A message on a websocket is a call as a POST is. ``handshakes`` has the scripts for opening websockets; each ends
    with ``Call.upgrade`` or with a refusal. ``asked`` are the handshakes that came, ``websockets`` counts the open ones.
    ``tool_plays`` serve search and images; ``page_play`` all other pages, if it is set.
    """

    def __init__(self) -> None:
        self.plays: list[Script] = [polite]
        self.calls: list[Call] = []
        self.handshakes: list[Script] = [welcome]
        self.asked: list[Call] = []
        self.websockets = 0
        self.token_calls: list[Call] = []
        self.token_plays: list[Script] = []
        self.tool_plays: list[Script] = []
        self.page_play: Script | None = None
        self.tool_calls: list[Call] = []
        self.open = 0
        self.port = 0
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until it holds; it is asked again when a request comes and when a connection comes or goes."""
        while not condition():
            await self._changed.wait()

    @property
    def lanes(self) -> list[str]:
        """How the calls came."""
        return [call.lane for call in self.calls]

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started(self.port)
        await trio.serve_listeners(self._connection, listeners)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.open += 1
        self._note_change()
        try:
            async with stream:
                while (call := await read_call(stream)) is not None:
                    await self._play(call)
                    if call.upgraded:
                        await self._converse(call)
                        break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1
            self._note_change()

    async def _play(self, call: Call) -> None:
        if call.target.startswith("/oauth/token"):
            self.token_calls.append(call)
            await self.token_plays[min(len(self.token_calls), len(self.token_plays)) - 1](call)
        elif self.page_play is not None and call.header("upgrade") is None and "/responses" not in call.target:
            await self.page_play(call)
        elif call.target.startswith("/backend-api/codex/models"):
            entries = [{"slug": m.slug, "use_responses_lite": m.lite,
                        "supported_reasoning_levels": [{"effort": e} for e in m.efforts],
                        "default_reasoning_level": m.default_effort} for m in BUILT_IN]  # fmt: skip
            await call.answer(200, {"models": entries}, 'etag: "1"')
        elif call.target.startswith("/backend-api/wham/accounts"):
            await call.answer(200, {"accounts": []})
        elif call.target.startswith(("/backend-api/codex/alpha/", "/backend-api/codex/images/")):
            self.tool_calls.append(call)
            await self.tool_plays[min(len(self.tool_calls), len(self.tool_plays)) - 1](call)
        elif call.header("upgrade") == "websocket":
            self.asked.append(call)
            self._note_change()
            await self.handshakes[min(len(self.asked), len(self.handshakes)) - 1](call)
        else:
            await self._answer(call)

    async def _answer(self, call: Call) -> None:
        self.calls.append(call)
        self._note_change()
        await self.plays[min(len(self.calls), len(self.plays)) - 1](call)

    async def _converse(self, handshake: Call) -> None:
        websocket = Websocket(handshake.stream)
        self.websockets += 1
        self._note_change()
        try:
            while (message := await websocket.receive()) is not None:
                await self._answer(WebsocketCall(handshake, message, websocket))
        finally:
            self.websockets -= 1


async def read_call(stream: trio.SocketStream) -> Call | None:
    connection = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    pieces: list[bytes] = []
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some(1024 * 1024)
            connection.receive_data(data)
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            pieces.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return Call(request, b"".join(pieces), stream)
        else:
            return None


# --- what a good answer is made of

CREATED: Json = {"type": "response.created", "response": {"id": "resp_1", "model": "gpt-5.5", "status": "in_progress"}}
ADDED: Json = {
    "type": "response.output_item.added",
    "output_index": 0,
    "item": {"id": "msg_1", "type": "message", "role": "assistant", "content": []},
}
USAGE: Json = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10, "input_tokens_details": {"cached_tokens": 4}}


def text(delta: str) -> Json:
    return {
        "type": "response.output_text.delta",
        "output_index": 0,
        "item_id": "msg_1",
        "content_index": 0,
        "delta": delta,
    }


def done(whole: str) -> Json:
    item = ADDED["item"] | {
        "content": [{"type": "output_text", "text": whole, "annotations": []}],
        "status": "completed",
    }
    return {"type": "response.output_item.done", "output_index": 0, "item": item}


COMPLETED: Json = {
    "type": "response.completed",
    "response": {
        "id": "resp_1",
        "model": "gpt-5.5",
        "created_at": 1,
        "status": "completed",
        "output": [],
        "usage": USAGE,
    },
}


def failed(code: str, message: str = "It failed.") -> Json:
    return {"type": "response.failed", "response": {"id": "resp_1", "error": {"code": code, "message": message}}}


async def polite(call: Call) -> None:
    """A whole answer, with limits and cookies, and without a content type."""
    await call.start(
        200,
        "x-codex-primary-used-percent: 12.5",
        "x-codex-secondary-used-percent: 60",
        "x-codex-secondary-reset-after-seconds: 3600",
        f"set-cookie: __cf_bm={MARKER}; path=/",
        f"set-cookie: session={MARKER}; path=/",
    )
    await call.events(CREATED, ADDED, text("Hel"), text("lo"), done("Hello"), COMPLETED)
    await call.end()


async def welcome(call: Call) -> None:
    """A handshake that is accepted."""
    await call.upgrade()


async def cut(call: Call) -> None:
    """Close without an answer."""
    await call.stream.aclose()


def refuse(status: int, body: bytes | Json, *headers: str) -> Script:
    async def play(call: Call) -> None:
        await call.answer(status, body, *headers)

    return play


def stream_of(*events: Json) -> Script:
    """These events and the end of the stream."""

    async def play(call: Call) -> None:
        await call.start()
        await call.events(*events)
        await call.end()

    return play


def token_answer(access_token: str, refresh_token: str) -> Script:
    return refuse(200, {"access_token": access_token, "refresh_token": refresh_token})

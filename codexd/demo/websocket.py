"""The websocket of the simulated backend, as strict as the real one was seen or is reported to be.

A connection holds the items of its last answer: ``previous_response_id`` may name that one alone. A message has 16 MiB
at most, item ids must be new, one answer is in progress at a time, pings want pongs, and a connection's age is limited.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import trio
from wsproto.connection import SERVER, Connection, ConnectionState
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.utilities import LocalProtocolError, generate_accept_token

from codexd.demo import judge, script
from codexd.demo.judge import Refusal
from codexd.demo.script import Json
from codexd.protocol import decoding
from codexd.protocol.codex.models import Model
from codexd.server.loopback import Reply, Request

BETA = "responses_websockets=2026-02-06"
MAX_MESSAGE = 16 * 1024 * 1024
PING_SECONDS = 20.0
PONG_SECONDS = 60.0
LIFE_SECONDS = 3600.0

_LITE = "ws_request_header_x_openai_internal_codex_responses_lite"


class Turn(msgspec.Struct, frozen=True):
    """One answered request: the connection's number, the body that came, and all items that the model then saw."""

    connection: int
    body: Json
    seen: list[Json]


class Backend(Protocol):
    """What a connection needs of the simulated ChatGPT. ``turns`` collects the answered requests, for tests."""

    pace: float
    connections: int
    turns: list[Turn] | None

    @property
    def models(self) -> Mapping[str, Model]: ...

    @property
    def now(self) -> Callable[[], float]: ...


class Session:
    """One connection."""

    def __init__(self, backend: Backend, stream: trio.SocketStream) -> None:
        self._backend = backend
        self._stream = stream
        self._ws = Connection(SERVER)
        self._opened_at = self._heard_at = trio.current_time()
        self._last: str | None = None
        self._held: list[Json] = []
        self._text: list[str] = []
        self._size = 0
        self._answering: str | None = None
        self._interrupted = False
        self._sending = trio.Lock()
        backend.connections += 1
        self._number = backend.connections

    async def run(self, rest: bytes) -> None:
        """Serves the connection to its end."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._ping)
            data = rest
            while self._ws.state is ConnectionState.OPEN:
                self._ws.receive_data(data)
                for event in self._ws.events():
                    await self._take(event)
                if not (data := await self._stream.receive_some(65536)):
                    break
            self._nursery.cancel_scope.cancel()

    async def _take(self, event: Event) -> None:
        match event:
            case TextMessage(data=text):
                self._text.append(text)
                self._size += len(text.encode())
                if self._size > MAX_MESSAGE:
                    await self.close(1009, "message too big")
                elif event.message_finished:
                    whole, self._text, self._size = "".join(self._text), [], 0
                    await self._message(whole)
            case Ping():
                await self._send(event.response())
            case Pong():
                self._heard_at = trio.current_time()
            case CloseConnection():
                await self._send(event.response())
            case _:
                await self.close(1003, "text only")

    async def _message(self, text: str) -> None:
        body: Any = None
        try:
            body = decoding.decode(text)
            kind = body["type"]
        except (msgspec.DecodeError, KeyError, TypeError):
            kind = None
        if kind == "response.interrupt" and body.get("response_id") == self._answering:
            self._interrupted = True
        elif kind == "response.interrupt":
            await self.event({"type": "response.interrupt.failed", "response_id": body.get("response_id")})
        elif kind != "response.create":
            await self._refuse((400, {"error": {"message": "Invalid message", "type": "invalid_request_error"}}))
        elif self._answering is not None:
            await self._refuse(_error("A response is in progress on this connection.", "response_in_progress"))
        elif trio.current_time() > self._opened_at + LIFE_SECONDS:
            await self._refuse(
                _error("This connection has reached its limit of 60 minutes.", "websocket_connection_limit_reached")
            )
        else:
            self._answering = f"resp_{secrets.token_hex(12)}"
            self._nursery.start_soon(self._answer, body, self._answering)

    async def _answer(self, body: Json, name: str) -> None:
        seen, refusal = self._judge(body)
        if refusal is None:
            await self._stream_answer(body, name, seen)
        else:
            self._answering = None
            await self._refuse(refusal)

    def _judge(self, body: Json) -> tuple[list[Json], Refusal | None]:
        previous = body.get("previous_response_id")
        if previous is not None and previous != self._last:
            text = f"Previous response with id '{previous}' not found."
            return [], _error(text, "previous_response_not_found", "previous_response_id")
        held = self._held if previous is not None else []
        known = {item["id"] for item in self._held if "id" in item}
        try:
            for item in body["input"]:
                if item.get("id") in known:
                    return [], _error(f"Duplicate item found with id {item['id']}.", None, "input")
            seen = [*held, *body["input"]]
            rest = {key: body[key] for key in body if key not in ("type", "previous_response_id", "generate")}
            lite = {judge.LITE_HEADER: str(body.get("client_metadata", {}).get(_LITE))}
            return seen, judge.refuse(rest | {"input": seen}, lite, self._backend.models)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            return [], judge.NOT_UNDERSTOOD

    async def _stream_answer(self, body: Json, name: str, seen: list[Json]) -> None:
        # A client that is cut off in the middle leaves a connection that holds nothing.
        cached, self._last = len(self._held), None
        whole = body | {"input": seen}
        if body.get("generate") is False:
            events = script.prewarm(whole, name, int(self._backend.now()))
        else:
            events = script.events(whole, name, int(self._backend.now()), cached if seen[:cached] == self._held else 0)
        output: list[Json] = []
        for event in events:
            await trio.sleep(self._backend.pace)
            if self._interrupted:
                self._finish(name, body, seen, output)
                await self._interrupt(name)
                return
            if event["type"] == "response.output_item.done":
                output.append(event["item"])
            if event["type"] == "response.completed":
                # Before the client reads it: the next request may come at once.
                self._finish(name, body, seen, output)
            await self.event(event)

    def _finish(self, name: str, body: Json, seen: list[Json], output: list[Json]) -> None:
        self._answering, self._interrupted = None, False
        self._last, self._held = name, [*seen, *output]
        if self._backend.turns is not None:
            self._backend.turns.append(Turn(self._number, body, seen))

    async def _interrupt(self, name: str) -> None:
        await self.event({"type": "response.interrupt.accepted", "response_id": name})
        response = {"id": name, "status": "incomplete", "incomplete_details": {"reason": "interrupted"}}
        await self.event({"type": "response.incomplete", "response": response})

    async def _refuse(self, refusal: Refusal) -> None:
        status, body = refusal
        error = body.get("error", {"message": body.get("detail"), "type": "invalid_request_error"})
        await self.event({"type": "error", "status": status, "error": error})

    async def event(self, event: Json) -> None:
        await self._send(TextMessage(msgspec.json.encode(event).decode()))

    async def close(self, code: int, reason: str) -> None:
        await self._send(CloseConnection(code=code, reason=reason))

    async def _send(self, event: Event) -> None:
        try:
            data = self._ws.send(event)
        except LocalProtocolError:
            return  # it is closing
        async with self._sending:
            await self._stream.send_all(data)

    async def _ping(self) -> None:
        while True:
            asked = trio.current_time()
            await self._send(Ping(b"demo"))
            await trio.sleep(PING_SECONDS)
            if self._heard_at < asked and trio.current_time() > self._heard_at + PONG_SECONDS:
                await self.close(1011, "keepalive ping timeout")
                return


def _error(message: str, code: str | None, param: str | None = None) -> Refusal:
    return 400, {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": param}}


async def accept(backend: Backend, request: Request, reply: Reply) -> tuple[Session, bytes]:
    """Answers the handshake; returns the session, to be run with the bytes behind the request."""
    token = generate_accept_token(request.headers["sec-websocket-key"].encode())
    headers = [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", token.decode())]
    stream, rest = await reply.upgrade(headers)
    return Session(backend, stream), rest

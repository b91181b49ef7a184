"""The websocket of the simulated backend refuses what the real one was seen to refuse, or is reported to."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, MockClock, memory_stream_pair
from wsproto.connection import CLIENT, Connection, ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from codexd.demo import websocket
from codexd.demo.websocket import LIFE_SECONDS, PING_SECONDS, PONG_SECONDS, Session, Turn
from codexd.protocol.codex.models import BUILT_IN
from codexd.upstream.identity import LITE_METADATA
from support.simulated import simulated

Json = dict[str, Any]
Stream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


class Backend:
    """What a session needs of the simulated ChatGPT."""

    def __init__(self, pace: float = 0) -> None:
        self.models = {model.slug: model for model in BUILT_IN}
        self.pace = pace
        self.connections = 0
        self.turns: list[Turn] | None = []
        self.now = time.time


class Client:
    """The other side of a session. ``over`` is set when that has ended; pings are answered unless ``silent``."""

    def __init__(self, stream: Stream, over: trio.Event) -> None:
        self.stream = stream
        self.over = over
        self.ws = Connection(CLIENT)
        self.silent = False
        self._events: list[Event] = []

    async def say(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(self.ws.send(event) for event in events))

    async def ask(self, **changes: Any) -> None:
        await self.say(TextMessage(msgspec.json.encode(asked(**changes)).decode()))

    async def hear(self) -> Event | None:
        """Returns the next event that is no ping; None at the end."""
        while True:
            while self._events:
                event = self._events.pop(0)
                if not isinstance(event, Ping):
                    return event
                if not self.silent and self.ws.state is ConnectionState.OPEN:
                    await self.say(event.response())
            data = await self.stream.receive_some()
            if not data:
                return None
            self.ws.receive_data(data)
            self._events += self.ws.events()

    async def event(self) -> Json:
        """Returns the next message."""
        text = ""
        while True:
            event = await self.hear()
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                found: Json = msgspec.json.decode(text)
                return found

    async def answer(self) -> list[Json]:
        """Returns all events of an answer, or its refusal."""
        events = [await self.event()]
        while events[-1]["type"] not in ("response.completed", "response.incomplete", "error"):
            events.append(await self.event())
        return events

    async def refusal(self, **changes: Any) -> Json:
        await self.ask(**changes)
        event = await self.event()
        assert event["type"] == "error"
        assert event["status"] == 400
        error: Json = event["error"]
        return error

    async def closing(self) -> tuple[int, str | None]:
        """Returns code and reason of the close frame, ends the connection without one, and waits for the other end."""
        event = await self.hear()
        while not isinstance(event, CloseConnection):
            assert event is not None
            event = await self.hear()
        await self.stream.aclose()
        await self.over.wait()
        return event.code, event.reason


@asynccontextmanager
async def session(backend: Backend | None = None, rest: bytes = b"") -> AsyncIterator[Client]:
    ours, theirs = memory_stream_pair()
    over = trio.Event()

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        made: Any = Session(backend or Backend(), theirs)  # type: ignore[arg-type]
        await made.run(rest)
        over.set()
        await theirs.aclose()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield Client(ours, over)
        nursery.cancel_scope.cancel()


def user(text: str, **more: Any) -> Json:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **more}


def asked(**changes: Any) -> Json:
    body = {
        "type": "response.create", "model": "gpt-5.5", "instructions": "I", "stream": True, "input": [user("hi")],
        "tool_choice": "auto", "parallel_tool_calls": True, "reasoning": {"effort": "low"}, "store": False,
        "include": [], "prompt_cache_key": "0199f0aa-1111-7222-8333-444455556666", "text": {"verbosity": "low"}, "client_metadata": {},
    }  # fmt: skip
    return {key: value for key, value in (body | changes).items() if value is not None}


def name_of(events: list[Json]) -> str:
    name: str = events[-1]["response"]["id"]
    return name


def items_of(events: list[Json]) -> list[Json]:
    return [event["item"] for event in events if event["type"] == "response.output_item.done"]


# --- answers


async def test_an_answer_and_what_continues_it(autojump_clock: MockClock) -> None:
    backend = Backend()
    async with session(backend) as client:
        await client.ask()
        first = await client.answer()
        assert [event["type"] for event in first[:2]] == ["response.created", "response.in_progress"]
        assert {event["response"]["id"] for event in first if "response" in event} == {name_of(first)}
        await client.ask(previous_response_id=name_of(first), input=[user("and now?")])
        second = await client.answer()
        assert "and now?" in items_of(second)[-1]["content"][0]["text"]
        cached = second[-1]["response"]["usage"]["input_tokens_details"]["cached_tokens"]
        assert cached > 0
        assert backend.turns is not None
        assert [turn.connection for turn in backend.turns] == [1, 1]
        assert backend.turns[1].seen == [user("hi"), *items_of(first), user("and now?")]
        assert backend.turns[1].body["input"] == [user("and now?")]
        backend.turns = None
        await client.ask(input=[user("something else")])
        third = await client.answer()
        assert third[-1]["response"]["usage"]["input_tokens_details"]["cached_tokens"] == 0
    async with session(backend) as client:
        await client.ask()
        await client.answer()
    assert backend.connections == 2


async def test_an_answer_that_is_not_generated_can_be_continued(autojump_clock: MockClock) -> None:
    async with session() as client:
        await client.ask(generate=False, input=[user("context")])
        events = await client.answer()
        assert [event["type"] for event in events] == ["response.created", "response.completed"]
        await client.ask(previous_response_id=name_of(events), input=[user("hi")])
        assert (await client.answer())[-1]["type"] == "response.completed"


async def test_what_comes_with_the_request_is_read(autojump_clock: MockClock) -> None:
    frame = Connection(CLIENT).send(TextMessage(msgspec.json.encode(asked()).decode()))
    async with session(rest=frame) as client:
        assert (await client.answer())[-1]["type"] == "response.completed"


async def test_a_lite_model_wants_its_mark_in_the_metadata(autojump_clock: MockClock) -> None:
    lite = {
        "model": "gpt-6-sol", "instructions": None, "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "context": "all_turns"},
    }  # fmt: skip
    async with session() as client:
        assert "needs responses-lite" in (await client.refusal(**lite))["message"]
        await client.ask(**lite, client_metadata={LITE_METADATA: "true"})
        assert (await client.answer())[-1]["type"] == "response.completed"


# --- refusals


async def test_an_answer_of_elsewhere_cannot_be_continued(autojump_clock: MockClock) -> None:
    async with session() as client:
        found = await client.refusal(previous_response_id="resp_x")
        assert (found["code"], found["param"]) == ("previous_response_not_found", "previous_response_id")
        names = list[str]()
        for _ in range(2):
            await client.ask(input=[user("hi")])
            names.append(name_of(await client.answer()))
        found = await client.refusal(previous_response_id=names[0])
        assert found["code"] == "previous_response_not_found", "only the last one is held"
        await client.ask(previous_response_id=names[1], input=[user("more")])
        assert (await client.answer())[-1]["type"] == "response.completed"


async def test_item_ids_must_be_new(autojump_clock: MockClock) -> None:
    async with session() as client:
        await client.ask(input=[user("hi", id="msg_1")])
        first = await client.answer()
        whole = [user("hi", id="msg_1"), *items_of(first), user("more")]
        assert "Duplicate item found with id msg_1" in (await client.refusal(input=whole))["message"]
        delta = [*items_of(first), user("more")]
        refused = await client.refusal(previous_response_id=name_of(first), input=delta)
        assert f"Duplicate item found with id {items_of(first)[0]['id']}" in refused["message"]
        bare = [{key: value for key, value in item.items() if key != "id"} for item in whole]
        await client.ask(input=bare)
        assert (await client.answer())[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"store": True}, "Store must be set to false"),
        ({"max_output_tokens": 1}, "Unsupported parameter"),
        ({"input": "hi"}, "Invalid value"),
        ({"input": [1]}, "Invalid value"),
        ({"input": [{"type": "function_call_output"}]}, "Invalid type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}, "No tool call found"),
        ({"client_metadata": "x"}, "Invalid value"),
    ],
)
async def test_what_http_refuses_is_refused_and_the_connection_goes_on(
    autojump_clock: MockClock, changes: Json, said: str
) -> None:
    async with session() as client:
        assert said in (await client.refusal(**changes))["message"]
        await client.ask()
        assert (await client.answer())[-1]["type"] == "response.completed"


@pytest.mark.parametrize("text", ["", "no json", "[]", "7", "null", '"x"', "{}", '{"type":"response.cancel"}'])
async def test_what_is_no_message(autojump_clock: MockClock, text: str) -> None:
    async with session() as client:
        await client.say(TextMessage(text))
        event = await client.event()
        assert (event["type"], event["status"], event["error"]["message"]) == ("error", 400, "Invalid message")
        await client.ask()
        assert (await client.answer())[-1]["type"] == "response.completed"


async def test_one_answer_at_a_time(autojump_clock: MockClock) -> None:
    async with session(Backend(pace=1)) as client:
        await client.ask()
        assert (await client.event())["type"] == "response.created"
        assert (await client.refusal())["code"] == "response_in_progress"
        assert (await client.answer())[-1]["type"] == "response.completed"
        await client.ask()
        assert (await client.answer())[-1]["type"] == "response.completed"


async def test_a_connection_has_an_hour(autojump_clock: MockClock) -> None:
    async with session() as client:
        await client.ask()
        first = await client.answer()
        await waited(client, LIFE_SECONDS - 1)
        await client.ask(previous_response_id=name_of(first), input=[user("more")])
        second = await client.answer()
        await waited(client, 2)
        refused = await client.refusal(previous_response_id=name_of(second), input=[user("more")])
        assert refused["code"] == "websocket_connection_limit_reached"


async def waited(client: Client, seconds: float) -> None:
    """Time passes; pings are answered."""
    with trio.move_on_after(seconds):
        event = await client.hear()
        raise AssertionError(event)


# --- interrupting


async def test_an_answer_is_interrupted_and_continued(autojump_clock: MockClock) -> None:
    backend = Backend(pace=1)
    async with session(backend) as client:
        await client.ask()
        name = (await client.event())["response"]["id"]
        await client.event()
        await client.say(TextMessage(f'{{"type":"response.interrupt","response_id":"{name}"}}'))
        events = await client.answer()
        assert [event["type"] for event in events[-2:]] == ["response.interrupt.accepted", "response.incomplete"]
        assert events[-1]["response"] == {
            "id": name, "status": "incomplete", "incomplete_details": {"reason": "interrupted"},
        }  # fmt: skip
        backend.pace = 0
        await client.ask(previous_response_id=name, input=[user("rather this")])
        assert (await client.answer())[-1]["type"] == "response.completed"


async def test_an_answer_that_is_not_in_progress_cannot_be_interrupted(autojump_clock: MockClock) -> None:
    async with session() as client:
        await client.say(TextMessage('{"type":"response.interrupt","response_id":"resp_x"}'))
        assert await client.event() == {"type": "response.interrupt.failed", "response_id": "resp_x"}


# --- ends


@pytest.mark.parametrize("text", ["x" * 11, "é" * 6])
async def test_a_message_has_a_largest_size_in_bytes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    assert websocket.MAX_MESSAGE == 16 * 1024 * 1024
    monkeypatch.setattr(websocket, "MAX_MESSAGE", 10)
    async with session() as client:
        await client.say(TextMessage('"x x x x"'))
        assert (await client.event())["error"]["message"] == "Invalid message"
        half = len(text) // 2
        await client.say(TextMessage(text[:half], message_finished=False), TextMessage(text[half:]))
        assert await client.closing() == (1009, "message too big")


async def test_a_binary_message_closes(autojump_clock: MockClock) -> None:
    async with session() as client:
        await client.say(BytesMessage(b"{}"))
        assert await client.closing() == (1003, "text only")


async def test_nothing_follows_a_close(autojump_clock: MockClock) -> None:
    async with session(Backend(pace=1)) as client:
        await client.ask()
        await client.event()
        await client.say(BytesMessage(b"{}"))
        while not isinstance(await client.hear(), CloseConnection):
            pass
        await waited(client, 10)
        await client.stream.aclose()
        await client.over.wait()


async def test_what_the_protocol_forbids_closes(autojump_clock: MockClock) -> None:
    async with session() as client:
        await client.stream.send_all(b"\x83\x80\0\0\0\0")
        assert (await client.closing())[0] == 1002


async def test_a_close_is_answered(autojump_clock: MockClock) -> None:
    async with session() as client:
        await client.say(CloseConnection(code=1000))
        assert (await client.closing())[0] == 1000


@pytest.mark.parametrize("answering", [True, False])
async def test_a_client_may_just_go(autojump_clock: MockClock, answering: bool) -> None:
    async with session(Backend(pace=1)) as client:
        if answering:
            await client.ask()
            await client.event()
        await client.stream.aclose()
        await client.over.wait()


async def test_pings_of_the_client_are_answered(autojump_clock: MockClock) -> None:
    async with session() as client:
        await client.say(Ping(b"p"))
        assert await client.hear() == Pong(b"p")


async def test_who_answers_no_pings_is_closed_after_a_while(autojump_clock: MockClock) -> None:
    async with session() as client:
        await waited(client, 10 * PONG_SECONDS)
        begun, client.silent = trio.current_time(), True
        assert await client.closing() == (1011, "keepalive ping timeout")
        assert PONG_SECONDS <= trio.current_time() - begun <= PONG_SECONDS + 2 * PING_SECONDS


# --- over sockets


async def test_the_handshake_is_checked() -> None:
    async with simulated() as it:
        credentials = it.issuer.sign_in()
        allowed = {
            "authorization": f"Bearer {credentials.access_token}",
            "chatgpt-account-id": str(credentials.account_id),
        }
        beta = {"openai-beta": websocket.BETA}
        assert await status(it.url, allowed | beta) == 101
        assert await status(it.url, allowed) == 426
        assert await status(it.url, beta) == 401
        it.chatgpt.websocket = False
        assert await status(it.url, allowed | beta) == 426
        assert it.chatgpt.connections == 1


async def status(url: str, headers: dict[str, str]) -> int:
    given = {"host": "x", "upgrade": "websocket", "connection": "Upgrade", "sec-websocket-key": "x"} | headers
    lines = ["GET /backend-api/codex/responses HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
        await stream.send_all("\r\n".join([*lines, "", ""]).encode())
        return int((await stream.receive_some()).split()[1])

"""The Responses API over a websocket, on a jumping clock."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from codexd.api.websocket import LIFETIME, MAX_WAITING
from codexd.config.model import Config, Server, Storage
from support.asgi import client
from support.backend import Backend, Counting, texts
from support.upstream import ADDED, COMPLETED, CREATED, done, failed, text

KEY = "a-client-key-of-somebody"


def create(said: Any = "x", **fields: Any) -> dict[str, Any]:
    return {"type": "response.create", "model": "gpt-5.5", "input": said, **fields}


async def test_many_responses_on_one_connection(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Counting()
    async with client(tmp_path, backend) as app, app.websocket() as socket:
        assert (await socket.raw())["type"] == "websocket.accept"
        for number in (1, 2, 3):
            await socket.send(create(str(number)))
            events = await socket.answer()
            assert [events[0]["type"], events[-1]["type"]] == ["response.created", "response.completed"]
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hi"
            assert texts(backend.sent) == [str(number)]


@pytest.mark.parametrize("store", [True, False])
async def test_a_connection_remembers_its_last_response(autojump_clock: MockClock, tmp_path: Path, store: bool) -> None:
    backend = Counting()
    async with client(tmp_path, backend) as app, app.websocket() as socket:
        await socket.raw()
        await socket.send(create("one", store=store))
        first = (await socket.answer())[-1]["response"]["id"]
        await socket.send(create("two", store=store, previous_response_id=first))
        second = (await socket.answer())[-1]["response"]
        assert (second["previous_response_id"], texts(backend.sent)) == (first, ["one", "Hi", "two"])
        await socket.send(create("other", store=store, previous_response_id=first))
        branch = (await socket.answer())[-1]
        if store:
            assert texts(backend.sent) == ["one", "Hi", "other"]
        else:
            assert (branch["status"], branch["error"]["code"]) == (400, "previous_response_not_found")
        async with app.websocket() as other:
            await other.raw()
            await other.send(create("elsewhere", previous_response_id=second["id"]))
            assert ((await other.answer())[-1]["type"] == "response.completed") is store


async def test_a_response_that_is_not_generated_gives_its_input_a_name(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    backend = Counting()
    async with client(tmp_path, backend) as app, app.websocket() as socket:
        await socket.raw()
        await socket.send(create([{"role": "user", "content": "known"}], generate=False, store=False))
        created, completed = await socket.answer()
        assert (created["response"]["status"], completed["response"]["status"]) == ("in_progress", "completed")
        assert (backend.requests, completed["response"]["output"]) == ([], [])
        await socket.send(create("new", previous_response_id=completed["response"]["id"]))
        await socket.answer()
    assert texts(backend.sent) == ["known", "new"]


async def test_what_is_wrong_is_an_error_event_and_the_connection_goes_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with client(tmp_path, Counting()) as app, app.websocket() as socket:
        await socket.raw()
        for frame, status, param in (
            ("{", 400, None),
            ({"type": "response.cancel"}, 400, "type"),
            ({"model": "gpt-5.5", "input": "x"}, 400, "type"),
            (create(model="nope"), 404, "model"),
            (create(input=7), 400, "input"),
            (create(background=True), 400, "background"),
        ):
            await socket.send(frame)
            error = await socket.receive()
            assert (error["type"], error["status"], error["error"]["param"]) == ("error", status, param)
            assert error["error"]["message"]
        await socket.send(create(stream=True, temperature=1))
        assert (await socket.answer())[-1]["type"] == "response.completed"


async def test_a_failure_of_the_backend_is_told_with_its_status(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, failed("rate_limit_exceeded", "Try again in 7s.")])
    async with client(tmp_path, backend) as app, app.websocket() as socket:
        await socket.raw()
        await socket.send(create())
        error = await socket.receive()
        assert (error["status"], error["headers"]["retry-after"]) == (429, "7")
        backend.steps = [CREATED, ADDED, text("Hi"), failed("server_error")]
        await socket.send(create())
        assert (await socket.answer())[-1]["type"] == "response.failed"
        backend.steps = [CREATED, ADDED, text("Hi"), done("Hi"), COMPLETED]
        await socket.send(create())
        assert (await socket.answer())[-1]["type"] == "response.completed"


async def test_a_stream_that_breaks_on_its_way_ends_with_a_status(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The official client waits on after an error without one."""
    backend = Backend([CREATED, ADDED, text("Hi")])
    async with client(tmp_path, backend) as app, app.websocket() as socket:
        await socket.raw()
        await socket.send(create())
        broken = (await socket.answer())[-1]
        assert (broken["type"], broken["status"], broken["headers"]) == ("error", 502, {})
        assert broken["sequence_number"] > 0


async def test_the_limits_come_as_events(autojump_clock: MockClock, tmp_path: Path) -> None:
    limits = {"type": "codex.rate_limits", "plan_type": "plus"}
    backend = Backend([CREATED, limits, ADDED, text("Hi"), done("Hi"), COMPLETED])
    async with client(tmp_path, backend) as app, app.websocket() as socket:
        await socket.raw()
        await socket.send(create())
        assert limits in await socket.answer()
        streamed = await app.request("POST", "/v1/responses", create(stream=True))
    assert b"rate_limits" not in streamed.body


async def test_an_empty_frame_is_a_request_that_is_wrong(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Counting()) as app, app.websocket() as socket:
        await socket.raw()
        for frame in ("", b"", b'{"type":"response.create","model":"gpt-5.5","input":"\xe9"}'):
            await socket.send(frame)
            assert (await socket.receive())["status"] == 400
        await socket.send(create())
        assert (await socket.answer())[-1]["type"] == "response.completed"


async def test_a_revoked_key_is_of_no_use_on_an_open_connection(autojump_clock: MockClock, tmp_path: Path) -> None:
    config = Config(server=Server(client_keys={"laptop": KEY}))
    headers = {"authorization": f"Bearer {KEY}"}
    async with client(tmp_path, Counting(), config) as app, app.websocket(headers) as socket:
        await socket.raw()
        await socket.send(create())
        await socket.answer()
        app.keys.configure(Config(server=Server(client_keys={"other": f"{KEY}-2"})))
        await socket.send(create())
        assert (await socket.receive())["status"] == 401


async def test_what_a_connection_remembers_is_bounded(autojump_clock: MockClock, tmp_path: Path) -> None:
    config = Config(server=Server(max_body_bytes=4096), storage=Storage(response_bytes=0))
    async with client(tmp_path, Counting(), config) as app, app.websocket() as socket:
        await socket.raw()
        previous, rounds, event = None, 0, {"type": ""}
        while event["type"] != "error":
            await socket.send(create("x" * 1000, store=False, generate=False, previous_response_id=previous))
            event = (await socket.answer())[-1]
            previous, rounds = event.get("response", {}).get("id"), rounds + 1
        assert event["error"]["code"] == "request_too_large"
        assert 2 < rounds < 6


async def test_a_strict_key_is_strict_without_an_answer_too(autojump_clock: MockClock, tmp_path: Path) -> None:
    config = Config(server=Server(client_keys={"laptop": KEY}, strict_keys=("laptop",)))
    async with client(tmp_path, Counting(), config) as app, app.websocket({"x-api-key": KEY}) as socket:
        await socket.raw()
        await socket.send(create(generate=False, temperature=1))
        assert (await socket.receive())["error"]["param"] == "temperature"


async def test_a_silence_is_filled_with_events(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("Hi"), 40.0, done("Hi"), COMPLETED])
    async with client(tmp_path, backend) as app, app.websocket() as socket:
        await socket.raw()
        await socket.send(create())
        kinds = [event["type"] for event in await socket.answer()]
    assert kinds.count("keepalive") == 2


async def test_a_client_that_leaves_ends_its_answer(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("Hi"), 1e6])
    async with client(tmp_path, backend) as app:
        async with app.websocket() as socket:
            await socket.raw()
            await socket.send(create())
            for _ in range(3):
                await socket.receive()
            for _ in range(MAX_WAITING - 1):
                await socket.send(create())
        assert (backend.bodies[0].closed, len(backend.bodies), app.services.pipeline.open) == (True, 1, 0)
    assert trio.current_time() < 1


async def test_requests_wait_their_turn_and_too_many_end_the_connection(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    backend = Backend([CREATED, ADDED, text("Hi"), 10.0, done("Hi"), COMPLETED])
    async with client(tmp_path, backend) as app, app.websocket() as socket:
        await socket.raw()
        for _ in range(1 + MAX_WAITING):
            await socket.send(create())
            await wait_all_tasks_blocked()
        for _ in range(1 + MAX_WAITING):
            assert (await socket.answer())[-1]["type"] == "response.completed"
        assert trio.current_time() >= 50
        backend.steps = [CREATED, 1e6]
        for _ in range(2 + MAX_WAITING):
            await socket.send(create())
            await wait_all_tasks_blocked()
        message = await socket.raw()
        assert (message["type"], message["code"]) == ("websocket.close", 1008)
        await socket.over.wait()


async def test_a_connection_has_an_end(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Counting()) as app, app.websocket() as socket:
        await socket.raw()
        await socket.send(create())
        await socket.answer()
        expired = await socket.receive()
        assert (expired["status"], expired["error"]["code"]) == (400, "websocket_connection_limit_reached")
        assert (await socket.raw())["type"] == "websocket.close"
        assert trio.current_time() == pytest.approx(LIFETIME, abs=1)


async def test_a_stop_closes_what_is_idle_and_lets_an_answer_end(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("Hi"), 10.0, done("Hi"), COMPLETED])
    async with client(tmp_path, backend) as app, app.websocket() as idle, app.websocket() as busy:
        for socket in (idle, busy):
            await socket.raw()
        await busy.send(create())
        await busy.receive()
        app.services.api.drain()
        closed = await idle.raw()
        assert (closed["type"], closed["code"]) == ("websocket.close", 1001)
        assert trio.current_time() < 1
        assert (await busy.answer())[-1]["type"] == "response.completed"
        assert (await busy.raw())["code"] == 1001
        async with app.websocket() as late:
            await late.raw()
            assert (await late.raw())["code"] == 1001


async def test_a_key_is_asked_for_before_the_handshake(autojump_clock: MockClock, tmp_path: Path) -> None:
    config = Config(server=Server(client_keys={"laptop": KEY}))
    async with client(tmp_path, Counting(), config) as app:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            async with app.websocket(headers) as socket:
                start, body = await socket.raw(), await socket.raw()
                assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
                assert b"invalid_api_key" in body["body"]
        async with app.websocket({"authorization": f"Bearer {KEY}", "origin": "http://page"}) as socket:
            assert (await socket.raw())["type"] == "websocket.accept"


async def test_a_web_page_has_no_business_here(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Counting()) as app, app.websocket({"origin": "http://page"}) as socket:
        assert (await socket.raw())["status"] == 403


@pytest.mark.parametrize("notice", ["response.processed", "response.interrupt"])
async def test_a_frame_that_is_no_request_gets_no_answer(
    autojump_clock: MockClock, tmp_path: Path, notice: str
) -> None:
    async with client(tmp_path, Counting()) as app, app.websocket() as socket:
        await socket.raw()
        await socket.send({"type": notice, "response_id": "resp_1"})
        await socket.send(create("x"))
        assert (await socket.answer())[0]["type"] == "response.created"
        await socket.send({"type": "response.unknown"})
        assert (await socket.answer())[-1]["type"] == "error"


@pytest.mark.parametrize("how", ["refused", "failed"])
async def test_what_failed_to_be_continued_is_forgotten(autojump_clock: MockClock, tmp_path: Path, how: str) -> None:
    backend = Counting()
    async with client(tmp_path, backend) as app, app.websocket() as socket:
        await socket.raw()
        await socket.send(create("one", store=False))
        first = (await socket.answer())[-1]["response"]["id"]
        await socket.send(create("other", store=False, temperature=7, background=True))
        assert (await socket.answer())[-1]["type"] == "error", "it did not continue"
        if how == "failed":
            backend.parts = (ADDED, text("x"), failed("invalid_prompt"))
        odd = {"previous_response_id": first, "store": False} | ({"background": True} if how == "refused" else {})
        await socket.send(create("two", **odd))
        assert (await socket.answer())[-1]["type"] in ("error", "response.failed")
        backend.parts = (done("Hi"),)
        await socket.send(create("three", store=False, previous_response_id=first))
        assert (await socket.answer())[-1]["error"]["code"] == "previous_response_not_found"

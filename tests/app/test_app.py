"""The whole app on a jumping clock: minutes of silence in no time."""

import gzip
import re
import uuid
import zlib
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import brotli
import httpx
import msgspec
import pytest
import trio
from trio.testing import MockClock
from werkzeug.datastructures import Headers

from codexd import errors
from codexd.api.access import client_of
from codexd.config import model
from codexd.config.model import Codex, Config, KeyLimits, Models, Server
from codexd.protocol import sse
from codexd.protocol.conversion import Conversion
from codexd.upstream.transport import Transport
from support.asgi import client
from support.backend import CALLED, REASONED, WHOLE, Backend, Body
from support.daemon import hello
from support.upstream import ADDED, COMPLETED, CREATED, Json, done, text


async def test_a_long_silence_is_filled_and_the_answer_arrives(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("Hel"), 100.0, text("lo"), done("Hello"), COMPLETED])
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/chat/completions", hello(stream=True))
    assert answer.status == 200
    assert [round(moment) for moment, data in answer.pieces if data == b": keepalive\n\n"] == [15, 30, 45, 60, 75, 90]
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_backend_that_does_not_accept_is_a_status(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Tried twice, and over before a keep-alive has made it a 200."""
    tried: list[float] = []

    async def never(*_: object) -> None:
        tried.append(trio.current_time())
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    config = Config(backend=model.Backend(url="http://chatgpt.test/backend-api"))
    async with client(tmp_path, Transport(), config) as http:
        answer = await http.request("POST", "/v1/chat/completions", hello(stream=stream))
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_unreachable")
    assert "no connection to chatgpt.test:80 within 6 seconds" in answer.json["error"]["message"]
    assert len(tried) == 2


async def test_an_answer_longer_than_the_hosts_own_limit_is_not_cut(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, *([30.0, text("x")] * 240), done("x" * 240), COMPLETED])
    async with client(tmp_path, backend) as app:
        for streamed in (True, False):
            answer = await app.request("POST", "/v1/chat/completions", hello(stream=streamed))
            assert answer.body.count(b"x") >= 240
            assert answer.ended
    assert trio.current_time() >= 2 * 2 * 3600


@pytest.mark.parametrize("moment", [0.5, 1.5, 2.5, 40])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_closes_the_upstream(
    autojump_clock: MockClock, tmp_path: Path, moment: float, streamed: bool
) -> None:
    backend = Backend([1.0, CREATED, 1.0, ADDED, text("Hel"), 100.0, COMPLETED])
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/chat/completions", hello(stream=streamed), leave_after=moment)
    assert trio.current_time() == pytest.approx(moment)
    assert not answer.ended
    assert [body.closed for body in backend.bodies] == [True]


async def test_a_request_id_is_kept_or_made_and_always_sent(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        for path in ("/v1/models", "/nope", "/v1/models/nope"):
            kept = await app.request("GET", path, headers={"x-request-id": "mine"})
            assert kept.headers["x-request-id"] == "mine"
            made = await app.request("GET", path, headers={"x-request-id": "not sane"})
            assert made.headers["x-request-id"].startswith("req_")


async def test_a_bug_is_a_500_with_the_request_id(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("codexd.api.chat.from_chat", broken)
    async with client(tmp_path, Backend()) as app:
        answer = await app.request("POST", "/v1/chat/completions", hello(), headers={"x-request-id": "mine"})
    assert answer.status == 500
    assert answer.json["error"]["code"] == "internal_error"
    assert "mine" in answer.json["error"]["message"]
    assert "oops" not in answer.body.decode()


async def test_a_bug_on_the_way_ends_its_answer_alone(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Conversion.feed

    def broken(conversion: Conversion, events: Sequence[bytes]) -> bytes:
        if any(moment in event for event in events):
            raise ZeroDivisionError("oops")
        return real(conversion, events)

    backend = Backend()
    async with client(tmp_path, backend) as app:
        with monkeypatch.context() as patched:
            patched.setattr("codexd.protocol.conversion.Conversion.feed", broken)
            moment = b"response.created"
            answer = await app.request("POST", "/v1/chat/completions", hello(stream=True))
            assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
            moment = b"response.completed"  # the answer has begun: half of it is worse than none
            with pytest.raises(ZeroDivisionError):
                await app.request("POST", "/v1/chat/completions", hello(stream=True))
        assert all(body.closed for body in backend.bodies)
        assert (await app.request("POST", "/v1/chat/completions", hello())).status == 200


@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        (b"", "not valid JSON: it is empty", None),
        (b"[]", "must be an object, not an array.", None),
        (b'{"messages": []}', 'Missing required field "model"', "model"),
        (b'{"model": 7, "messages": []}', "model: expected a string, got an integer.", "model"),
        (b'{"model": "", "messages": [{"role": "user", "content": "x"}]}', "must not be empty", "model"),
        (
            b'{"model": "gpt-5.5", "messages": [{"role": "user", "content": [{"type": "x"}]}]}',
            'messages[0].content[0].type: unknown value "x".',
            "messages[0].content[0].type",
        ),
        (
            b'{"model": "gpt-5.5", "messages": [{"content": "x"}]}',
            'messages[0]: missing required field "role"',
            "messages[0]",
        ),
        (b'{"model": "gpt-5.5", "messages": "x"}', "messages: expected an array", "messages"),
        (b"\xff\xfe", "not valid JSON", None),
        (b'{"model": "gpt-5.5", "messages": [], "x": ' + b"[" * 50_000, "not valid JSON", None),
    ],
)
async def test_a_wrong_body_is_a_400_that_names_the_place(
    autojump_clock: MockClock, tmp_path: Path, body: bytes, said: str, param: str | None
) -> None:
    backend = Backend()
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/chat/completions", body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert said in answer.json["error"]["message"]
    assert backend.requests == []


async def test_the_configuration_reaches_the_request(autojump_clock: MockClock, tmp_path: Path) -> None:
    config = Config(
        codex=Codex(mode=False, default_reasoning_effort="low", default_text_verbosity="high"),
        models=Models(aliases={"fast": "gpt-5.5"}),
        server=Server(client_keys={"a": "0123456789abcdef"}),
    )
    backend = Backend()
    async with client(tmp_path, backend, config) as app:
        key = {"authorization": "bearer 0123456789abcdef"}
        assert (await app.request("POST", "/chat/completions", hello(model="fast"), headers=key)).status == 200
        assert backend.sent["model"] == "gpt-5.5"
        assert backend.sent["instructions"] == "You are a helpful assistant."
        assert (backend.sent["reasoning"]["effort"], backend.sent["text"]["verbosity"]) == ("low", "high")
        for wrong in (
            {},
            {"authorization": "Bearer x"},
            {"authorization": "Basic 0123456789abcdef"},
            {"x-api-key": "é"},
        ):
            refused = await app.request("POST", "/chat/completions", hello(model="fast"), headers=wrong)
            assert refused.status == 401


async def test_instructions_of_the_family_go_first(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend()
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/responses", {"model": "gpt-5.2-codex", "input": "hi", "instructions": "Mine."})
    assert backend.sent["instructions"].startswith("You are a careful software engineer and reviewer")
    assert backend.sent["instructions"].endswith("\n\nMine.")


async def test_an_odd_cache_key_stays_out_of_the_headers(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend()
    async with client(tmp_path, backend) as app:
        for key in ("é", "a\nb", "x" * 300, " a"):
            assert (await app.request("POST", "/v1/chat/completions", hello(prompt_cache_key=key))).status == 200
            sent = backend.sent["prompt_cache_key"]
            assert sent == str(uuid.UUID(sent)) == backend.requests[-1].headers["session-id"]


async def test_models_and_health(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        listed = (await app.request("GET", "/models")).json
        assert listed["object"] == "list"
        assert {"id", "object", "created", "owned_by"} <= set(listed["data"][0])
        assert (await app.request("GET", "/v1/models/gpt-5.1-high")).json["id"] == "gpt-5.1-high"
        (tmp_path / "tokens.json").unlink()
        health = await app.request("GET", "/health")
        assert (health.status, health.json["status"], health.json["signed_in"]) == (200, "signed out", False)
        assert (await app.request("GET", "/health?ready=1")).status == 503
        assert (await app.request("GET", "/health?ready=0")).status == 200


async def test_web_pages_of_other_sites_are_refused_unless_there_is_a_key(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with client(tmp_path, Backend()) as app:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            assert (await app.request("GET", "/v1/models", headers={"sec-fetch-site": site})).status == status
    config = Config(server=Server(client_keys={"a": "0123456789abcdef"}))
    async with client(tmp_path, Backend(), config) as app:
        headers = {"sec-fetch-site": "cross-site", "x-api-key": "0123456789abcdef"}
        assert (await app.request("GET", "/v1/models", headers=headers)).status == 200


async def test_more_than_may_be_answered_at_once_is_a_503_with_a_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    config = Config(server=Server(max_requests=2))
    async with client(tmp_path, Backend([1.0, *WHOLE]), config) as app, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(app.request, "POST", "/v1/chat/completions", hello())
        await trio.testing.wait_all_tasks_blocked()
        refused = await app.request("POST", "/v1/responses", {"model": "gpt-5.5", "input": "x"})
        assert (refused.status, refused.json["error"]["code"]) == (503, "server_is_busy")
        assert refused.headers["retry-after"] == "1"
        assert (await app.request("GET", "/health")).status == 200
        await trio.sleep(2)
        assert (await app.request("POST", "/v1/chat/completions", hello())).status == 200


async def test_websocket_messages_and_choices_count_as_requests(autojump_clock: MockClock, tmp_path: Path) -> None:
    config = Config(server=Server(max_requests=3))
    backend = Backend([1.0, *WHOLE])
    async with client(tmp_path, backend, config) as app, app.websocket() as socket:
        await socket.raw()
        refused = await app.request("POST", "/v1/chat/completions", hello(n=4))
        assert (refused.status, refused.json["error"]["code"]) == (503, "server_is_busy")
        for _ in range(2):  # what was refused counts no more
            assert (await app.request("POST", "/v1/chat/completions", hello(n=3))).status == 200
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.request, "POST", "/v1/chat/completions", hello(n=3))
            await trio.testing.wait_all_tasks_blocked()
            await socket.send({"type": "response.create", "model": "gpt-5.5", "input": "x"})
            event = await socket.receive()
            assert (event["status"], event["error"]["code"]) == (503, "server_is_busy")
        await socket.send({"type": "response.create", "model": "gpt-5.5", "input": "x"})
        async with trio.open_nursery() as nursery:
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(app.request, "POST", "/v1/chat/completions", hello(n=2))
            await trio.testing.wait_all_tasks_blocked()
            assert (await app.request("POST", "/v1/chat/completions", hello())).status == 503
        assert (await socket.answer())[-1]["type"] == "response.completed"


async def test_a_key_may_do_what_it_may(autojump_clock: MockClock, tmp_path: Path) -> None:
    key = "0123456789abcdef"
    limits = KeyLimits(models=("gpt-5.1*",), requests_per_minute=60, concurrent_requests=1)
    config = Config(server=Server(client_keys={"a": key}, key_limits={"a": limits}))
    mine = {"authorization": f"Bearer {key}"}
    async with client(tmp_path, Backend([1.0, *WHOLE]), config) as app:
        other = await app.request("POST", "/v1/chat/completions", hello(), headers=mine)
        assert (other.status, other.json["error"]["code"]) == (403, "model_not_allowed")
        assert "gpt-5.1*" in other.json["error"]["message"]
        assert (await app.request("POST", "/v1/responses", b"{}", headers=mine)).status == 400
        listed = (await app.request("GET", "/v1/models", headers=mine)).json["data"]
        assert {model["id"] for model in listed} == {m["id"] for m in listed if m["id"].startswith("gpt-5.1")} != set()
        body = hello() | {"model": "gpt-5.1"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(app.request, "POST", "/v1/chat/completions", body, headers=mine))
            await trio.testing.wait_all_tasks_blocked()
            busy = await app.request("POST", "/v1/messages", body | {"max_tokens": 9}, headers=mine)
            assert (busy.status, busy.headers["retry-after"]) == (429, "1")
            assert busy.json["error"]["type"] == "rate_limit_error"
        answers = [await app.request("POST", "/v1/chat/completions", b"{}", headers=mine) for _ in range(70)]
        assert [answer.status for answer in answers].count(429) >= 9
        await trio.sleep(60)
        assert (await app.request("POST", "/v1/chat/completions", body, headers=mine)).status == 200
    over = Server(client_keys={"a": key}, key_limits={"a": KeyLimits(expires_at=1)})
    async with client(tmp_path, Backend(), Config(server=over)) as app:
        for path in ("/v1/models", "/v1/models/gpt-5.1", "/v1/responses/x", "/auth/login"):
            answer = await app.request("GET", path, headers=mine)
            assert (answer.status, answer.json["error"]["code"]) == (401, "expired_api_key")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:3000", 200), ("localhost.", 200), ("127.0.0.1:3000", 200), ("127.1.2.3", 200),
        ("[::1]:3000", 200), ("[::ffff:127.0.0.1]", 200), ("mine.lan:3000", 200),
        ("evil.example:3000", 403), ("127.0.0.1.evil.example", 403), ("127.evil", 403), ("localhost.evil", 403),
        ("192.168.0.1:3000", 403), ("[::1", 403), ("a@localhost@b", 403), ("", 200), ("[::1]evil.com", 403),
        ("evil@localhost", 403), ("localhost/evil", 403), ("localhost:3000:evil", 403), ("[::1]:evil", 403), ("localhost#", 403),
    ],
)  # fmt: skip
async def test_a_name_that_was_pointed_here_is_refused_unless_there_is_a_key(
    autojump_clock: MockClock, tmp_path: Path, host: str, status: int
) -> None:
    server = Server(hosts=("mine.lan",))
    async with client(tmp_path, Backend(), Config(server=server)) as app:
        answer = await app.request("GET", "/v1/models", headers={"host": host})
        assert answer.status == status
        if status == 403:
            assert (answer.json["error"]["code"], "server.hosts" in answer.json["error"]["message"]) == (
                "foreign_host",
                True,
            )
    keyed = Server(client_keys={"a": "0123456789abcdef"})
    async with client(tmp_path, Backend(), Config(server=keyed)) as app:
        headers = {"host": host, "x-api-key": "0123456789abcdef"}
        assert (await app.request("GET", "/v1/models", headers=headers)).status == 200


@pytest.mark.parametrize("path", ["/v1//models", "//v1/models", "/v1/models/", "//models//", "/models/gpt-5.1/"])
async def test_slashes_too_many_are_folded(autojump_clock: MockClock, tmp_path: Path, path: str) -> None:
    async with client(tmp_path, Backend()) as app:
        assert (await app.request("GET", path)).json["object"] in ("list", "model")
        assert (await app.request("HEAD", path)).status == 200
        refused = await app.request("PUT", path)
    assert (refused.status, refused.headers["allow"]) == (405, "GET")
    assert refused.json["error"]["message"] == f"{path} does not support PUT. Use GET."


async def test_an_upgrade_to_websocket_is_a_426(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        answer = await app.request("GET", "/v1/responses", headers={"upgrade": "websocket"})
        assert (answer.status, answer.json["error"]["code"]) == (426, "upgrade_required")


# --- several choices


class Voices(Backend):
    """Each request gets its own answer, by its number."""

    def __init__(self, *answers: Sequence["Json | float"]) -> None:
        super().__init__()
        self.answers = answers

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.steps = self.answers[len(self.requests) % len(self.answers)]
        return super().__call__(request)


def voice(word: str, *pauses: float) -> list["Json | float"]:
    return [CREATED, ADDED, *pauses, text(word), done(word), COMPLETED]


async def test_several_choices_are_as_many_requests_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Voices(voice("one", 5), voice("two", 1), voice("three", 3))
    async with client(tmp_path, backend) as app:
        begun = trio.current_time()
        answer = await app.request("POST", "/v1/chat/completions", hello(n=3))
        assert trio.current_time() - begun == pytest.approx(5, abs=0.5)
    assert (answer.status, len(backend.requests)) == (200, 3)
    assert answer.headers["x-codexd-adjusted"].startswith("n=emulated")
    said = [(choice["index"], choice["message"]["content"]) for choice in answer.json["choices"]]
    assert [index for index, _ in said] == [0, 1, 2]
    assert sorted(word for _, word in said) == ["one", "three", "two"]
    usage = answer.json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 9, 16)


async def test_all_choices_count_in_the_ledger(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Voices(voice("one"), voice("two"), voice("three"))) as app:
        await app.request("POST", "/v1/chat/completions", hello(n=3))
        text = (await app.request("GET", "/metrics")).body.decode()
    counted = dict(re.findall(r'codexd_tokens_total{[^}]*kind="(\w+)"[^}]*} (\d+)', text))
    assert (counted["input"], counted["output"]) == ("21", "9")


async def test_several_choices_share_one_stream(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Voices(voice("one", 2, 40), voice("two", 1))
    async with client(tmp_path, backend) as app:
        wanted = hello(n=2, stream=True, stream_options={"include_usage": True})
        answer = await app.request("POST", "/v1/chat/completions", wanted)
    events = sse.EventDecoder().feed(answer.body)
    assert events[-1] == b"[DONE]"
    assert events.count(b"[DONE]") == 1
    chunks = [msgspec.json.decode(data) for data in events[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    usages = [chunk["usage"] for chunk in chunks]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert (usages[-1]["completion_tokens"], chunks[-1]["choices"]) == (6, [])
    words: dict[int, str] = {}
    ends: list[int] = []
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        words[choice["index"]] = words.get(choice["index"], "") + choice["delta"].get("content", "")
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert sorted(words.values()) == ["one", "two"]
    assert sorted(ends) == [0, 1]
    assert b": keepalive" in answer.body


@pytest.mark.parametrize("streamed", [True, False])
async def test_one_failure_is_the_failure_of_all(autojump_clock: MockClock, tmp_path: Path, streamed: bool) -> None:
    failed = {"type": "response.failed", "response": {"error": {"code": "insufficient_quota", "message": "No more."}}}
    backend = Voices([CREATED, failed], [CREATED, 9.0, ADDED, text("late")])
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/chat/completions", hello(n=2, stream=streamed))
    assert (answer.status, answer.json["error"]["code"]) == (429, "insufficient_quota")
    assert all(body.closed for body in backend.bodies)


@pytest.mark.parametrize("order", [0, 1])
async def test_a_failure_after_the_beginning_is_told_once(
    autojump_clock: MockClock, tmp_path: Path, order: int
) -> None:
    failed = {"type": "response.failed", "response": {"error": {"code": "insufficient_quota", "message": "No more."}}}
    fails = [CREATED, 2.0, failed] if order else [CREATED, ADDED, text("a"), 2.0, failed]
    backend = Voices(fails, [CREATED, ADDED, text("good"), 9.0, text("never"), COMPLETED])
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/chat/completions", hello(n=2, stream=True))
    assert answer.status == 200
    assert answer.body.count(b'data: {"error"') == 1
    assert b"[DONE]" not in answer.body
    assert b"never" not in answer.body
    assert all(body.closed for body in backend.bodies)


async def test_a_client_of_several_choices_that_leaves_closes_them_all(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    backend = Voices([CREATED, ADDED, text("a"), 500.0], [CREATED, ADDED, text("b"), 500.0])
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/chat/completions", hello(n=2, stream=True), leave_after=5)
    assert [body.closed for body in backend.bodies] == [True, True]


async def test_a_cut_answer_closes_its_upstream_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    for fields in ({"stop": ["STOP"]}, {"max_tokens": 1}, {"n": 2, "stop": "STOP"}):
        for streamed in (True, False):
            backend = Backend([CREATED, ADDED, text("okaySTOP"), 500.0, COMPLETED])
            async with client(tmp_path, backend) as app:
                begun = trio.current_time()
                answer = await app.request("POST", "/v1/chat/completions", hello(stream=streamed, **fields))
                assert trio.current_time() - begun < 0.1
            assert (answer.status, answer.ended) == (200, True)
            assert b"STOP" not in answer.body.replace(b'"stop"', b"")
            assert all(body.closed for body in backend.bodies)
            assert "sent" not in backend.sent
            assert set(backend.sent) & {"stop", "max_tokens", "n"} == set()


# --- reasoning between turns

LOOP = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "1"},
]  # fmt: skip


def kinds(body: Any) -> list[str]:
    return [item["type"] for item in body["input"]]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_tool_loop_gets_its_reasoning_back(autojump_clock: MockClock, tmp_path: Path, streamed: bool) -> None:
    backend = Backend([CREATED, REASONED, CALLED, COMPLETED])
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/chat/completions", hello(stream=streamed))
        answer = await app.request("POST", "/v1/chat/completions", hello(messages=LOOP))
        assert kinds(backend.sent) == ["message", "reasoning", "function_call", "function_call_output"]
        assert "reasoning=recalled" in answer.headers["x-codexd-adjusted"]
        await app.request("POST", "/v1/chat/completions", hello(messages=LOOP, model="gpt-6-sol"))
        assert "reasoning" not in kinds(backend.sent)
        await trio.sleep(4000)
        await app.request("POST", "/v1/chat/completions", hello(messages=LOOP))
        assert "reasoning" not in kinds(backend.sent)


async def test_no_memory_keeps_nothing(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, REASONED, CALLED, COMPLETED])
    async with client(tmp_path, backend, Config(codex=Codex(reasoning_memory_bytes=0))) as app:
        await app.request("POST", "/v1/chat/completions", hello())
        await app.request("POST", "/v1/chat/completions", hello(messages=LOOP))
    assert kinds(backend.sent) == ["message", "function_call", "function_call_output"]


class Forgetful(Backend):
    """Cannot decrypt any reasoning, and says so before the stream or in it."""

    def __init__(self, how: str) -> None:
        super().__init__([CREATED, REASONED, CALLED, COMPLETED])
        self.how = how

    def __call__(self, request: httpx.Request) -> httpx.Response:
        response = super().__call__(request)
        if "reasoning" not in kinds(self.sent):
            return response
        error = {"code": "invalid_encrypted_content", "message": "The encrypted content could not be verified."}
        if self.how == "status":
            return httpx.Response(400, json={"error": error})
        return httpx.Response(200, stream=Body([CREATED, {"type": "response.failed", "response": {"error": error}}]))


@pytest.mark.parametrize("how", ["status", "event"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_reasoning_that_cannot_be_decrypted_is_left_out(
    autojump_clock: MockClock, tmp_path: Path, how: str, streamed: bool
) -> None:
    backend = Forgetful(how)
    own = [{"role": "user", "content": "x"}, {"type": "reasoning", "encrypted_content": "gA", "summary": []}]
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/chat/completions", hello())
        wanted = (
            ("/v1/chat/completions", hello(messages=LOOP, stream=streamed)),
            ("/v1/responses", {"model": "gpt-5.5", "input": own, "stream": streamed}),
        )
        for path, body in wanted:
            before = len(backend.requests)
            answer = await app.request("POST", path, body)
            assert (answer.status, len(backend.requests) - before) == (200, 2)
            assert "reasoning=dropped" in answer.headers["x-codexd-adjusted"]


async def test_a_backend_that_goes_on_refusing_is_believed(autojump_clock: MockClock, tmp_path: Path) -> None:
    def backend(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(400, json={"error": {"code": "invalid_encrypted_content", "message": "No."}})

    requests: list[httpx.Request] = []
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/chat/completions", hello())
        assert (answer.status, len(requests)) == (400, 1)
        own = [{"role": "user", "content": "x"}, {"type": "reasoning", "encrypted_content": "gA", "summary": []}]
        answer = await app.request("POST", "/v1/responses", {"model": "gpt-5.5", "input": own})
    assert (answer.status, len(requests)) == (400, 3)
    assert answer.headers["x-codexd-adjusted"].count("reasoning=dropped") == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_bytes_that_are_no_text_are_a_400_wherever_they_stand(
    autojump_clock: MockClock, tmp_path: Path, path: str
) -> None:
    async with client(tmp_path, Backend()) as app:
        for place in (b'"unknown": "\xe9"', b'"input": [{"content": "a\xe9"}]', b'"tools": [{"name": "\xe9"}]'):
            body = b'{"model": "gpt-5.5", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], %b}' % place
            answer = await app.request("POST", path, body)
            assert answer.status == 400
            assert (
                "cannot be read" in answer.json["error"]["message"]
                or "not valid JSON" in answer.json["error"]["message"]
            )


async def test_who_streams_is_not_idle(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("Hel"), 100.0, text("lo"), done("Hello"), COMPLETED])
    async with client(tmp_path, backend) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.request, "POST", "/v1/chat/completions", hello(stream=True))
            await trio.sleep(50)
            assert app.services.api.idle_seconds() == 0
        assert app.services.api.idle_seconds() == pytest.approx(0, abs=1)
        async with app.websocket() as socket:
            await socket.raw()
            await trio.sleep(60)
            assert app.services.api.idle_seconds() == 0
        await trio.sleep(7)
        await app.request("GET", "/health")
        assert app.services.api.idle_seconds() == pytest.approx(7, abs=1)
        await app.request("GET", "/v1/models")
        assert app.services.api.idle_seconds() < 1


@pytest.mark.parametrize(
    ("peer", "forwarded", "logged"),
    [
        (("203.0.113.7", 1), "198.51.100.1", "203.0.113.7"),  # whoever comes by TCP can say anything
        (("127.0.0.1", 1), "198.51.100.1", None),
        (None, "198.51.100.1", "198.51.100.1"),
        (None, "203.0.113.9, 2001:db8::1", "2001:db8::1"),
        (None, "", None),
        (None, 'x" admin=yes', None),
    ],
)
def test_whose_address_is_logged(peer: tuple[str, int] | None, forwarded: str, logged: str | None) -> None:
    assert client_of(peer, Headers({"x-forwarded-for": forwarded})) == logged


# --- paths, lists and codings of real clients


@pytest.mark.parametrize(
    "path",
    ["/v1/v1/chat/completions", "/openai/v1/chat/completions", "/openai/chat/completions", "//v1//chat/completions/",
     "/v1/v1/v1/chat/completions"],
)  # fmt: skip
async def test_careless_base_urls_work(autojump_clock: MockClock, tmp_path: Path, path: str) -> None:
    async with client(tmp_path, Backend()) as app:
        assert (await app.request("POST", path, hello())).status == 200


@pytest.mark.parametrize("path", ["/anthropic/v1/messages", "/v1/v1/messages", "/messages", "/anthropic/messages"])
async def test_also_those_of_anthropics_clients(autojump_clock: MockClock, tmp_path: Path, path: str) -> None:
    body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    async with client(tmp_path, Backend()) as app:
        answer = await app.request("POST", path, body)
        assert (answer.status, answer.json["model"]) == (200, "gpt-6-luna")
        unknown = await app.request("POST", "/anthropic/v1/nothing", body)
        assert (unknown.status, unknown.json["type"]) == (404, "error")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/embeddings", "does not offer embeddings"),
        ("/v1/audio/speech", "does not offer speech synthesis"),
        ("/v1/files/file_1", "does not offer file storage"),
        ("/v1/messages/batches", "does not offer batches"),
        ("/embeddings", "does not offer embeddings"),
    ],
)
async def test_what_the_backend_has_not_is_said_in_a_sentence(
    autojump_clock: MockClock, tmp_path: Path, path: str, words: str
) -> None:
    async with client(tmp_path, Backend()) as app:
        answer = await app.request("POST", path, {})
        assert (answer.status, answer.json["error"]["code"]) == (404, "not_supported")
        assert words in answer.json["error"]["message"] and "another provider" in answer.json["error"]["message"]
        same = await app.request("POST", path, {}, headers={"anthropic-version": "2023-06-01"})
        assert (same.status, same.json["type"], same.json["error"]["type"]) == (404, "error", "not_found_error")
        other = await app.request("POST", "/v1/filesystem", {})
        assert other.json["error"]["code"] == "unknown_url"


async def test_models_say_what_clients_size_their_requests_by(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        listed = (await app.request("GET", "/v1/models")).json["data"]
        found = next(each for each in listed if each["id"] == "gpt-5.5")
        assert found["context_length"] == 272_000
        assert (found["input_modalities"], found["output_modalities"]) == (["text", "image"], ["text"])
        assert found["created"] > 1e9 and found["max_output"] > 0
        assert (await app.request("GET", "/v1/models/gpt-5.5")).json == found
        version = {"anthropic-version": "2023-06-01"}
        page = (await app.request("GET", "/v1/models", headers=version)).json
        assert page["has_more"] is False
        assert [each["id"] for each in page["data"]] == [each["id"] for each in listed]
        assert (page["first_id"], page["last_id"]) == (listed[0]["id"], listed[-1]["id"])
        one = (await app.request("GET", "/v1/models/claude-sonnet-4-5", headers=version)).json
        assert (one["type"], one["id"], one["display_name"]) == ("model",) + ("claude-sonnet-4-5",) * 2
        datetime.fromisoformat(one["created_at"])


@pytest.mark.parametrize(
    ("name", "code"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("br", brotli.compress)]
)
async def test_bodies_may_be_compressed(autojump_clock: MockClock, tmp_path: Path, name: str, code: Any) -> None:
    config = Config(server=Server(max_body_bytes=4096))
    async with client(tmp_path, Backend(), config) as app:
        body = msgspec.json.encode(hello())
        path, headers = "/v1/chat/completions", {"content-encoding": name}
        assert (await app.request("POST", path, code(body), headers=headers)).status == 200
        assert (await app.request("POST", path, code(bytes(5000)), headers=headers)).status == 413
        assert (await app.request("POST", path, body, headers=headers)).status == 400


async def test_an_answer_that_a_retry_cannot_change_says_so(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Claude Code tries a 401 again for three minutes before it shows the message."""
    async with client(tmp_path, Backend(), Config(server=Server(client_keys={"mine": "k" * 32}))) as app:
        for path in ("/v1/chat/completions", "/v1/messages"):
            refused = await app.request("POST", path, hello(), headers={"authorization": "Bearer wrong"})
            assert (refused.status, refused.headers["x-should-retry"]) == (401, "false")
    assert dict(errors.signed_out("Not signed in").headers) == {"x-should-retry": "false"}

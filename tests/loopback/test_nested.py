"""JSON that is nested more deeply than can be read, from each side that sends some: nothing ends, and all says why."""

import re
from pathlib import Path

import httpx
import pytest

from support.asking import Client
from support.control import codexctl
from support.daemon import PATIENCE, credentials, hello, running
from support.upstream import ADDED, COMPLETED, CREATED, Call, Upstream, done, text

pytestmark = pytest.mark.loopback

DEEP = b"[" * 60_000

FILES = {
    "tokens.json": b'{"access_token": "a", "x": %b' % DEEP,
    "keys.json": b'{"x": %b' % DEEP,
    "models.json": b'{"fetched_at": 1, "x": %b' % DEEP,
    "usage.json": b'{"x": %b' % DEEP,
    "prompts.json": b'{"x": %b' % DEEP,
    "responses/resp_1.json": b'{"x": %b' % DEEP,
}


async def test_no_state_file_keeps_the_daemon_from_starting(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    for name, data in FILES.items():
        path = tmp_path / "state" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    async with running(tmp_path, logs, upstream, storage={"responses": True}) as daemon:
        async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
            assert (await http.get("/health")).json()["status"] == "signed out"
            # A file of keys that cannot be read opens nothing.
            assert (await http.get("/v1/models")).status_code == 401
        log = daemon.log.read_text()
        assert log.count("nested too deeply") >= len(FILES) - 1  # of the sign-in status tells
        assert "Traceback" not in log
        said = await codexctl(daemon, "status")
        assert (said.code, "nested too deeply" in re.sub(r"\s+", " ", said.out)) == (3, True)


async def test_the_catalogue_and_the_sign_in_server(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async def deep(call: Call) -> None:
        await call.answer(200, b'{"models": %b' % DEEP if "models" in call.target else b'{"x": %b' % DEEP)

    upstream.page_play = deep
    upstream.token_plays = [deep]
    (tmp_path / "state").mkdir()
    credentials(tmp_path / "state", expires_at=1)
    async with running(tmp_path, logs, upstream) as daemon:
        await daemon.logged("the sign-in server's answer cannot be read: it is nested too deeply")
        async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
            refused = await http.post("/v1/chat/completions", json=hello())
            assert refused.status_code == 503
            assert (await http.get("/health")).status_code == 200
    log = daemon.log.read_text()
    assert "internal error" not in log


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_an_event_and_every_dialect(tmp_path: Path, logs: Path, upstream: Upstream, transport: str) -> None:
    async def play(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("Hel"))
        for kind in (b"response.output_text.annotation.added", b"response.output_item.done", b"nobody.knows", b"error"):
            event = b'{"type":"%b","response":%b}' % (kind, DEEP)
            await call.chunk(event if call.lane == "websocket" else b"data: %b\n\n" % event)
        await call.events(text("lo"), done("Hello"), COMPLETED)
        await call.end()

    upstream.plays = [play]
    async with (
        running(tmp_path, logs, upstream, backend={"transport": transport}) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        for dialect in ("chat", "responses"):
            for streamed in (True, False):
                outcome = await Client(http, dialect, streamed).ask()
                assert (outcome.error, outcome.text) == (None, "Hello")
    assert "Traceback" not in daemon.log.read_text()

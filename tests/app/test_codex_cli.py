"""What the Codex CLI wants of its server beside the Responses API."""

import tracemalloc
from pathlib import Path

import httpx
import msgspec
import pytest
from trio.testing import MockClock

from codexd.config.model import Config, Server
from codexd.upstream.catalog import _Copy
from support.asgi import client
from support.backend import Backend
from support.daemon import hello
from support.zstd import zstd

ZSTD = {"content-encoding": "zstd"}


async def test_bodies_may_come_in_zstd(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend()
    body = msgspec.json.encode(hello())
    chunked = zstd.ZstdCompressor()
    async with client(tmp_path, backend) as app:
        in_two = zstd.compress(body[:9]) + zstd.compress(body[9:])
        for data in (zstd.compress(body), chunked.compress(body) + chunked.flush(), in_two):
            answer = await app.request("POST", "/v1/chat/completions", data, headers=ZSTD)
            assert answer.json["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize(
    ("data", "encoding", "status", "code"),
    [
        (b"{}", "zstd", 400, None),
        (b"", "zstd", 400, None),
        (zstd.compress(b" " * 5000), "zstd", 413, "request_too_large"),
        (zstd.compress(msgspec.json.encode(hello()))[:-4], "zstd", 400, None),
        (b"{}", "gzip", 400, None),
        (b"{}", "compress", 415, "unsupported_encoding"),
    ],
)
async def test_what_cannot_be_decompressed_is_said(
    autojump_clock: MockClock, tmp_path: Path, data: bytes, encoding: str, status: int, code: str | None
) -> None:
    config = Config(server=Server(max_body_bytes=4096))
    async with client(tmp_path, Backend(), config) as app:
        answer = await app.request("POST", "/v1/chat/completions", data, headers={"content-encoding": encoding})
        assert (answer.status, answer.json["error"]["code"]) == (status, code)


async def test_a_bomb_is_not_blown_up(autojump_clock: MockClock, tmp_path: Path) -> None:
    bomb = zstd.compress(bytes(1 << 28), level=19)
    assert len(bomb) < 50_000
    config = Config(server=Server(max_body_bytes=1 << 20))
    async with client(tmp_path, Backend(), config) as app:
        tracemalloc.start()
        try:
            assert (await app.request("POST", "/v1/responses", bomb, headers=ZSTD)).status == 413
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()


async def test_the_catalogue_comes_as_the_backend_wrote_it(tmp_path: Path) -> None:
    # On the real clock: a file is read in a thread, and the other one jumps while a thread works.
    answer = b'{"models":[{"slug":"gpt-x","base_instructions":"Be.","unknown":{"deep":[1,2]}}]}'
    async with client(tmp_path, Backend()) as app:
        missing = await app.request("GET", "/v1/models?client_version=0.169.0")
        assert (missing.status, missing.json["error"]["code"]) == (503, "no_catalogue")
        copy = _Copy(1, "1", 'W/"7"', msgspec.Raw(answer))
        (tmp_path / "models.json").write_bytes(msgspec.json.encode(copy))
        found = await app.request("GET", "/v1/models?client_version=0.169.0")
        assert (found.body, found.headers["etag"]) == (answer, 'W/"7"')
        assert (await app.request("GET", "/v1/models")).json["object"] == "list"


async def test_the_usage_page_comes_as_the_backend_wrote_it(autojump_clock: MockClock, tmp_path: Path) -> None:
    asked: list[str] = []

    def backend(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, content=b'{"plan_type":"plus","new":1}')

    async with client(tmp_path, backend) as app:
        answer = await app.request("GET", "/api/codex/usage")
        assert (answer.status, answer.body) == (200, b'{"plan_type":"plus","new":1}')
        assert (await app.request("GET", "/v1/api/codex/usage")).status == 404
    assert asked == ["/backend-api/wham/usage"]

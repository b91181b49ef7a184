"""Web pages of other origins, as a browser meets codexd from them."""

from pathlib import Path

import pytest
from trio.testing import MockClock

from codexd.config.model import Config, Server
from support.asgi import Client, client
from support.backend import WHOLE, Backend
from support.daemon import hello

KEY = "0123456789abcdef"
PAGE = "https://chat.example"
OTHER = "https://evil.example"
HEADERS = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


async def asked(app: Client, origin: str, **headers: str) -> tuple[int, str | None, int]:
    """What the preflight and then the request get: status, the origin that may read it, status."""
    before = await app.request("OPTIONS", "/v1/chat/completions", headers={"origin": origin, **HEADERS})
    answer = await app.request("POST", "/v1/chat/completions", hello(), headers={"origin": origin, **headers})
    allowed = answer.headers.get("access-control-allow-origin")
    assert before.headers.get("access-control-allow-origin") == allowed
    return before.status, allowed, answer.status


@pytest.mark.parametrize(
    ("allowed", "keyed", "origin", "expected"),
    [
        ((), False, PAGE, (403, None, 403)),
        ((), True, PAGE, (401, None, 200)),  # it has the key; that the page may not read the answer is the browser's
        ((PAGE,), False, PAGE, (200, PAGE, 200)),
        ((PAGE,), False, OTHER, (403, None, 403)),
        ((PAGE,), False, "null", (403, None, 403)),
        ((PAGE,), False, f"{PAGE}.evil.example", (403, None, 403)),
        ((PAGE,), True, PAGE, (200, PAGE, 200)),
        ((PAGE,), True, OTHER, (200, None, 200)),
        (("*",), True, OTHER, (200, OTHER, 200)),
        (("*",), False, OTHER, (403, None, 403)),
        (("app://obsidian.md",), False, "app://obsidian.md", (200, "app://obsidian.md", 200)),
    ],
)
async def test_who_may_come(
    autojump_clock: MockClock,
    tmp_path: Path,
    allowed: tuple[str, ...],
    keyed: bool,
    origin: str,
    expected: tuple[int, str | None, int],
) -> None:
    server = Server(allowed_origins=allowed, client_keys={"a": KEY} if keyed else {})
    async with client(tmp_path, Backend(), Config(server=server)) as app:
        key = {"authorization": f"Bearer {KEY}"} if keyed else {}
        assert await asked(app, origin, **key) == expected
        if keyed:
            assert (await asked(app, origin))[2] == 401


async def test_what_a_browser_is_told(autojump_clock: MockClock, tmp_path: Path) -> None:
    config = Config(server=Server(allowed_origins=(PAGE,)))
    async with client(tmp_path, Backend(), config) as app:
        private = {"access-control-request-private-network": "true"}
        before = await app.request("OPTIONS", "/v1/models", headers={"origin": PAGE, **HEADERS, **private})
        assert before.headers["access-control-allow-methods"] == "GET"
        assert before.headers["access-control-allow-headers"] == "authorization,content-type"
        assert before.headers["access-control-allow-private-network"] == "true"
        assert before.headers["access-control-max-age"] == "7200"
        streamed = await app.request("POST", "/v1/chat/completions", hello(stream=True), headers={"origin": PAGE})
        refused = await app.request("GET", "/v1/models/nope", headers={"origin": PAGE})
        for answer in (before, streamed, refused):
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers["vary"] == "origin"
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert (await app.request("OPTIONS", "/v1/nope", headers={"origin": PAGE, **HEADERS})).status == 404
        refusal = await app.request("GET", "/v1/models", headers={"origin": OTHER})
        assert "server.allowed_origins" in refusal.json["error"]["message"]


@pytest.mark.parametrize("keyed", [True, False])
async def test_pages_of_stored_responses_are_for_them_too(
    autojump_clock: MockClock, tmp_path: Path, keyed: bool
) -> None:
    server = Server(allowed_origins=(PAGE,), client_keys={"a": KEY} if keyed else {})
    async with client(tmp_path, Backend(), Config(server=server)) as app:
        for path, methods in (
            ("/v1/responses/resp_1", "GET, DELETE"),
            ("/responses/resp_1/input_items", "GET"),
            ("/v1/models/gpt-5.1", "GET"),
        ):
            before = await app.request("OPTIONS", path, headers={"origin": PAGE, **HEADERS})
            assert (before.status, before.headers["access-control-allow-methods"]) == (200, methods)


@pytest.mark.parametrize("origin", ["http://[", "http://\x01", "\x7f"])
async def test_an_origin_that_is_none_is_refused(autojump_clock: MockClock, tmp_path: Path, origin: str) -> None:
    for server, status in ((Server(), 403), (Server(allowed_origins=("*",), client_keys={"a": KEY}), 200)):
        async with client(tmp_path, Backend(), Config(server=server)) as app:
            headers = {"origin": origin, "authorization": f"Bearer {KEY}", "access-control-request-headers": "\x01"}
            answer = await app.request("GET", "/v1/models", headers=headers)
            assert answer.status == status
            if not origin.isprintable():
                assert "access-control-allow-origin" not in answer.headers
            before = await app.request("OPTIONS", "/v1/models", headers=headers)
            assert before.headers.get("access-control-allow-headers", "*") == "*"


async def test_a_page_of_codexds_own_address_may_ask(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        for origin, host, status in (
            ("http://localhost:3000", "localhost:3000", 200),
            ("http://localhost:3001", "localhost:3000", 403),
            ("http://evil.example", "evil.example", 403),  # it was pointed here
            ("null", "", 403),
        ):
            answer = await app.request("GET", "/v1/models", headers={"origin": origin, "host": host})
            assert answer.status == status


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded", "via", "x-real-ip"])
async def test_behind_a_proxy_there_is_no_way_in_without_a_key(
    autojump_clock: MockClock, tmp_path: Path, name: str
) -> None:
    """A proxy makes a unix socket, or loopback, reachable for everyone."""
    through = {name: "203.0.113.9", "content-type": "application/json"}
    async with client(tmp_path, Backend(WHOLE)) as app:
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/")):
            refused = await app.request(method, path, hello() if method == "POST" else None, headers=through)
            assert (refused.status, refused.json["error"]["code"]) == (403, "proxy_without_key")
        assert (await app.request("GET", "/health", headers=through)).status == 200
    key = "k" * 32
    for server in (Server(allow_unauthenticated=True), Server(client_keys={"mine": key})):
        async with client(tmp_path, Backend(WHOLE), Config(server=server)) as app:
            answer = await app.request("GET", "/v1/models", headers=through | {"authorization": f"Bearer {key}"})
            assert answer.status == 200

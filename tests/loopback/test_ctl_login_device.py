"""``codexctl login --device``: a code, in a terminal or as JSON, and the same over HTTP."""

import re
import signal

import pytest
import trio

from codexd.auth import store
from codexd.demo.issuer import EMAIL
from support.codexctl import Make, Setup, device_code, visit
from support.control import Said, in_terminal

pytestmark = pytest.mark.loopback


async def test_a_login_in_a_terminal(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        assert "run `codexctl login`" in await it.daemon.logged("not signed in")
        async with in_terminal(it.daemon, "login") as terminal:
            code = await device_code(terminal)
            assert f"{it.chatgpt.url}/codex/device" in terminal.screen
            assert "█▀" in terminal.screen
            assert "administrator" in terminal.screen
            await terminal.until("Waiting for the sign-in, 14:")
            assert it.issuer.decide(code, "granted")
            assert await terminal.end() == 0
            assert f"Signed in as \x1b[1m{EMAIL} (plus)" in terminal.screen
        assert (await it.ctl("status")).code == 0
        assert it.tokens.stat().st_mode & 0o777 == 0o600
        # No secret of the sign-in is in the log.
        log = it.daemon.log.read_text()
        stored = store.load(it.tokens)
        assert stored is not None
        for secret in (code, stored.access_token, stored.refresh_token, it.issuer.posts[-1][1]["code"], "ac_"):
            assert secret is not None
            assert secret not in log


async def test_a_narrow_terminal_and_no_colour(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        async with in_terminal(it.daemon, "login", "--device", env={"NO_COLOR": "1"}) as terminal:
            code = await device_code(terminal)
            assert "\x1b[97;40m" not in terminal.screen
            assert it.issuer.decide(code, "denied")
            assert await terminal.end() == 5
            assert "the request was denied" in terminal.screen
        piped = await it.ctl("status")
        assert piped.code == 3


async def test_closing_the_terminal_does_not_lose_a_device_login(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        async with in_terminal(it.daemon, "login") as terminal:
            code = await device_code(terminal)
            terminal.process.kill()
            await terminal.process.wait()
        status = await it.ctl("status")
        assert "in progress (device)" in status.out
        async with in_terminal(it.daemon, "login") as terminal:
            assert await device_code(terminal) == code
            assert "already in progress" in terminal.screen
            await terminal.until("Waiting for the sign-in")
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.end() == 130
            assert "Still waiting for approval in the background." in terminal.screen
        assert it.issuer.decide(code, "granted")
        await it.daemon.logged("signed in account_id")
        assert (await it.ctl("status")).code == 0


async def test_a_login_as_json(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        found: list[Said] = []

        async def login() -> None:
            found.append(await it.ctl("login", "--device", "--json"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(login)
            await it.daemon.logged("device sign-in started")
            it.issuer.approves_after = 0
        lines = found[0].json
        assert [line["reply"] for line in lines] == ["device_code", "account", "done"]
        assert re.fullmatch("[A-Z]{4}-[A-Z]{5}", lines[0]["user_code"])
        assert (lines[1]["email"], lines[1]["signed_in"]) == (EMAIL, True)


async def test_device_codes_that_are_switched_off(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        it.issuer.device_codes = False
        said = await it.ctl("login")
        assert said.code == 5
        assert "Enable device code authorization for Codex" in said.err


# --- POST /auth/login


async def test_a_login_over_http(setup: Make) -> None:
    async with setup(signed_in=False) as it, it.client() as client:
        assert (await client.get("/auth/login")).json() == {"state": "none", "signed_in": False}
        started = (await client.post("/auth/login")).json()
        assert started["state"] == "pending"
        assert started["verification_url"] == f"{it.chatgpt.url}/codex/device"
        assert "Enable device code" in started["instructions"]
        assert started["expires_at"] > 1_700_000_000
        again = (await client.post("/auth/login", json={"method": "device"})).json()
        assert again["user_code"] == started["user_code"]
        browser = (await client.post("/auth/login", json={"method": "browser"})).json()
        assert browser["authorization_url"].startswith(f"{it.chatgpt.url}/oauth/authorize?")
        assert "user_code" not in browser
        it.issuer.asks = False
        assert (await visit(browser["authorization_url"])).status_code == 200
        done = (await client.get("/auth/login")).json()
        assert (done["state"], done["email"], done["signed_in"]) == ("succeeded", EMAIL, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-forwarded-for", "192.0.2.1"),
        ("sec-fetch-site", "cross-site"),
        ("host", "evil.example:{port}"),
        ("origin", "http://127.0.0.1"),
    ],
)
async def test_a_login_over_http_is_for_this_machine(shared: Setup, name: str, value: str) -> None:
    headers = {name: value.format(port=shared.daemon.port)}
    async with shared.client() as client:
        assert (await client.post("/auth/login", headers=headers)).status_code == 403


async def test_a_login_over_http_names_the_wrong_parameter(shared: Setup) -> None:
    async with shared.client() as client:
        wrong = await client.post("/auth/login", json={"method": "magic"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "method")


async def test_a_login_over_http_needs_a_client_key_where_there_is_one(shared: Setup) -> None:
    async with shared.client() as client, shared.key("a") as key:
        assert (await client.get("/auth/login")).status_code == 401
        assert (await client.get("/auth/login", headers={"x-api-key": key})).status_code == 200

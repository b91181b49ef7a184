"""Signing in, over a simulated issuer that checks what a real one checks, with the autojump clock."""

import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from trio.testing import MockClock

from codexd.auth import store
from codexd.auth.issuer import Issuer
from codexd.auth.login import Attempt, Logins, _with_port, who_listens
from codexd.auth.oauth import DEVICE_LIFETIME
from codexd.auth.session import Session
from codexd.config.model import OAuth
from codexd.demo import issuer as demo
from codexd.errors import ApiError
from support.daemon import ROOT
from support.simulated import Wire

EPOCH = 1_795_000_000.0
REDIRECT = "http://127.0.0.1:1455/auth/callback"


def now() -> float:
    return EPOCH + trio.current_time()


class Setup:
    """The parts of a sign-in, running."""

    def __init__(
        self, folder: Path, *, any_port: bool = False, ports: Sequence[int] | None = None, **oauth: Any
    ) -> None:
        self.path = folder / "tokens.json"
        self.person = demo.SimulatedIssuer(now, any_port=any_port)
        self.person.url = "https://issuer.test"
        self.wire = Wire(self.person)
        config = OAuth(issuer="https://issuer.test/", **oauth)
        self.issuer = Issuer(self.wire.client(), config, {"originator": "o", "user-agent": "u"})
        self.session = Session(self.path, issuer=self.issuer, clock=now)
        self.logins = Logins(self.issuer, self.session, config, "codex_cli_rs", clock=now, ports=ports)


Make = Callable[..., Any]


@pytest.fixture
def setup(tmp_path: Path) -> Make:
    @asynccontextmanager
    async def make(**oauth: Any) -> AsyncIterator[Setup]:
        found = Setup(tmp_path, **oauth)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.logins.run)
            yield found
            nursery.cancel_scope.cancel()

    return make


async def failure(attempt: Attempt) -> str:
    await attempt.finished.wait()
    assert attempt.error is not None
    return str(attempt.error)


async def refused(awaitable: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await awaitable
    return caught.value


# --- device


async def test_a_device_code_is_shown_and_approved(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        attempt, joined = await it.logins.start("device")
        assert not joined
        assert attempt.url == "https://issuer.test/codex/device"
        assert attempt.expires_at == pytest.approx(now() + DEVICE_LIFETIME)
        await trio.sleep(300)
        assert not attempt.finished.is_set()
        assert it.person.decide(attempt.user_code, "granted")
        await attempt.finished.wait()
        assert attempt.error is None
        assert attempt.signed_in.email == "demo@example.test"
        stored = store.load(it.path)
        assert stored is not None
        assert (stored.account_id, stored.plan()) == (demo.ACCOUNT, "plus")
        assert it.session.signed_in
        assert it.person.too_fast == 0
        # The exchange carries the issuer's own verifier, and the calls nothing that names the program.
        assert it.person.posts[-1][1]["redirect_uri"] == "https://issuer.test/deviceauth/callback"
        for request in it.wire.requests:
            assert {"user-agent", "originator"} & set(request.headers) == set()


async def test_a_second_login_joins_the_first(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        first, _ = await it.logins.start("device")
        second, joined = await it.logins.start("device")
        assert joined
        assert second is first
        it.person.decide(first.user_code, "granted")
        await first.finished.wait()
        third, joined = await it.logins.start("device")
        assert not joined
        assert third.user_code != first.user_code


async def test_who_asked_may_leave_and_the_code_stays_good(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        with trio.move_on_after(3):
            attempt, _ = await it.logins.start("device")
            await attempt.finished.wait()
        it.person.decide(it.logins.current.user_code, "granted")
        await it.logins.current.finished.wait()
        assert it.session.signed_in


async def test_a_denial_and_an_expiry_end_it(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        attempt, _ = await it.logins.start("device")
        it.person.decide(attempt.user_code, "denied")
        assert "the request was denied; start again with `codexctl login`" in await failure(attempt)
        attempt, _ = await it.logins.start("device")
        begun = trio.current_time()
        it.person.approves_after = 1e9
        assert "within 15 minutes" in await failure(attempt)
        assert trio.current_time() - begun == pytest.approx(DEVICE_LIFETIME, abs=5)
        assert not it.session.signed_in
        assert not it.path.exists()


async def test_an_issuer_that_is_away_for_a_while_is_waited_for(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        attempt, _ = await it.logins.start("device")
        it.wire.faults = [
            httpx.ConnectError("down"),
            httpx.Response(502, content=b"<html>"),
            httpx.Response(429),
            httpx.Response(404),
            httpx.Response(403, content=b"\xff"),
            httpx.ReadError("reset"),
        ]
        it.person.decide(attempt.user_code, "granted")
        await attempt.finished.wait()
        assert attempt.error is None


async def test_slow_down_slows_down(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        attempt, _ = await it.logins.start("device")
        times: list[float] = []

        async def slow(request: httpx.Request) -> httpx.Response:
            times.append(trio.current_time())
            if len(times) == 4:
                return httpx.Response(400, json={"error": {"code": "access_denied"}})
            return httpx.Response(403, json={"error": {"code": "slow_down"}})

        it.wire.handler = slow
        await failure(attempt)
        pauses = [round(after - before) for before, after in itertools.pairwise(times)]
        assert pauses == [6, 11, 16]


@pytest.mark.parametrize("status", [404, 400, 403])
async def test_codes_that_are_switched_off_name_the_switch(autojump_clock: MockClock, setup: Make, status: int) -> None:
    async with setup() as it:
        it.wire.faults = [httpx.Response(status, json={"detail": "no"})]
        error = await refused(it.logins.start("device"))
        assert error.error.code == "device_codes_off"
        assert "“Enable device code authorization for Codex”" in str(error)
        assert "`codexctl login --paste`" in str(error)


@pytest.mark.parametrize(
    "fault",
    [
        httpx.ConnectError("no route"),
        httpx.Response(500, content=b"oops"),
        httpx.Response(429),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json={"device_auth_id": "d"}),
        httpx.Response(200, content=b"x" * 2_000_000),
    ],
)
async def test_an_issuer_that_cannot_be_used_says_so(
    autojump_clock: MockClock, setup: Make, fault: httpx.Response | Exception
) -> None:
    async with setup() as it:
        it.wire.faults = [fault]
        error = await refused(it.logins.start("device"))
        assert (error.status, error.error.code) == (502, "login_unreachable")
        assert ("is too large" in str(error)) == (isinstance(fault, httpx.Response) and len(fault.content) > 1_000_000)
        # The next one is not harmed by it.
        await it.logins.start("device")


async def test_a_silent_issuer_has_an_end(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        it.wire.seconds = 1e6
        error = await refused(it.logins.start("device"))
        assert "no answer within 30 seconds" in str(error)


async def test_a_bug_ends_the_sign_in_and_not_the_daemon(
    autojump_clock: MockClock, setup: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with setup() as it:
        with monkeypatch.context() as patch:
            patch.setattr(it.logins, "_device", lambda attempt: 1 / 0)
            assert (await refused(it.logins.start("device"))).status == 500
        await it.logins.start("device")


# --- the exchange


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(400, json={"error": "invalid_grant", "error_description": "used"}), "used (status 400, invalid_grant)"),
        (httpx.Response(200, content=b"{"), "cannot be read"),
        (httpx.Response(200, json={"refresh_token": "r"}), "no usable access token"),
        (httpx.Response(200, json={"access_token": "a\nb"}), "no usable access token"),
        (httpx.ConnectError("gone"), "gone"),
    ],
)  # fmt: skip
async def test_an_exchange_that_fails_says_why(
    autojump_clock: MockClock, setup: Make, answer: httpx.Response | Exception, said: str
) -> None:
    async with setup() as it:
        attempt, _ = await it.logins.start("paste")
        it.wire.faults = [answer]
        await it.logins.paste(f"code=c&state={attempt.authorization.state}")
        assert said in await failure(attempt)
        assert not it.path.exists()


async def test_the_account_is_the_answers_then_the_tokens(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        tokens = it.person.sign_in()
        for extra, account in (({"account_id": "acct-answer"}, "acct-answer"), ({}, demo.ACCOUNT)):
            attempt, _ = await it.logins.start("paste")
            answer = {"access_token": tokens.access_token, "id_token": tokens.id_token, "refresh_token": "r"}
            it.wire.faults = [httpx.Response(200, json=answer | extra)]
            await it.logins.paste(f"code=c&state={attempt.authorization.state}")
            await attempt.finished.wait()
            stored = store.load(it.path)
            assert stored is not None
            assert stored.account_id == account


# --- paste, and the judge


async def authorize(it: Setup, attempt: Attempt, allow: str = "yes") -> str:
    """The person in the browser; the address where it ends."""
    it.person.asks = False
    async with it.wire.client() as browser:
        it.person.asks = allow != "yes"
        answer = await browser.get(attempt.url)
        if allow != "yes":
            request = answer.text.partition("request=")[2].partition("&")[0]
            answer = await browser.get(f"https://issuer.test/oauth/decide?request={request}&allow={allow}")
    assert answer.status_code == 302, answer.text
    location: str = answer.headers["location"]
    return location


async def test_an_address_is_pasted(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        attempt, _ = await it.logins.start("paste")
        address = await authorize(it, attempt)
        assert address.startswith(REDIRECT)
        for stray in ("nonsense", f"{REDIRECT}?code=c&state=other", f"{REDIRECT}?state={attempt.authorization.state}"):
            assert (await refused(it.logins.paste(stray))).error.code == "wrong_callback"
        await it.logins.paste(address)
        await attempt.finished.wait()
        assert it.session.signed_in
        assert (await refused(it.logins.paste(address))).error.code == "no_login"
        # The same code a second time, as if somebody had seen it.
        again = await it.wire.client().post("https://issuer.test/oauth/token", data=dict(it.person.posts[-1][1]))
        assert again.status_code == 400


async def test_a_person_who_declines_is_heard(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        attempt, _ = await it.logins.start("paste")
        await it.logins.paste(await authorize(it, attempt, allow="no"))
        assert "The user declined (access_denied)" in await failure(attempt)


async def test_a_wrong_verifier_is_caught_by_the_simulated_issuer(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        attempt, _ = await it.logins.start("paste")
        address = await authorize(it, attempt)
        code = dict(httpx.URL(address).params)["code"]
        answer = await it.issuer.exchange(code, redirect_uri=REDIRECT, verifier="x" * 43)
        assert (answer.status, b"code_verifier" in answer.body) == (400, True)


async def test_it_gives_up_after_the_configured_time(autojump_clock: MockClock, setup: Make) -> None:
    async with setup(login_timeout=120) as it:
        attempt, _ = await it.logins.start("paste")
        assert "within 2 minutes, the limit for the sign-in (oauth.login_timeout)" in await failure(attempt)


async def test_another_way_of_signing_in_takes_over(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        device, _ = await it.logins.start("device")
        paste, _ = await it.logins.start("paste")
        assert "another sign-in was started" in await failure(device)
        paste.end(device.error)
        await paste.finished.wait()


async def test_an_issuer_that_hangs_keeps_nobody_from_another_way(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it, trio.open_nursery() as nursery:
        it.wire.seconds = 1e6
        ended: list[ApiError] = []

        async def device() -> None:
            ended.append(await refused(it.logins.start("device")))

        nursery.start_soon(device)
        await trio.sleep(1)
        begun = trio.current_time()
        attempt, _ = await it.logins.start("paste")
        assert trio.current_time() == begun
        assert attempt.url
        await trio.sleep(0.1)
        assert "another sign-in was started" in str(ended[0])


async def test_a_client_that_leaves_during_the_exchange_loses_nothing(autojump_clock: MockClock, setup: Make) -> None:
    async with setup() as it:
        attempt, _ = await it.logins.start("paste")
        address = await authorize(it, attempt)
        it.wire.seconds = 5
        await it.logins.paste(address)
        await trio.sleep(1)
        attempt.end(ApiError(409, "left"))
        await attempt.finished.wait()
        assert attempt.error is None
        assert it.session.signed_in


# --- the browser's way back (real sockets and so the real clock)


async def get(port: int, target: str, method: str = "GET") -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"{method} {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        with trio.fail_after(10):
            return b"".join([data async for data in stream])


def port_of(attempt: Attempt) -> int:
    port = httpx.URL(attempt.authorization.redirect_uri).port
    assert port is not None
    return port


async def test_the_browser_comes_back(setup: Make) -> None:
    async with setup(local_server_port=0, any_port=True) as it:
        attempt, _ = await it.logins.start("browser")
        port = port_of(attempt)
        location = await authorize(it, attempt)
        assert location.startswith(f"http://127.0.0.1:{port}/auth/callback?")
        target = location.removeprefix(f"http://127.0.0.1:{port}")
        for stray, status in (
            ("/auth/callback?code=c&state=wrong", b"400"),
            ("/auth/callback", b"400"),
            ("/favicon.ico", b"404"),
            ("/", b"404"),
        ):
            answer = await get(port, stray)
            assert answer.startswith(b"HTTP/1.1 " + status)
        assert (await get(port, target, "POST")).startswith(b"HTTP/1.1 404")
        assert not attempt.finished.is_set()
        page = await get(port, target)
        assert page.startswith(b"HTTP/1.1 200")
        assert b"demo@example.test" in page
        assert b"content-security-policy: default-src 'none'" in page
        assert attempt.signed_in is not None
        assert it.person.posts[-1][1]["redirect_uri"] == f"http://127.0.0.1:{port}/auth/callback"
        await it.logins.start("paste")  # which waits for the end of this one
        assert who_listens(port) is None


async def test_a_container_listens_on_all_addresses(setup: Make) -> None:
    async with setup(local_server_port=0, local_server_host="0.0.0.0") as it:
        attempt, _ = await it.logins.start("browser")
        port = port_of(attempt)
        assert "redirect_uri=http%3A%2F%2F127.0.0.1%3A" in attempt.url
        async with await trio.open_tcp_stream("127.0.0.2", port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 404")


async def test_two_returns_at_once_spend_one_code(setup: Make) -> None:
    async with setup(local_server_port=0, any_port=True) as it:
        attempt, _ = await it.logins.start("browser")
        port = port_of(attempt)
        target = (await authorize(it, attempt)).removeprefix(f"http://127.0.0.1:{port}")
        it.wire.seconds = 0.2
        pages: list[bytes] = []

        async def visit() -> None:
            pages.append(await get(port, target))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit)
            nursery.start_soon(visit)
        assert [page[:12] for page in pages] == [b"HTTP/1.1 200"] * 2
        assert len(it.person.posts) == 1


async def test_a_refusal_is_a_page_with_the_reason(setup: Make) -> None:
    async with setup(local_server_port=0, any_port=True) as it:
        attempt, _ = await it.logins.start("browser")
        port = port_of(attempt)
        location = await authorize(it, attempt, allow="no")
        page = await get(port, location.removeprefix(f"http://127.0.0.1:{port}"))
        assert page.startswith(b"HTTP/1.1 400")
        assert b"The user declined" in page
        assert b"<code>codexctl login</code>" in page


async def test_a_reason_cannot_bring_markup(setup: Make) -> None:
    async with setup(local_server_port=0) as it:
        attempt, _ = await it.logins.start("browser")
        state = attempt.authorization.state
        query = f"error=x&error_description=%3Cscript%3E%60%3Cb%3E%60&state={state}"
        page = await get(port_of(attempt), f"/auth/callback?{query}")
        assert b"<script>" not in page
        assert b"&lt;script&gt;" in page


async def test_the_official_client_can_ask_for_the_port(setup: Make) -> None:
    async with setup(local_server_port=0) as it:
        attempt, _ = await it.logins.start("browser")
        assert (await get(port_of(attempt), "/cancel")).startswith(b"HTTP/1.1 200")
        assert "another program's sign-in" in await failure(attempt)


async def test_the_second_port_stands_in_and_two_busy_ones_are_named(setup: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [busy.getsockname()[1], other.getsockname()[1]]
        redirect_uri = f"http://127.0.0.1:{ports[0]}/auth/callback"
        async with setup(local_server_port=ports[0], redirect_uri=redirect_uri, ports=ports) as it:
            error = await refused(it.logins.start("browser"))
            assert error.error.code == "callback_port_in_use"
            comm = Path("/proc/self/comm").read_text().strip()
            for port in ports:
                assert f"port {port} is used by {comm} (process {os.getpid()})" in str(error)
            assert "`codexctl login --paste`" in str(error)
            other.close()
            attempt, _ = await it.logins.start("browser")
            assert attempt.authorization.redirect_uri == f"http://127.0.0.1:{ports[1]}/auth/callback"


def test_the_port_goes_where_the_redirect_uri_names_it() -> None:
    assert _with_port(REDIRECT, 1455, 1457) == "http://127.0.0.1:1457/auth/callback"
    assert _with_port("https://codexd.example/auth/callback", 1455, 1455) == "https://codexd.example/auth/callback"
    assert _with_port("http://localhost:9000/cb", 1455, 1455) == "http://localhost:9000/cb"


def test_nobody_listens_on_a_free_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert who_listens(port) is None


def test_the_wire_formats_of_the_device_calls_are_the_official_clients() -> None:
    captures = ROOT.parent / "shared" / "upstream" / "captures" / "auth"
    if not captures.exists():
        pytest.skip("the captures are not here")

    found: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        found.append(request)
        return httpx.Response(200)

    async def call_all() -> None:
        from codexd.auth.oauth import Device

        identity = {"originator": "codex_cli_rs", "user-agent": "codex_cli_rs/0.169.0 (Debian 12.0.0; x86_64) xterm"}
        issuer = Issuer(httpx.AsyncClient(transport=httpx.MockTransport(note)), OAuth(), identity)
        await issuer.start_device()
        await issuer.poll_device(Device("dauth_123", "ABCD-EFGHI", 5))
        await issuer.exchange("ac_777", redirect_uri="https://auth.openai.com/deviceauth/callback", verifier="VERIF")
        await issuer.revoke("rt-original")

    trio.run(call_all)
    names = ("device_usercode", "device_poll", "device_exchange", "revoke")
    for request, name in zip(found, names, strict=True):
        capture = msgspec.json.decode((captures / f"{name}.json").read_bytes())
        assert (request.method, request.url.path) == (capture["method"], capture["path"])
        wanted = dict(capture["headers"])
        ours = {key: value for key, value in request.headers.items() if key not in ("accept-encoding", "connection")}
        assert ours == wanted | {"content-length": ours["content-length"]}
        if "json_body" in capture:
            assert msgspec.json.decode(request.content) == capture["json_body"]
        else:
            assert request.content.decode() == capture["form_body"]


async def test_who_leaves_before_it_runs_leaves_nothing_to_wait_for(autojump_clock: MockClock, tmp_path: Path) -> None:
    """As when the last page of the sign-in before is still on its way."""
    it = Setup(tmp_path)
    with trio.move_on_after(1) as scope:
        await it.logins.start("device")
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.logins.run)
        with trio.fail_after(10):
            attempt, joined = await it.logins.start("device")
        assert (attempt.user_code is None, joined) == (False, False)
        nursery.cancel_scope.cancel()

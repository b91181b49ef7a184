"""The credentials in use, with the autojump clock: seconds pass when nothing else can happen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from trio.testing import MockClock

from codexd.auth import store
from codexd.auth.session import REFRESH_DEADLINE, Session
from codexd.auth.store import Credentials
from codexd.errors import ApiError
from support.secrets import ACCOUNT, access_token, refresh_token

EPOCH = 1_795_000_000.0


class Issuer:
    """A token endpoint: counts, rotates, and does first what the test says."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.faults: list[httpx.Response | Exception] = []
        self.seconds = 1.0
        self.lifetime = 864000.0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(msgspec.json.decode(request.content))
        await trio.sleep(self.seconds)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        number = len(self.requests) + 1
        tokens = {"access_token": access_token(now() + self.lifetime, number), "refresh_token": refresh_token(number)}
        return httpx.Response(200, json=tokens)


def now() -> float:
    return EPOCH + trio.current_time()


Make = Callable[..., Session]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
async def make(path: Path, issuer: Issuer) -> Make:
    def make(seconds_left: float | None = 100.0, **changes: Any) -> Session:
        if seconds_left is not None:
            fields: dict[str, Any] = {"refresh_token": refresh_token(), "account_id": ACCOUNT}
            store.save(path, Credentials(access_token=access_token(now() + seconds_left), **(fields | changes)))
        client = httpx.AsyncClient(transport=httpx.MockTransport(issuer))
        return Session(
            path, client=client, issuer="https://issuer.test/", client_id="c", headers={"originator": "o"}, clock=now
        )

    return make


async def refused(awaitable: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await awaitable
    return caught.value


async def test_a_fresh_token_is_used_as_it_is(autojump_clock: MockClock, make: Make, issuer: Issuer) -> None:
    access = await make(seconds_left=301).token()
    assert (access.token, access.account_id) == (access_token(EPOCH + 301), ACCOUNT)
    assert issuer.requests == []
    assert access.token not in repr(access)


async def test_a_token_close_to_its_end_is_renewed_and_saved_first(
    autojump_clock: MockClock, make: Make, issuer: Issuer, path: Path
) -> None:
    session = make(seconds_left=299, extra={"theirs": 1})
    access = await session.token()
    assert issuer.requests == [
        {
            "client_id": "c",
            "grant_type": "refresh_token",
            "refresh_reason": "proactive_expiry",
            "refresh_token": refresh_token(),
        }
    ]
    stored = store.load(path)
    assert stored is not None
    assert (stored.access_token, stored.refresh_token) == (access.token, refresh_token(2))
    assert (stored.account_id, stored.extra) == (ACCOUNT, {"theirs": 1})
    assert stored.expires_at == pytest.approx(now() - 1 + 864000, abs=2)


async def test_all_who_wait_share_one_refresh(autojump_clock: MockClock, make: Make, issuer: Issuer) -> None:
    session = make()
    tokens: set[str] = set()

    async def wait() -> None:
        tokens.add((await session.token()).token)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(wait)
    assert (len(issuer.requests), len(tokens)) == (1, 1)


async def test_all_who_wait_share_one_failure(autojump_clock: MockClock, make: Make, issuer: Issuer) -> None:
    session = make()
    issuer.faults = [httpx.Response(500)] * 20
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(session.token)
    assert len(issuer.requests) == 1


async def test_the_one_who_started_a_refresh_may_leave(
    autojump_clock: MockClock, make: Make, issuer: Issuer, path: Path
) -> None:
    session = make()
    with trio.move_on_after(0.5) as impatient:
        await session.token()
    assert impatient.cancel_called
    stored = store.load(path)
    assert stored is not None
    assert stored.refresh_token == refresh_token(2)
    await session.token()
    assert len(issuer.requests) == 1


async def test_two_processes_spend_one_refresh_token_once(
    autojump_clock: MockClock, make: Make, issuer: Issuer
) -> None:
    first, second = make(), make(seconds_left=None)
    tokens = []

    async def wait(session: Session) -> None:
        tokens.append((await session.token()).token)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, first)
        nursery.start_soon(wait, second)
    assert len(issuer.requests) == 1
    assert tokens[0] == tokens[1]


async def test_a_transient_failure_keeps_the_old_token_and_backs_off(
    autojump_clock: MockClock, make: Make, issuer: Issuer
) -> None:
    session = make(seconds_left=200)
    issuer.faults = [
        httpx.Response(500),
        httpx.ConnectError("no route"),
        httpx.Response(200, text="{"),
        httpx.Response(200, json={}),
    ]
    old = access_token(EPOCH + 200)
    for tries, pause in ((1, 2), (2, 5), (3, 15), (4, 60)):
        assert (await session.token()).token == old
        assert (await session.token()).token == old  # within the pause nothing is tried
        assert len(issuer.requests) == tries
        await trio.sleep(pause)
    assert (await session.token()).token != old
    assert len(issuer.requests) == 5


async def test_an_expired_token_and_a_silent_issuer_are_a_503_with_a_time(
    autojump_clock: MockClock, make: Make, issuer: Issuer
) -> None:
    session = make(seconds_left=-5)
    issuer.seconds = 10 * REFRESH_DEADLINE
    started = trio.current_time()
    error = await refused(session.token())
    assert trio.current_time() - started == pytest.approx(REFRESH_DEADLINE)
    assert (error.status, error.error.code, error.retry_after) == (503, "auth_unavailable", 2)
    assert session.signed_in


async def test_a_permanent_refusal_ends_the_sign_in_until_the_file_changes(
    autojump_clock: MockClock, make: Make, issuer: Issuer, path: Path
) -> None:
    session = make()
    body = {"error": {"code": "refresh_token_reused", "message": "already used"}}
    issuer.faults = [httpx.Response(401, json=body)]
    for _ in range(3):
        error = await refused(session.token())
        assert (error.status, error.error.code) == (401, "signed_out")
        assert "already used" in error.error.message
        assert "codexctl login" in error.error.message
    assert len(issuer.requests) == 1
    assert not session.signed_in
    store.save(path, Credentials(access_token=access_token(now() + 9999, 7)))
    assert (await session.token()).token == access_token(now() + 9999, 7)


async def test_without_a_refresh_token_the_access_token_serves_to_its_end(
    autojump_clock: MockClock, make: Make, issuer: Issuer
) -> None:
    session = make(seconds_left=100, refresh_token=None)
    assert (await session.token()).token
    assert await session.replace((await session.token()).token) is None
    await trio.sleep(101)
    assert not session.signed_in
    assert "no refresh token" in (await refused(session.token())).error.message
    assert issuer.requests == []


async def test_a_rejected_token_is_replaced_by_the_files_or_a_new_one_but_not_twice(
    autojump_clock: MockClock, make: Make, issuer: Issuer, path: Path
) -> None:
    session = make(seconds_left=9999)
    old = (await session.token()).token
    other = access_token(now() + 9999, 5)
    store.save(path, Credentials(access_token=other, refresh_token=refresh_token(5)))
    replaced = await session.replace(old)
    assert replaced is not None
    assert (replaced.token, issuer.requests) == (other, [])
    fresh = await session.replace(other)
    assert fresh is not None
    assert issuer.requests[0]["refresh_reason"] == "unauthorized_recovery"
    assert await session.replace(fresh.token) is None
    await trio.sleep(61)
    assert await session.replace(fresh.token) is not None


async def test_a_rejected_token_and_a_silent_issuer_are_a_503(
    autojump_clock: MockClock, make: Make, issuer: Issuer
) -> None:
    session = make(seconds_left=9999)
    issuer.faults = [httpx.Response(503)]
    assert (await refused(session.replace((await session.token()).token))).status == 503


async def test_nobody_is_signed_in_without_a_file_or_with_a_bad_one(
    autojump_clock: MockClock, make: Make, path: Path
) -> None:
    session = make(seconds_left=None)
    assert not session.signed_in
    assert (await refused(session.token())).error.message.startswith("Not signed in")
    path.write_text("{")
    assert "not a usable credentials file" in (await refused(session.token())).error.message
    assert not session.signed_in
    store.save(path, Credentials(access_token="opaque"))
    assert (await session.token()).token == "opaque"
    path.unlink()
    assert not session.signed_in


async def test_tokens_that_cannot_be_saved_are_used_and_saved_later(
    autojump_clock: MockClock, make: Make, issuer: Issuer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_durably", full)
    fresh = (await session.token()).token
    assert (await session.token()).token == fresh
    monkeypatch.undo()
    with trio.move_on_after(1):
        await session.keep()
    stored = store.load(path)
    assert stored is not None
    assert stored.access_token == fresh
    assert len(issuer.requests) == 1


async def test_tokens_that_cannot_be_saved_outlive_a_broken_file_and_a_refusal(
    autojump_clock: MockClock, make: Make, issuer: Issuer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_durably", full)
    fresh = (await session.token()).token
    path.write_text("{")
    assert (await session.token()).token == fresh
    await trio.sleep(61)
    issuer.faults = [httpx.Response(401)]
    assert (await refused(session.replace(fresh))).status == 401
    monkeypatch.undo()
    with trio.move_on_after(1):
        await session.keep()  # does not end the daemon
    stored = store.load(path)
    assert stored is not None
    assert stored.access_token == fresh


async def test_ready_means_that_a_request_would_get_past_the_sign_in(
    autojump_clock: MockClock, make: Make, issuer: Issuer
) -> None:
    session = make(seconds_left=-5)
    assert session.ready  # a refresh may well work
    issuer.faults = [httpx.Response(500)]
    await refused(session.token())
    assert not session.ready
    await trio.sleep(2)
    assert session.ready


async def test_a_directory_that_cannot_be_written_spends_no_refresh_token(
    autojump_clock: MockClock, make: Make, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()

    def read_only(_: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store, "try_lock", read_only)
    assert (await session.token()).token == access_token(EPOCH + 100)
    assert issuer.requests == []


async def test_the_keeper_renews_ahead_of_time(autojump_clock: MockClock, make: Make, issuer: Issuer) -> None:
    session = make(seconds_left=1000)
    issuer.faults = [httpx.Response(401)]
    issuer.lifetime = 1000
    with trio.move_on_after(690):
        await session.keep()
    assert issuer.requests == []
    with trio.move_on_after(200):
        await session.keep()
    assert len(issuer.requests) == 1


async def test_an_answer_with_expires_in_and_opaque_tokens(
    autojump_clock: MockClock, make: Make, issuer: Issuer, path: Path
) -> None:
    session = make()
    issuer.faults = [httpx.Response(200, json={"access_token": "opaque", "expires_in": 1000})]
    assert (await session.token()).token == "opaque"
    stored = store.load(path)
    assert stored is not None
    assert (stored.refresh_token, stored.expires_at) == (refresh_token(), int(now() + 1000))

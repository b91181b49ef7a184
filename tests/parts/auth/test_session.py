"""The credentials in use, with the autojump clock: seconds pass when nothing else can happen."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from trio.testing import MockClock

from codexd.auth import store
from codexd.auth.issuer import Issuer
from codexd.auth.oauth import TokenResponse
from codexd.auth.session import REFRESH_DEADLINE, Session
from codexd.auth.store import Credentials
from codexd.config.model import OAuth
from codexd.errors import ApiError
from codexd.state import files
from codexd.state.lock import try_lock
from support.secrets import ACCOUNT, access_token, refresh_token

EPOCH = 1_795_000_000.0


class TokenEndpoint:
    """A token endpoint: counts, rotates, and does first what the test says."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.faults: list[httpx.Response | Exception] = []
        self.seconds = 1.0
        self.lifetime = 864000.0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
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
def issuer() -> TokenEndpoint:
    return TokenEndpoint()


@pytest.fixture
async def make(path: Path, issuer: TokenEndpoint) -> Make:
    def make(
        seconds_left: float | None = 100.0,
        *,
        clock: Callable[[], float] = now,
        on_change: Callable[[], None] = lambda: None,
        **changes: Any,
    ) -> Session:
        if seconds_left is not None:
            fields: dict[str, Any] = {"refresh_token": refresh_token(), "account_id": ACCOUNT}
            store.save(path, Credentials(access_token=access_token(now() + seconds_left), **(fields | changes)))
        client = httpx.AsyncClient(transport=httpx.MockTransport(issuer))
        config = OAuth(issuer="https://issuer.test/", client_id="c")
        return Session(path, issuer=Issuer(client, config, {"originator": "o"}), clock=clock, on_change=on_change)

    return make


async def refused(awaitable: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await awaitable
    return caught.value


async def test_a_fresh_token_is_used_as_it_is(autojump_clock: MockClock, make: Make, issuer: TokenEndpoint) -> None:
    access = await make(seconds_left=301).token()
    assert (access.token, access.account_id) == (access_token(EPOCH + 301), ACCOUNT)
    assert issuer.requests == []
    assert access.token not in repr(access)


async def test_a_token_close_to_its_end_is_renewed_and_saved_first(
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, path: Path
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
    assert (stored.account_id, stored.extra) == (ACCOUNT, {"theirs": msgspec.Raw(b"1")})
    assert stored.expires_at == pytest.approx(now() - 1 + 864000, abs=2)


async def test_all_who_wait_share_one_refresh(autojump_clock: MockClock, make: Make, issuer: TokenEndpoint) -> None:
    session = make()
    tokens: set[str] = set()

    async def wait() -> None:
        tokens.add((await session.token()).token)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(wait)
    assert (len(issuer.requests), len(tokens)) == (1, 1)


async def test_all_who_wait_share_one_failure(autojump_clock: MockClock, make: Make, issuer: TokenEndpoint) -> None:
    session = make()
    issuer.faults = [httpx.Response(500)] * 20
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(session.token)
    assert len(issuer.requests) == 1


async def test_the_one_who_started_a_refresh_may_leave(
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, path: Path
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
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint
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
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint
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
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint
) -> None:
    session = make(seconds_left=-5)
    issuer.seconds = 10 * REFRESH_DEADLINE
    started = trio.current_time()
    error = await refused(session.token())
    assert trio.current_time() - started == pytest.approx(REFRESH_DEADLINE)
    assert (error.status, error.error.code, error.retry_after) == (503, "auth_unavailable", 2)
    assert session.signed_in


async def test_a_permanent_refusal_ends_the_sign_in_until_the_file_changes(
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, path: Path
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
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint
) -> None:
    session = make(seconds_left=100, refresh_token=None)
    assert (await session.token()).token
    assert await session.replace((await session.token()).token) is None
    await trio.sleep(101)
    assert not session.signed_in
    assert "no refresh token" in (await refused(session.token())).error.message
    assert issuer.requests == []


async def test_a_rejected_token_is_replaced_by_the_files_or_a_new_one_but_not_twice(
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, path: Path
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
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint
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
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_durably", full)
    fresh = (await session.token()).token
    assert (await session.token()).token == fresh
    monkeypatch.undo()
    with trio.move_on_after(1):
        await session.run()
    stored = store.load(path)
    assert stored is not None
    assert stored.access_token == fresh
    assert len(issuer.requests) == 1


async def test_tokens_that_cannot_be_saved_outlive_a_broken_file_and_a_refusal(
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_durably", full)
    fresh = (await session.token()).token
    path.write_text("{")
    assert (await session.token()).token == fresh
    await trio.sleep(61)
    issuer.faults = [httpx.Response(401)]
    assert (await refused(session.replace(fresh))).status == 401
    monkeypatch.undo()
    with trio.move_on_after(1):
        await session.run()  # does not end the daemon
    stored = store.load(path)
    assert stored is not None
    assert stored.access_token == fresh


async def test_ready_means_that_a_request_would_get_past_the_sign_in(
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint
) -> None:
    session = make(seconds_left=-5)
    assert session.ready  # a refresh may well work
    issuer.faults = [httpx.Response(500)]
    await refused(session.token())
    assert not session.ready
    await trio.sleep(2)
    assert session.ready


async def test_a_directory_that_cannot_be_written_spends_no_refresh_token(
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()

    def read_only(_: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("codexd.auth.session.try_lock", read_only)
    assert (await session.token()).token == access_token(EPOCH + 100)
    assert issuer.requests == []


async def test_the_keeper_renews_ahead_of_time(autojump_clock: MockClock, make: Make, issuer: TokenEndpoint) -> None:
    session = make(seconds_left=1000)
    issuer.faults = [httpx.Response(401)]
    issuer.lifetime = 1000
    with trio.move_on_after(690):
        await session.run()
    assert issuer.requests == []
    with trio.move_on_after(200):
        await session.run()
    assert len(issuer.requests) == 1


async def test_an_answer_with_expires_in_and_opaque_tokens(
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, path: Path
) -> None:
    session = make()
    issuer.faults = [httpx.Response(200, json={"access_token": "opaque", "expires_in": 1000})]
    assert (await session.token()).token == "opaque"
    stored = store.load(path)
    assert stored is not None
    assert (stored.refresh_token, stored.expires_at) == (refresh_token(), int(now() + 1000))


# --- signing in and out, by a person


async def test_a_new_sign_in_is_in_use_at_once_and_on_disk(
    autojump_clock: MockClock, make: Make, path: Path, issuer: TokenEndpoint
) -> None:
    rung: list[bool] = []
    session = make(None, on_change=lambda: rung.append(session.signed_in))
    await session.sign_in(TokenResponse(access_token(now() + 9e5), refresh_token(), expires_in=60.0))
    assert rung == [True]
    assert (await session.token()).account_id == ACCOUNT
    stored = store.load(path)
    assert stored is not None
    assert (stored.account_id, stored.refresh_token) == (ACCOUNT, refresh_token())
    assert issuer.requests == []


async def test_a_new_sign_in_ends_a_refused_one(autojump_clock: MockClock, make: Make, issuer: TokenEndpoint) -> None:
    session = make(seconds_left=100)
    issuer.faults = [httpx.Response(401, json={"error": {"code": "refresh_token_reused"}})]
    await refused(session.token())
    assert not session.signed_in
    assert "refresh_token_reused" in (session.describe().why or "")
    await session.sign_in(Credentials(access_token=access_token(now() + 9e5, 7), refresh_token=refresh_token(7)))
    assert session.describe().why is None
    assert (await session.token()).token == access_token(now() + 9e5, 7)


async def test_a_sign_in_that_cannot_be_saved_is_used_and_told(
    autojump_clock: MockClock, make: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make(seconds_left=9e5)
    before = path.read_bytes()
    assert session.signed_in

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_durably", full)
        patch.setattr("codexd.auth.session.try_lock", full)
        await session.sign_in(Credentials(access_token=access_token(now() + 9e5, 8), refresh_token=refresh_token(8)))
        assert session.describe().unsaved
        assert (await session.token()).token == access_token(now() + 9e5, 8)
        assert path.read_bytes() == before
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await trio.sleep(61)
        nursery.cancel_scope.cancel()
    assert not session.describe().unsaved
    stored = store.load(path)
    assert stored is not None
    assert stored.refresh_token == refresh_token(8)


async def test_a_lock_that_another_process_never_gives_back_does_not_lose_a_sign_in(
    autojump_clock: MockClock, make: Make, path: Path
) -> None:
    session = make(None)
    descriptor = try_lock(path)
    assert descriptor is not None
    try:
        await session.sign_in(Credentials(access_token=access_token(now() + 9e5)))
    finally:
        os.close(descriptor)
    assert session.signed_in
    assert path.exists()


async def test_signing_out_revokes_and_deletes(
    autojump_clock: MockClock, make: Make, path: Path, issuer: TokenEndpoint
) -> None:
    session = make(seconds_left=9e5)
    (path.parent / f".{path.name}.99.tmp").write_text("left by a crash")
    issuer.faults = [httpx.Response(200)]
    assert await session.sign_out() is None
    body = {"token": refresh_token(), "token_type_hint": "refresh_token", "client_id": "c"}
    assert (issuer.paths, issuer.requests) == (["/oauth/revoke"], [body])
    assert {each.name for each in path.parent.iterdir()} <= {"tokens.json.lock"}
    assert not session.signed_in
    assert (await refused(session.sign_out())).error.code == "signed_out"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (httpx.ConnectError("no route"), "no route"),
        (httpx.Response(500, json={"error": {"message": "Oops"}}), "Oops (status 500)"),
        (None, "did not answer in time"),
    ],
)
async def test_signing_out_deletes_also_when_it_cannot_revoke(
    autojump_clock: MockClock, make: Make, path: Path, issuer: TokenEndpoint, fault: Any, why: str
) -> None:
    session = make(seconds_left=9e5)
    issuer.seconds = 1.0 if fault else 1e6
    issuer.faults = [fault] if fault else []
    assert why in (await session.sign_out() or "")
    assert not path.exists()


async def test_signing_out_of_a_file_that_cannot_be_read_deletes_it(
    autojump_clock: MockClock, make: Make, path: Path, issuer: TokenEndpoint
) -> None:
    path.write_text("{")
    assert "no readable refresh token" in (await make(None).sign_out() or "")
    assert not path.exists()
    assert issuer.requests == []


async def test_a_file_that_cannot_be_deleted_is_named(
    autojump_clock: MockClock, make: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make(seconds_left=9e5)

    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "delete", denied)
    error = await refused(session.sign_out())
    assert (error.status, str(path) in str(error), "Permission denied" in str(error)) == (500, True, True)


async def test_signing_out_waits_for_a_refresh_that_is_under_way(
    autojump_clock: MockClock, make: Make, path: Path, issuer: TokenEndpoint
) -> None:
    session = make(seconds_left=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.token)
        await trio.sleep(0.5)
        await session.sign_out()
    # What is revoked is the token that the refresh brought, not the one that it spent.
    assert issuer.requests[-1]["token"] == refresh_token(2)
    assert not path.exists()


async def test_a_refresh_by_hand(autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, path: Path) -> None:
    session = make(seconds_left=9e5)
    await session.refresh()
    assert issuer.requests[-1]["refresh_reason"] == "scheduled"
    issuer.faults = [httpx.ConnectError("no route")]
    error = await refused(session.refresh())
    assert (error.status, "no route" in str(error), "stays in use" in str(error)) == (503, True, True)
    assert "no route" in (session.describe().refresh_failed or "")
    # A person need not wait for the pause that follows a failure.
    await session.refresh()
    assert session.describe().refresh_failed is None
    assert len(issuer.requests) == 3
    without = make(None)
    path.unlink()
    assert (await refused(without.refresh())).error.code == "signed_out"


async def test_a_refresh_without_a_refresh_token_says_what_to_do(autojump_clock: MockClock, make: Make) -> None:
    error = await refused(make(seconds_left=9e5, refresh_token=None).refresh())
    assert (error.error.code, "`codexctl login`" in str(error)) == ("no_refresh_token", True)


async def test_what_a_person_wants_to_know(autojump_clock: MockClock, make: Make) -> None:
    found = make(seconds_left=9e5, updated_at=EPOCH).describe()
    assert (found.signed_in, found.why, found.account_id) == (True, None, ACCOUNT)
    assert (found.refreshed_at, found.expires_at) == (EPOCH, pytest.approx(now() + 9e5))
    ended = make(seconds_left=-5, refresh_token=None).describe()
    assert (ended.signed_in, ended.why) == (False, "The access token has expired and there is no refresh token")


async def test_fresh_means_that_nobody_has_to_be_asked(autojump_clock: MockClock, make: Make) -> None:
    assert [make(left).fresh for left in (None, -5, 299, 301)] == [False, False, False, True]


async def test_a_bell_that_asks_again_does_not_ring_for_ever(autojump_clock: MockClock, make: Make, path: Path) -> None:
    rung: list[bool] = []
    session = make(None, on_change=lambda: rung.append(session.signed_in))
    path.write_text("{")
    assert not session.signed_in
    assert not session.signed_in
    assert rung == [False]


@pytest.mark.parametrize("days", [-3650, -1, 1, 30, 3650])
async def test_a_clock_that_jumps_neither_locks_out_nor_asks_again_and_again(
    autojump_clock: MockClock, make: Make, issuer: TokenEndpoint, days: int
) -> None:
    """The issuer's clock is right, and this machine's is so many days off."""
    off = 0
    session = make(seconds_left=5 * 86400, clock=lambda: now() + off)
    await session.token()
    off = days * 86400
    tokens = {(await session.token()).token for _ in range(20)}
    assert len(issuer.requests) <= 1
    off = 0
    tokens |= {(await session.token()).token for _ in range(20)}
    assert len(issuer.requests) <= 2
    assert len(tokens) <= 3

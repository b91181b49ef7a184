from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock

from codexd.auth import store
from codexd.auth.issuer import Issuer
from codexd.auth.session import Session
from codexd.auth.store import Credentials
from codexd.config.model import Backend, Models, OAuth
from codexd.upstream.catalog import MIN_INTERVAL, REFRESH_INTERVAL, RETRY_INTERVAL, Catalog
from codexd.upstream.client import Upstream
from support.secrets import ACCOUNT, access_token


class FakeBackend:
    """``GET /codex/models``, as the test says."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answer: httpx.Response | Exception = httpx.Response(
            200, json={"models": [{"slug": "gpt-live", "use_responses_lite": True}]}, headers={"etag": 'W/"1"'}
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def upstream(tmp_path: Path, backend: FakeBackend) -> Upstream:
    store.save(tmp_path / "tokens.json", Credentials(access_token=access_token(9e9), account_id=ACCOUNT))
    client = httpx.AsyncClient(transport=httpx.MockTransport(backend))
    session = Session(tmp_path / "tokens.json", issuer=Issuer(client, OAuth(), {}), clock=lambda: 0)
    return Upstream(client, session, Backend(url="http://b/backend-api"), clock=lambda: 0)


def catalog(tmp_path: Path, version: str = "1") -> Catalog:
    return Catalog(
        tmp_path / "models.json", names=Models(aliases={"mine": "gpt-live"}), client_version=version, clock=lambda: 0
    )


async def test_what_is_built_in_serves_until_the_live_catalogue_has_come(
    tmp_path: Path, upstream: Upstream, backend: FakeBackend
) -> None:
    models = catalog(tmp_path)
    assert not models.resolve("gpt-5.5").model.lite
    assert await models.refresh(upstream)
    assert models.models.listed == ["gpt-live", "mine"]
    assert models.resolve("mine").model.lite
    request = backend.requests[0]
    assert request.url.path == "/backend-api/codex/models"
    assert request.url.params["client_version"] == "0.169.0"
    assert request.headers["chatgpt-account-id"] == ACCOUNT


async def test_the_copy_on_disk_serves_after_a_restart_for_the_same_version(
    tmp_path: Path, upstream: Upstream, backend: FakeBackend
) -> None:
    await catalog(tmp_path).refresh(upstream)
    again = catalog(tmp_path)
    assert "gpt-live" in again.models.listed
    backend.answer = httpx.Response(304)
    assert await again.refresh(upstream)
    assert backend.requests[-1].headers["if-none-match"] == 'W/"1"'
    assert "gpt-live" not in catalog(tmp_path, version="2").models.listed


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500),
        httpx.Response(200, text="{"),
        httpx.Response(200, json={"models": []}),
        httpx.ConnectError("no"),
    ],
)
async def test_a_bad_answer_changes_nothing(
    tmp_path: Path, upstream: Upstream, backend: FakeBackend, answer: httpx.Response
) -> None:
    models = catalog(tmp_path)
    await models.refresh(upstream)
    backend.answer = answer
    assert not await models.refresh(upstream)
    assert "gpt-live" in models.models.listed


async def test_a_bad_copy_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text("{")
    assert "gpt-5.5" in catalog(tmp_path).models.listed


async def test_a_disk_that_is_full_costs_the_copy_alone(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("codexd.upstream.catalog.write_durably", full)
    models = catalog(tmp_path)
    assert await models.refresh(upstream)
    assert "gpt-live" in models.models.listed


async def test_it_is_refreshed_hourly_sooner_after_a_failure_and_on_news(
    autojump_clock: MockClock, tmp_path: Path, upstream: Upstream, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thread's work takes no time on this clock, which would jump while it runs.
    monkeypatch.setattr("codexd.upstream.catalog.write_durably", lambda *_: None)
    autojump_clock.autojump_threshold = 0.02
    models = catalog(tmp_path)
    good, backend.answer = backend.answer, httpx.Response(500)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(models.run, upstream)
        await trio.sleep(RETRY_INTERVAL / 2)
        assert len(backend.requests) == 1
        backend.answer = good
        await trio.sleep(RETRY_INTERVAL)
        assert len(backend.requests) == 2
        await trio.sleep(REFRESH_INTERVAL / 2)
        models.on_models_etag('"1"')  # weak or strong is the same
        await trio.sleep(1)
        assert len(backend.requests) == 2
        models.on_models_etag('W/"2"')
        await trio.sleep(1)
        assert len(backend.requests) == 3
        for _ in range(20):  # a backend that never agrees with itself
            models.on_models_etag('W/"3"')
            await trio.sleep(1)
        assert len(backend.requests) == 3
        await trio.sleep(MIN_INTERVAL)
        assert len(backend.requests) == 4
        nursery.cancel_scope.cancel()

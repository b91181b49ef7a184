import math
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock

from codexd.auth import store
from codexd.auth.issuer import Issuer
from codexd.auth.session import Session
from codexd.auth.store import Credentials
from codexd.config.model import Backend, OAuth
from codexd.errors import ApiError
from codexd.protocol import sse
from codexd.protocol.codex.rate_limits import client_headers
from codexd.protocol.codex.request import Reasoning, Text, UpstreamRequest
from codexd.telemetry.trace import Timings
from codexd.upstream.call import Call
from codexd.upstream.client import PAGE_TIMEOUT, WARM_INTERVAL, WARM_SECONDS, Upstream, foreign
from codexd.upstream.http1 import Fields
from codexd.upstream.http_lane import EventStream
from codexd.upstream.proxies import Origin
from codexd.upstream.transport import RawResponse, RequestTarget, Transport
from support.secrets import access_token

NOW = 1_795_000_000.0


def limits(**headers: str) -> dict[str, str]:
    return dict(client_headers({f"x-codex-{name.replace('_', '-')}": value for name, value in headers.items()}, NOW))


def test_the_fullest_window_is_told_in_openais_words() -> None:
    found = limits(primary_used_percent="12.5", secondary_used_percent="60", secondary_reset_at=str(NOW + 90))
    assert found["x-ratelimit-remaining-requests"] == "40"
    assert found["x-ratelimit-reset-requests"] == "90s"
    assert found["x-codex-primary-used-percent"] == "12.5"
    assert limits(primary_used_percent="150")["x-ratelimit-remaining-requests"] == "0"
    assert limits(plan_type="plus") == {"x-codex-plan-type": "plus"}


@pytest.mark.parametrize("odd", ["nan", "inf", "-inf", "x", "", "1e999"])
def test_odd_numbers_are_no_numbers(odd: str) -> None:
    assert "x-ratelimit-limit-requests" not in limits(primary_used_percent=odd)
    assert "x-ratelimit-reset-requests" not in limits(primary_used_percent="1", primary_reset_at=odd)
    assert math.isfinite(float(limits(primary_used_percent="1")["x-ratelimit-remaining-requests"]))


def test_what_cannot_stand_in_a_header_and_what_is_the_backends_own_business_is_left_out() -> None:
    assert limits(promo_message="5 €", turn_state="x", limit_name="a\r\nb") == {}


def test_a_request_that_cannot_be_sent_does_not_quote_its_headers() -> None:
    error = foreign(httpx.LocalProtocolError("Illegal header value b'Bearer sEcReT'"))
    assert "Bearer" not in error.error.message
    assert error.status == 502


async def test_a_page_that_never_comes_is_given_up(autojump_clock: MockClock, tmp_path: Path) -> None:
    async def silent(_: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    store.save(tmp_path / "tokens.json", Credentials(access_token=access_token(9e9)))
    async with httpx.AsyncClient(transport=httpx.MockTransport(silent)) as http:
        session = Session(tmp_path / "tokens.json", issuer=Issuer(http, OAuth(), {}), clock=lambda: NOW)
        upstream = Upstream(http, session, Backend(), clock=lambda: NOW)
        for ask in (lambda: upstream.models(None), upstream.usage):
            begun = trio.current_time()
            with pytest.raises(ApiError, match="no answer within 30 seconds"):
                await ask()
            assert trio.current_time() - begun == pytest.approx(PAGE_TIMEOUT)


def call() -> Call:
    request = UpstreamRequest(
        model="m", input=[], reasoning=Reasoning(), prompt_cache_key="k", text=Text(verbosity="low")
    )
    return Call(request, "k", lite=False, caller="", lossless=True, timings=Timings())


class Warming(Transport):
    """Notes when it was to be warmed; ``reachable`` says whether that works."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []
        self.reachable = True

    async def warm(self, origin: Origin) -> None:
        assert origin == ("https", "chatgpt.com", 443)
        self.asked.append(trio.current_time())
        if not self.reachable:
            raise httpx.ConnectError("no route")

    async def post(
        self, target: RequestTarget, fields: Fields, body: bytes, may_resend: Callable[[], bool]
    ) -> RawResponse:
        raise httpx.ConnectError("no route")


async def test_a_connection_is_held_ready_for_who_is_signed_in_and_asks(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path, way = tmp_path / "tokens.json", Warming()
    async with httpx.AsyncClient(transport=way) as http, trio.open_nursery() as nursery:
        session = Session(path, issuer=Issuer(http, OAuth(), {}), clock=lambda: NOW)
        upstream = Upstream(http, session, Backend(), clock=lambda: NOW, transport=way)
        begun = trio.current_time()
        nursery.start_soon(upstream.run)
        await trio.sleep(62)
        assert way.asked == []
        store.save(path, Credentials(access_token=access_token(9e9)))
        await trio.sleep(WARM_INTERVAL)
        assert way.asked
        way.reachable = False
        await trio.sleep(1000)
        assert len(way.asked) < 25
        assert way.asked[-1] - way.asked[-2] == 60
        way.reachable = True
        await trio.sleep(WARM_SECONDS)
        assert begun + WARM_SECONDS - 60 <= way.asked[-1] < begun + WARM_SECONDS
        with pytest.raises(ApiError):
            async with upstream.open(call()):
                raise AssertionError
        await trio.sleep(60)
        assert len([when for when in way.asked if when > begun + WARM_SECONDS]) >= 10
        nursery.cancel_scope.cancel()


async def test_an_endless_event_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 10)
    response = httpx.Response(200, stream=httpx.ByteStream(b"data: {}\n\n" + b"x" * 11))
    with pytest.raises(ApiError) as caught:
        await EventStream(response).push(lambda _: True)
    assert (caught.value.error.code, caught.value.retryable) == ("upstream_stream_ended", True)

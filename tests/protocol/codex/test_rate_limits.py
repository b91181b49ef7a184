import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.protocol.codex.rate_limits import (
    Credits,
    Window,
    client_headers,
    from_headers,
    from_usage,
    headers_of_event,
    label,
    short,
)  # fmt: skip
from support.daemon import ROOT

NOW = 1_795_000_000.0
CAPTURES = ROOT.parent / "shared" / "upstream" / "captures" / "http"


@pytest.mark.parametrize(
    ("minutes", "shown"),
    [(300, "5 h"), (10080, "weekly"), (1440, "daily"), (43200, "30 d"), (90, "90 min"), (0, "0 min"), (None, "limit")],
)
def test_a_window_is_named_by_its_length(minutes: int | None, shown: str) -> None:
    assert label(minutes) == shown


def test_headers_of_an_answer() -> None:
    found = from_headers(
        {
            "x-codex-plan-type": "plus",
            "x-codex-primary-used-percent": "12.5",
            "x-codex-primary-window-minutes": "10080",
            "x-codex-primary-reset-at": "1795000100",
            "x-codex-primary-over-secondary-limit-percent": "0",
            "x-codex-bengalfox-primary-used-percent": "3",
            "x-codex-bengalfox-primary-reset-after-seconds": "60",
            "x-codex-bengalfox-limit-name": "Spark",
            "x-other-secondary-used-percent": "nonsense",
            "x-codex-credits-has-credits": "True",
            "x-codex-credits-unlimited": "False",
            "x-codex-credits-balance": "",
            "x-codex-rate-limit-reached-type": "rate_limit_reached",
        },
        NOW,
    )
    assert found is not None
    assert (found.source, found.as_of, found.plan, found.reached) == ("headers", NOW, "plus", "rate_limit_reached")
    assert found.windows == [
        Window(limit="codex", label="weekly", used_percent=12.5, window_minutes=10080, resets_at=1_795_000_100),
        Window(limit="Spark", label="limit", used_percent=3, window_minutes=None, resets_at=1_795_000_060),
    ]
    assert found.credits == Credits(has_credits=True, unlimited=False, balance=None)


def test_headers_without_limits_say_nothing() -> None:
    assert from_headers({"x-codex-plan-type": "plus", "content-type": "x"}, NOW) is None
    found = from_headers({"x-codex-primary-used-percent": "1"}, NOW)
    assert found is not None
    assert (found.credits, found.windows[0].resets_at) == (None, None)


USAGE = {
    "plan_type": "plus",
    "rate_limit": {
        "primary_window": {"used_percent": 16, "limit_window_seconds": 18000, "reset_after_seconds": 600},
        "secondary_window": None,
    },
    "additional_rate_limits": [
        {"metered_feature": "codex_bengalfox", "rate_limit": {"primary_window": {"used_percent": 0.5}}},
        {"limit_name": "Empty", "rate_limit": None},
    ],
    "credits": {"has_credits": True, "unlimited": None, "balance": 3.5},
    "rate_limit_reached_type": {"type": "rate_limit_reached"},
    "new_key": {},
}


def test_the_usage_page() -> None:
    found = from_usage(msgspec.json.encode(USAGE), NOW)
    assert (found.source, found.plan, found.reached) == ("usage", "plus", "rate_limit_reached")
    assert found.windows == [
        Window(limit="codex", label="5 h", used_percent=16, window_minutes=300, resets_at=1_795_000_600),
        Window(limit="codex_bengalfox", label="limit", used_percent=0.5, window_minutes=None, resets_at=None),
    ]
    assert found.credits == Credits(has_credits=True, unlimited=False, balance="3.5")


def test_a_usage_page_with_nothing_on_it() -> None:
    found = from_usage(b'{"rate_limit": null, "credits": null, "rate_limit_reached_type": "x"}', NOW)
    assert (found.windows, found.credits, found.plan, found.reached) == ([], None, None, "x")
    empty = from_usage(b'{"credits": {}}', NOW)
    assert empty.credits == Credits(has_credits=False, unlimited=False, balance=None)
    with pytest.raises(msgspec.DecodeError):
        from_usage(b"<html>", NOW)


@pytest.mark.skipif(not CAPTURES.exists(), reason="the captures are not here")
def test_the_captured_page_and_the_captured_headers() -> None:
    page = msgspec.json.decode((CAPTURES / "usage_response_sample.json").read_bytes())["example"]
    found = from_usage(msgspec.json.encode(page), NOW)
    assert [(window.limit, window.label) for window in found.windows] == [
        ("codex", "5 h"),
        ("codex", "weekly"),
        ("GPT-5.3-Codex-Spark", "5 h"),
    ]
    headers = msgspec.json.decode((CAPTURES / "rate_limit_response_headers.json").read_bytes())
    seen = from_headers(headers["response_headers_seen_by_peers"], NOW)
    assert seen is not None
    assert [window.label for window in seen.windows] == ["5 h", "weekly"]
    assert seen.credits == Credits(has_credits=False, unlimited=False, balance=None)


@pytest.mark.parametrize(("minutes", "shown"), [(300, "5h"), (1440, "day"), (10080, "week"), (45, "45min")])
def test_a_window_has_a_short_name(minutes: int, shown: str) -> None:
    window = Window(limit="codex", label=label(minutes), used_percent=1, window_minutes=minutes, resets_at=None)
    assert short(window) == shown


def test_an_event_about_limits_is_headers() -> None:
    event = {
        "type": "codex.rate_limits",
        "plan_type": "plus",
        "rate_limits": {
            "allowed": True,
            "primary": {"used_percent": 12.5, "window_minutes": 300, "reset_at": 1_795_000_060},
            "secondary": {"used_percent": 34, "window_minutes": None},
        },
        "credits": {"has_credits": True, "unlimited": False, "balance": "7.5"},
    }
    headers = headers_of_event(msgspec.json.encode(event))
    assert headers == {
        "x-codex-plan-type": "plus",
        "x-codex-primary-used-percent": "12.5",
        "x-codex-primary-window-minutes": "300",
        "x-codex-primary-reset-at": "1795000060",
        "x-codex-secondary-used-percent": "34.0",
        "x-codex-credits-has-credits": "True",
        "x-codex-credits-unlimited": "False",
        "x-codex-credits-balance": "7.5",
    }
    found = from_headers(headers, NOW)
    assert found is not None
    assert [(window.used_percent, window.resets_at) for window in found.windows] == [
        (12.5, 1_795_000_060),
        (34.0, None),
    ]
    assert (found.plan, found.credits) == ("plus", Credits(has_credits=True, unlimited=False, balance="7.5"))


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"rate_limits": None},
        {"rate_limits": {"primary": None}, "plan_type": None},
        {"rate_limits": {"primary": {}}},
    ],
)
def test_an_event_without_limits_has_no_headers(event: dict[str, Any]) -> None:
    assert headers_of_event(msgspec.json.encode(event)) == {}


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"rate_limits":7}', b'{"rate_limits":{"primary":{"used_percent":"x"}}}']
)
def test_an_event_in_an_odd_shape_is_an_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        headers_of_event(data)


WILD = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=9),
    st.integers(1, 6000).map(lambda size: "9" * size),
    st.sampled_from(["-1", "1e308", "inf", "nan", "253370764801", "1_0", "٣"]),
)


@given(st.dictionaries(st.sampled_from(["used-percent", "window-minutes", "reset-at", "reset-after-seconds"]), WILD))
def test_numbers_of_headers_are_what_calendars_and_encoders_hold(values: dict[str, str]) -> None:
    headers = {f"x-codex-primary-{name}": value for name, value in values.items()}
    if (found := from_headers(headers, NOW)) is not None:
        msgspec.json.encode(found)
        for window in found.windows:
            if window.resets_at is not None:
                datetime.fromtimestamp(window.resets_at, UTC)
            assert window.window_minutes is None or window.window_minutes >= 0
            assert 0 <= window.used_percent <= 10_000
    assert all(len(value) < 7000 for _, value in client_headers(headers, NOW))


NUMBER = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([10**300, -(10**18), 2**63])


@given(NUMBER, NUMBER, NUMBER, NUMBER)
def test_numbers_of_the_usage_page_too(used: float, seconds: float, after: float, at: float) -> None:
    window = {"used_percent": used, "limit_window_seconds": seconds, "reset_after_seconds": after, "reset_at": at}
    body = json.dumps({"rate_limit": {"primary_window": window}}).encode()
    try:
        found = from_usage(body, NOW)
    except msgspec.DecodeError:
        return
    msgspec.json.encode(found)
    for each in found.windows:
        if each.resets_at is not None:
            datetime.fromtimestamp(each.resets_at, UTC)


def test_there_is_an_end_to_windows_and_their_names() -> None:
    headers = {f"x-{'n' * 50}{number}-primary-used-percent": "1" for number in range(100)}
    headers |= {f"x-{'n' * 50}{number}-limit-name": "l" * 9999 for number in range(100)}
    found = from_headers(headers, NOW)
    assert found is not None
    assert (len(found.windows), {len(window.limit) for window in found.windows}) == (20, {64})

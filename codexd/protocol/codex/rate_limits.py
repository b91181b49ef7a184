"""Used share of an account's limits, from the headers of an answer or from the usage endpoint.

Wire facts: sections C.4 and E of the protocol notes. Windows are named by their length, not by their position: on some
plans the first one is the weekly one.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from msgspec import Struct

from codexd.protocol import decoding

MAX_WINDOWS, MAX_NAME = 20, 64
"""Windows that are read, and characters of their names, which become labels of metrics."""

MAX_PERCENT, MAX_MINUTES, YEAR_9999 = 10_000.0, 10 * 366 * 1440, 253_370_764_800.0
"""Larger values are not a share, a window or a time (in Unix seconds)."""

MAIN = "codex"
"""The limit that all requests count against; other limits apply to single features or models."""


class Window(Struct, frozen=True, kw_only=True):
    """One limit window. ``resets_at`` is in Unix seconds; ``label`` is the window's length as text."""

    limit: str
    label: str
    used_percent: float
    window_minutes: int | None
    resets_at: int | None


class Credits(Struct, frozen=True, kw_only=True):
    has_credits: bool = False
    unlimited: bool = False
    balance: str | None = None


class Limits(Struct, frozen=True, kw_only=True):
    """All limits. ``as_of`` is in Unix seconds; ``source`` is the usage endpoint or an answer's headers."""

    source: Literal["usage", "headers"]
    as_of: int
    plan: str | None
    windows: list[Window]
    credits: Credits | None
    reached: str | None


def label(minutes: int | None) -> str:
    """Returns a window's length as text: ``5 h``, ``weekly``, ``30 d``."""
    if minutes is None:
        return "limit"
    if minutes in (1440, 10080):
        return "daily" if minutes == 1440 else "weekly"
    for unit, size in (("d", 1440), ("h", 60)):
        if minutes % size == 0 and minutes >= size:
            return f"{minutes // size} {unit}"
    return f"{minutes} min"


def short(window: Window) -> str:
    """Returns a short label for one-line output: ``5h``, ``week``."""
    return {"daily": "day", "weekly": "week"}.get(window.label, window.label.replace(" ", ""))


# --- from headers

_USED = re.compile(r"x-(.{1,64})-(primary|secondary)-used-percent")


def from_headers(headers: Mapping[str, str], now: float) -> Limits | None:
    """Decodes an answer's ``x-codex-*`` headers; None when there are none. ``now`` is in Unix seconds."""
    windows = list(_windows(headers, now))
    if not windows:
        return None
    credit = None
    if (has := headers.get("x-codex-credits-has-credits")) is not None:
        credit = Credits(
            has_credits=_truth(has),
            unlimited=_truth(headers.get("x-codex-credits-unlimited", "")),
            balance=headers.get("x-codex-credits-balance", "")[:MAX_NAME] or None,
        )
    return Limits(
        source="headers",
        as_of=int(now),
        plan=headers.get("x-codex-plan-type"),
        windows=windows,
        credits=credit,
        reached=headers.get("x-codex-rate-limit-reached-type"),
    )


class _EventWindow(Struct, frozen=True):
    used_percent: float | None = None
    window_minutes: int | None = None
    reset_at: int | None = None


class _EventLimits(Struct, frozen=True):
    primary: _EventWindow | None = None
    secondary: _EventWindow | None = None


class _LimitsEvent(Struct, frozen=True):
    plan_type: str | None = None
    rate_limits: _EventLimits | None = None
    credits: "_Credits | None" = None


def headers_of_event(data: bytes) -> dict[str, str]:
    """Returns a ``codex.rate_limits`` event as the headers that an answer over HTTP has. Raises DecodeError."""
    event = decoding.decode(data, type=_LimitsEvent)
    found: dict[str, object] = {"plan-type": event.plan_type}
    for name in ("primary", "secondary"):
        if (window := getattr(event.rate_limits, name, None)) is not None:
            found |= {
                f"{name}-used-percent": window.used_percent,
                f"{name}-window-minutes": window.window_minutes,
                f"{name}-reset-at": window.reset_at,
            }
    if event.credits is not None:
        found |= {
            "credits-has-credits": event.credits.has_credits,
            "credits-unlimited": event.credits.unlimited,
            "credits-balance": event.credits.balance,
        }
    return {f"x-codex-{name}": str(value) for name, value in found.items() if value is not None}


_LASTING = ("-used-percent", "-window-minutes", "-reset-at", "-limit-name")
"""The ends of the names of a window's headers, without the one that counts from now."""


def _windows(headers: Mapping[str, str], now: float) -> Sequence[Window]:
    """Decodes the windows. Nearly every answer has those of the one before."""
    windows = _lasting(tuple([field for field in headers.items() if field[0].endswith(_LASTING)]))
    for window in windows:
        if window.resets_at is None:
            return tuple(_decoded(headers, now))
    return windows


@lru_cache(maxsize=8)
def _lasting(fields: tuple[tuple[str, str], ...]) -> Sequence[Window]:
    return tuple(_decoded(dict(fields), 0.0))


def _decoded(headers: Mapping[str, str], now: float) -> Iterator[Window]:
    number = 0
    for name in headers:
        found = _USED.fullmatch(name)
        used = _number(headers[name]) if found else None
        if found is None or used is None:
            continue
        number += 1
        if number > MAX_WINDOWS:
            return
        prefix = f"x-{found[1]}-{found[2]}"
        minutes = _number(headers.get(f"{prefix}-window-minutes"))
        resets_at = _number(headers.get(f"{prefix}-reset-at"))
        after = _number(headers.get(f"{prefix}-reset-after-seconds"))
        yield _made(
            headers.get(f"x-{found[1]}-limit-name", found[1]) if found[1] != MAIN else MAIN,
            used,
            minutes,
            now + after if resets_at is None and after is not None else resets_at,
        )


def _made(limit: str, used: float, minutes: float | None, resets_at: float | None) -> Window:
    """Returns a window with numbers that clocks and calendars can hold; what is beyond counts as unknown."""
    length = int(minutes) if minutes is not None and 0 <= minutes <= MAX_MINUTES else None
    return Window(
        limit=limit[:MAX_NAME],
        label=label(length),
        used_percent=min(max(used, 0.0), MAX_PERCENT),
        window_minutes=length,
        resets_at=math.ceil(resets_at) if resets_at is not None and 0 <= resets_at < YEAR_9999 else None,
    )


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _truth(text: str) -> bool:
    # The backend sends "True" (as Python prints it) or 1.
    return text.lower() in ("true", "1")


def client_headers(headers: Mapping[str, str], now: float) -> list[tuple[str, str]]:
    """Returns the backend's limit headers for the client, and the fullest main window as ``x-ratelimit-*`` headers.

    The backend reports percentages, so the limit is 100 and the remaining requests are a percentage too.
    """
    own = {name: value for name, value in headers.items() if name.startswith("x-codex-")}
    own.pop("x-codex-turn-state", None)
    passed = [(name, value) for name, value in own.items() if value.isascii() and value.isprintable()]
    main = [window for window in _windows(own, now) if window.limit == MAIN]
    if not main:
        return passed
    fullest = max(main, key=lambda window: window.used_percent)
    passed += [
        ("x-ratelimit-limit-requests", "100"),
        ("x-ratelimit-remaining-requests", str(max(0, int(100 - fullest.used_percent)))),
    ]
    shares = [f"{short(window)}={window.used_percent:.0f}%" for window in main]
    passed.append(("x-codexd-window", ", ".join(shares)))
    if fullest.resets_at is not None:
        passed.append(("x-ratelimit-reset-requests", f"{max(0, int(fullest.resets_at - now))}s"))
    return passed


# --- from the usage endpoint


class _Window(Struct, frozen=True):
    used_percent: float
    limit_window_seconds: int | None = None
    reset_after_seconds: float | None = None
    reset_at: int | None = None


class _RateLimit(Struct, frozen=True):
    primary_window: _Window | None = None
    secondary_window: _Window | None = None


class _Additional(Struct, frozen=True):
    limit_name: str | None = None
    metered_feature: str | None = None
    rate_limit: _RateLimit | None = None


class _Credits(Struct, frozen=True):
    has_credits: bool | None = None
    unlimited: bool | None = None
    balance: str | float | None = None


class _Reached(Struct, frozen=True):
    type: str | None = None


class _Usage(Struct, frozen=True):
    plan_type: str | None = None
    rate_limit: _RateLimit | None = None
    additional_rate_limits: list[_Additional] | None = None
    credits: _Credits | None = None
    rate_limit_reached_type: str | _Reached | None = None


def from_usage(body: bytes, now: float) -> Limits:
    """Decodes the answer of ``GET /wham/usage``. Raises msgspec.DecodeError or UnicodeDecodeError."""
    usage = decoding.decode(body, type=_Usage)
    extras = usage.additional_rate_limits or []
    limits = [
        (MAIN, usage.rate_limit),
        *((extra.limit_name or extra.metered_feature or "other", extra.rate_limit) for extra in extras),
    ]
    windows = [
        _window(name, window, now)
        for name, limit in limits
        if limit is not None
        for window in (limit.primary_window, limit.secondary_window)
        if window is not None
    ][:MAX_WINDOWS]
    credit = None
    if usage.credits is not None:
        balance = usage.credits.balance
        credit = Credits(
            has_credits=bool(usage.credits.has_credits),
            unlimited=bool(usage.credits.unlimited),
            balance=None if balance is None else str(balance)[:MAX_NAME],
        )
    reached = usage.rate_limit_reached_type
    return Limits(
        source="usage",
        as_of=int(now),
        plan=usage.plan_type,
        windows=windows,
        credits=credit,
        reached=reached.type if isinstance(reached, _Reached) else reached,
    )


def _window(name: str, window: _Window, now: float) -> Window:
    minutes = None if window.limit_window_seconds is None else window.limit_window_seconds // 60
    resets_at: float | None = window.reset_at
    if resets_at is None and window.reset_after_seconds is not None:
        resets_at = now + window.reset_after_seconds
    return _made(name, window.used_percent, minutes, resets_at)

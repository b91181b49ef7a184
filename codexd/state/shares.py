"""An estimate of the part of each limit window that each client key has used.

The backend says only how much of a window is used in all, in whole percents. When that grows from one answer to the
next, the growth is spread over what ended in between, by tokens. What grew while nothing ended here was used by other
programs of the account. A window that resets begins at nothing.
"""

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from codexd.protocol.codex.rate_limits import MAIN, Window

ELSEWHERE = "(elsewhere)"
"""The key of what other programs of the account have used."""

_JITTER = 60
"""Seconds by which the time of a reset may differ between two answers without a reset."""


class Share(Struct, kw_only=True):
    """``percent`` of the window that the keys have used; ``resets_at`` is in Unix seconds."""

    label: str
    used: float
    resets_at: int | None
    percent: dict[str, float]


class Shares:
    """The estimate. ``rows`` are what was saved."""

    def __init__(self, rows: Iterable[Share] = ()) -> None:
        self._windows = {row.label: row for row in rows}
        self._ran: dict[str, Counter[str]] = {label: Counter() for label in self._windows}

    def ran(self, key: str, tokens: int) -> None:
        """Counts a request that has ended."""
        for weights in self._ran.values():
            weights[key] += max(1, tokens)

    def observe(self, windows: Iterable[Window]) -> None:
        """Takes the windows as an answer told them."""
        for window in windows:
            if window.limit == MAIN:
                self._observe(window)

    def _observe(self, window: Window) -> None:
        known = self._windows.get(window.label)
        weights = self._ran.setdefault(window.label, Counter())
        if known is None:
            # Nothing is known of who used it before.
            known = Share(label=window.label, used=window.used_percent, resets_at=window.resets_at, percent={})
            if window.used_percent:
                known.percent[ELSEWHERE] = window.used_percent
        elif _was_reset(known, window):
            known = Share(label=window.label, used=0.0, resets_at=window.resets_at, percent={})
        grown = window.used_percent - known.used
        if grown > 0:
            total = sum(weights.values())
            spread = {key: grown * each / total for key, each in weights.items()} if total else {ELSEWHERE: grown}
            for key, part in spread.items():
                known.percent[key] = known.percent.get(key, 0.0) + part
            known.used = window.used_percent
            weights.clear()
        known.resets_at = window.resets_at
        self._windows[window.label] = known

    def rows(self) -> list[Share]:
        return list(self._windows.values())


def _was_reset(known: Share, window: Window) -> bool:
    later = (
        known.resets_at is not None and window.resets_at is not None and window.resets_at > known.resets_at + _JITTER
    )
    return later or (window.used_percent < known.used and (known.resets_at is None or window.used_percent < 1))

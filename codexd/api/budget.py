"""The budget of a client key: a share of the account's limits, or a number of tokens a day."""

import datetime
import math
from collections.abc import Callable

from codexd import errors
from codexd.protocol.codex.rate_limits import MAIN, Limits
from codexd.state.keys import Keys
from codexd.state.usage import Ledger


class Budget:
    """Admits requests of keys that have something left. ``limits`` are the newest known; ``clock`` gives Unix seconds.

    Requests in progress count only when they end.
    """

    def __init__(
        self, keys: Keys, ledger: Ledger, limits: Callable[[], Limits | None], *, clock: Callable[[], float]
    ) -> None:
        self._keys = keys
        self._ledger = ledger
        self._limits = limits
        self._clock = clock

    def admit(self, name: str) -> None:
        """Raises ApiError 429 if the key has had its share."""
        own = self._keys.limits(name)
        if own.until_percent is not None:
            self._admit_windows(name, own.until_percent)
        if own.tokens_per_day is not None and (used := self._ledger.tokens_today(name)) >= own.tokens_per_day:
            raise errors.key_day_spent(name, own.tokens_per_day, used, self._seconds_of_today())

    def _admit_windows(self, name: str, until: int) -> None:
        now, limits = self._clock(), self._limits()
        full = [
            window
            for window in (limits.windows if limits else ())
            if window.limit == MAIN
            and window.used_percent >= until
            and (window.resets_at is None or window.resets_at > now)
        ]
        if full:
            last = max(full, key=lambda window: window.resets_at or math.inf)
            wait = None if last.resets_at is None else math.ceil(last.resets_at - now)
            raise errors.key_share_spent(name, until, last.label, last.used_percent, wait)

    def _seconds_of_today(self) -> int:
        now = datetime.datetime.fromtimestamp(self._clock()).astimezone()
        tomorrow = (now + datetime.timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return math.ceil((tomorrow - now).total_seconds())

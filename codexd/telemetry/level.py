"""The log level, which the user can change for a limited time without a restart."""

from collections.abc import Callable
from typing import Literal

import structlog
import trio

from codexd.lowlevel import timers
from codexd.telemetry.log import set_level

LogLevel = Literal["debug", "info", "warn", "error"]

log = structlog.get_logger()


class LevelOverride:
    """The level in use is ``current``; if it is not the configured one, it ends at ``until`` (Unix seconds).

    ``clock`` gives Unix seconds.
    """

    def __init__(self, configured: LogLevel, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._timer: timers.Timer | None = None
        self.configured: LogLevel = configured
        self.current: LogLevel = configured
        self.until: float | None = None

    def set(self, level: LogLevel | None, seconds: float) -> None:
        """Sets the level for this many seconds; None restores the configured level."""
        if self._timer is not None:
            self._timer.cancel()
        self.current, self.until = level or self.configured, None
        set_level(self.current)
        if level is not None:
            self.until = self._clock() + seconds
            self._timer = timers.call_at(trio.current_time() + seconds, lambda: self.set(None, 0))
        log.info("log level changed", to=self.current, seconds=seconds or None)

    def configure(self, configured: LogLevel) -> None:
        """Takes over a configured level that is already in use; an active override is kept."""
        self.configured = configured
        if self.until is not None:
            set_level(self.current)
        else:
            self.current = configured

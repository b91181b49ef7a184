"""Bulkheads round the daemon's background tasks: a fault of one is logged, and the task starts again."""

import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog
import trio

from codexd.reasons import reason_of

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between a fault and the next start; each fault in a row doubles them."""

HEALED = 600.0
"""Seconds without another fault after which a task counts as healthy."""

log = structlog.get_logger()


class Fault(NamedTuple):
    """The last fault of a task. ``at`` is in trio's time; ``pause``: seconds before the next start."""

    at: float
    pause: float
    why: str


class Keepers:
    """Runs background tasks, none of which can end the daemon."""

    def __init__(self) -> None:
        self._faults: dict[str, Fault] = {}

    @property
    def faults(self) -> dict[str, str]:
        """The tasks that have failed within HEALED, and why."""
        since = trio.current_time() - HEALED
        return {name: fault.why for name, fault in self._faults.items() if fault.at > since}

    async def keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Runs a task to its end. After an exception it runs again, later; cancellation ends it."""
        while True:
            try:
                await run()
            except Exception as error:
                now, before = trio.current_time(), self._faults.get(name, Fault(-math.inf, 0.0, ""))
                pause = FIRST_PAUSE if now > before.at + HEALED else min(before.pause * 2, LONGEST_PAUSE)
                self._faults[name] = Fault(now, pause, f"internal error: {reason_of(error)}"[:200])
                log.error("internal error in a background task", task=name, again_in=pause, exc_info=error)
            else:
                return
            await trio.sleep(pause)

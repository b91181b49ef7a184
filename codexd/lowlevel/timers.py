"""Timers that all run from one task.

Every answer has a deadline, which is nearly always moved before it is due. A sleeping task for each one would cost a
nursery, a cancellation and four scheduler passes per request; here it is an entry in a heap.
"""

import heapq
import itertools
import math
from collections.abc import Callable

import structlog
import trio

log = structlog.get_logger()


def next_round(seconds: float) -> float:
    """Returns the time after this many seconds, rounded to a second, so that periodic tasks wake up together."""
    step = min(1.0, seconds)
    return round((trio.current_time() + seconds) / step) * step


async def pause(seconds: float) -> None:
    await trio.sleep_until(next_round(seconds))


class Timer:
    """A scheduled call, until it is made or cancelled."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class _Timers:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = itertools.count()
        self._sooner = trio.Event()
        self._until = math.inf

    def add(self, when: float, timer: Timer) -> None:
        heapq.heappush(self._heap, (when, next(self._number), timer))
        if when < self._until:
            self._until = when
            self._sooner.set()

    async def run(self) -> None:
        """Makes the calls that are due. Runs until cancelled."""
        while True:
            # Each wake-up also removes the cancelled timers at the front; one wake-up for each would be too expensive.
            while self._heap and (self._heap[0][0] <= trio.current_time() or self._heap[0][2].call is None):
                _, _, timer = heapq.heappop(self._heap)
                call, timer.call = timer.call, None
                if call is not None:
                    _make(call)
            self._until = self._heap[0][0] if self._heap else math.inf
            self._sooner = trio.Event()
            with trio.move_on_at(self._until):
                await self._sooner.wait()


def _make(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:
        log.error("internal error in a timer", exc_info=error)


_TIMERS: trio.lowlevel.RunVar[_Timers] = trio.lowlevel.RunVar("timers")


def call_at(when: float, call: Callable[[], None]) -> Timer:
    """Schedules a call at a time of trio's clock, or soon after. ``call`` must neither wait nor block."""
    try:
        timers = _TIMERS.get()
    except LookupError:
        timers = _Timers()
        _TIMERS.set(timers)
        trio.lowlevel.spawn_system_task(timers.run)
    timer = Timer(call)
    timers.add(when, timer)
    return timer

"""Calls at a time to come, all from one task.

Every answer has a moment at which somebody must look after it, which nearly always is put off before it comes. A task
that sleeps for each of them costs a nursery, a cancellation and four passes of the scheduler for each request; here it
is an entry in a heap.
"""

import heapq
import itertools
import math
from collections.abc import Callable

import structlog
import trio

log = structlog.get_logger()


class Timer:
    """A call to come, until it was made or ``cancel`` was."""

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
        """Runs until cancelled."""
        while True:
            # One wake-up clears away all that was cancelled and is next; waking for each would cost what this saves.
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
        log.error("a timer met a fault of codexd itself", exc_info=error)


_TIMERS: trio.lowlevel.RunVar[_Timers] = trio.lowlevel.RunVar("timers")


def call_at(when: float, call: Callable[[], None]) -> Timer:
    """Have it called at this time of trio's clock, or soon after. ``call`` must neither wait nor block."""
    try:
        timers = _TIMERS.get()
    except LookupError:
        timers = _Timers()
        _TIMERS.set(timers)
        trio.lowlevel.spawn_system_task(timers.run)
    timer = Timer(call)
    timers.add(when, timer)
    return timer

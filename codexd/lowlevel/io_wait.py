"""Streams served inside trio's own wait for I/O.

More than half of the instructions of an event that comes alone were trio's loop: arming its epoll, waiting, waking a
task, and only then codexd's own epoll. trio has a public hook for that moment, an Instrument with ``before_io_wait``.
The hook waits in trio's place, on the streams' epoll, which also holds the descriptor of trio's epoll (an epoll is
readable when one of its own is), and serves streams until trio has something to do:

    the hook returns when                                     | and then trio's own wait
    ----------------------------------------------------------|----------------------------------------------
    trio's epoll is readable                                  | ends at once
    the same, and steps were called, which may have taken it  | is cut short (``wake``)
    a step has woken a task                                   | is cut short
    a deadline of trio is due                                 | is cut short: it would wait as long once more
    a turn is over, or a batch was full: a flood              | is cut short
    the time is over, and no deadline is due                  | is made: it is how trio finds out that all is idle

The last one is for ``wait_all_tasks_blocked`` and the autojump clock, which take a wait without events for idleness.
With a timeout of zero, when tasks are ready, the hook only looks, so a busy trio does not starve streams. Where no task
is ready, that is the autojump clock: if a stream was served, the wait is cut short, because that was no idleness.

A hook runs outside any task. It must not raise, because trio would remove it: a step's exception goes to the step's own
task, and a failure of the hook itself ends the streams that are open. trio has computed its timeout before, so a step
must not move a deadline of trio's; it may wake a task that does.

Three private attributes of trio are needed: its epoll, the queue of runnable tasks, and what ends its wait. They are
looked up once, in ``_inside``; where one is missing, in guest mode, or on another system, there is no hook.
"""

from collections.abc import Callable, Collection, Sized
from contextlib import suppress
from time import perf_counter
from typing import NamedTuple, Protocol

import structlog
import trio

PRECISION = 0.001
"""Seconds before a deadline from which it counts as due; epoll counts milliseconds."""

log = structlog.get_logger()


class Streams(Sized, Protocol):
    """What the hook needs of ``reactor.Reactor``."""

    def add_host(self, fd: int) -> None: ...

    def serve(self, timeout: float) -> tuple[int, bool, bool]: ...

    def fail(self, error: Exception) -> None: ...

    def close(self) -> None: ...


class Inside(NamedTuple):
    """What is needed of the inside of a trio run."""

    epoll: int
    runnable: Collection[object]
    wake: Callable[[], None]


def serve(streams: Streams) -> bool:
    """Serves the streams in this trio run, until its end. Returns False if it cannot."""
    inside = _inside()
    if inside is None:
        return False
    streams.add_host(inside.epoll)
    trio.lowlevel.add_instrument(_Hook(streams, inside))
    return True


def _inside() -> Inside | None:
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        runner = GLOBAL_RUN_CONTEXT.runner
        if runner.is_guest:
            return None  # its wait is in another thread
        epoll: int = runner.io_manager._epoll.fileno()
        wake: Callable[[], None] = runner.io_manager.force_wakeup
        runnable: Collection[object] = runner.runq
    except (ImportError, AttributeError):
        return None
    return Inside(epoll, runnable, wake)


class _Hook(trio.abc.Instrument):
    def __init__(self, streams: Streams, inside: Inside) -> None:
        self._streams = streams
        self._runnable, self._wake = inside.runnable, inside.wake

    def before_io_wait(self, timeout: float) -> None:
        if not self._streams:
            return
        try:
            if self._serve(timeout):
                self._wake()
        except Exception as error:
            self._streams.fail(error)
            self._wake()
            with suppress(Exception):  # trio would remove this hook, and nothing would be served any more
                log.error("internal error while waiting for streams", exc_info=error)

    def _serve(self, timeout: float) -> bool:
        """Serves until trio has something to do; returns whether trio's own wait has to be cut short."""
        serve, runnable = self._streams.serve, self._runnable
        if timeout <= 0:
            served, _, _ = serve(0)
            return served > 0 and not runnable
        now = perf_counter()
        until = now + timeout
        while True:
            served, more, for_trio = serve(until - now)
            if for_trio:
                return served > 0
            if runnable or more:
                return True
            now = perf_counter()
            if now >= until:
                return trio.lowlevel.current_statistics().seconds_to_next_deadline < PRECISION

    def after_run(self) -> None:
        self._streams.close()

"""Work that takes long, off the event loop: in a thread, one piece at a time.

A thread shares the interpreter with the loop: it gives way every few milliseconds, but not inside one call into C. So
what runs here must be bounded where it is one call. One piece at a time, because each may take many times its input's
memory. The functions see no trio: what they need of its clock is passed in.
"""

from collections.abc import Callable
from typing import TypeVar

import trio

LARGE = 64 * 1024
"""Bytes of input from which work is done in a thread. Less takes at most 20 ms, and is done on the loop."""

_T = TypeVar("_T")

_DONE: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("worked")
_EVENTS: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("worker for events")
_PLACE: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("worker")


async def run(size: int, function: Callable[[], _T], *, events: bool = False) -> _T:
    """Calls the function, here for a small input, else in the worker's thread. Raises what it raises.

    ``events``: of answers, which do not wait behind requests.
    """
    if size <= LARGE:
        return function()
    places = _EVENTS if events else _PLACE
    try:
        place = places.get()
    except LookupError:
        place = trio.CapacityLimiter(1)
        places.set(place)
    _DONE.set(True)
    return await trio.to_thread.run_sync(function, limiter=place)


def has_worked() -> bool:
    """Returns whether anything was done here since the last call: then much memory may be free."""
    try:
        return _DONE.get()
    except LookupError:
        return False
    finally:
        _DONE.set(False)


def on_loop(function: Callable[[], None]) -> None:
    """Calls the function in the loop's thread, also from the worker's, which waits for it."""
    if trio.lowlevel.in_trio_run():
        function()
    else:
        trio.from_thread.run_sync(function)

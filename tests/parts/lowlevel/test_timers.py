"""Calls at a time to come."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from codexd.lowlevel import timers
from codexd.lowlevel.timers import call_at


async def test_each_is_called_once_at_its_time_and_in_order(autojump_clock: MockClock) -> None:
    made: list[tuple[str, float]] = []

    def call(name: str) -> None:
        made.append((name, trio.current_time()))

    begun = trio.current_time()
    call_at(begun + 5, partial(call, "late"))
    call_at(begun + 2, partial(call, "early"))
    never = call_at(begun + 1, partial(call, "never"))
    call_at(begun - 7, partial(call, "at once"))
    never.cancel()
    await trio.sleep(3)
    call_at(begun + 4, partial(call, "between"))
    await trio.sleep(10)
    assert [name for name, _ in made] == ["at once", "early", "between", "late"]
    assert [moment - begun for _, moment in made] == pytest.approx([0, 2, 4, 5])


async def test_one_that_fails_does_not_stop_the_others(autojump_clock: MockClock) -> None:
    made: list[float] = []

    def broken() -> None:
        raise ZeroDivisionError

    begun = trio.current_time()
    call_at(begun + 1, broken)
    call_at(begun + 1, lambda: made.append(trio.current_time()))
    await trio.sleep(2)
    assert made == pytest.approx([begun + 1])


async def test_what_was_cancelled_wakes_nobody(autojump_clock: MockClock) -> None:
    """A busy server cancels hundreds a second."""
    for number in range(1, 100):
        call_at(trio.current_time() + number, lambda: None).cancel()
    wakes = 0

    class Counting(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal wakes
            wakes += "Timers" in task.name

    trio.lowlevel.add_instrument(Counting())
    await trio.sleep(1000)
    assert wakes <= 2


async def test_what_runs_now_and_then_wakes_up_together(autojump_clock: MockClock) -> None:
    woken: list[float] = []

    async def again(after: float, seconds: float) -> None:
        await trio.sleep(after)
        for _ in range(3):
            await timers.pause(seconds)
            woken.append(trio.current_time())

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again, 0.2, 5)
        nursery.start_soon(again, 0.4, 5)
        nursery.start_soon(again, 0.3, 60)
    assert [moment - begun for moment in woken] == pytest.approx([5, 5, 10, 10, 15, 15, 60, 120, 180], abs=0.6)
    assert len(set(woken)) == 6
    before = trio.current_time()
    await timers.pause(0.1)
    assert 0.05 <= trio.current_time() - before <= 0.15

"""A background task that fails: logged, shown, started again, and nobody else notices."""

import itertools

import trio
from trio.testing import MockClock

from codexd.lowlevel.keepers import HEALED, LONGEST_PAUSE, Keepers


async def test_a_task_that_fails_starts_again_after_longer_and_longer_pauses(autojump_clock: MockClock) -> None:
    keepers, started = Keepers(), list[float]()

    async def run() -> None:
        started.append(trio.current_time())
        if len(started) < 10:
            raise RecursionError("too deep")

    await keepers.keep("catalogue", run)
    pauses = [after - before for before, after in itertools.pairwise(started)]
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == LONGEST_PAUSE
    assert keepers.faults == {"catalogue": "internal error: too deep"}


async def test_a_fault_is_forgotten_and_the_pauses_begin_anew(autojump_clock: MockClock) -> None:
    keepers, started = Keepers(), list[float]()

    async def run() -> None:
        started.append(trio.current_time())
        await trio.sleep(HEALED + 1)
        assert keepers.faults == {}
        if len(started) < 3:
            raise ExceptionGroup("two", [ValueError("a"), OSError("b")])

    await keepers.keep("catalogue", run)
    assert [after - before for before, after in itertools.pairwise(started)] == [HEALED + 2] * 2


async def test_a_fault_reaches_no_other_task_and_the_end_of_all_ends_it(autojump_clock: MockClock) -> None:
    keepers = Keepers()

    async def fails() -> None:
        raise OSError("no disk")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keepers.keep, "keys", fails)
        await trio.sleep(1000)
        assert keepers.faults == {"keys": "internal error: no disk"}
        nursery.cancel_scope.cancel()

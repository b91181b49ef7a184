"""Many sockets, one wait: whose step is called when, and what becomes of one that fails."""

import queue
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from time import perf_counter
from types import SimpleNamespace
from typing import NoReturn

import pytest
import trio
import trio.lowlevel
import trio.testing

from codexd.lowlevel import io_wait, reactor
from codexd.lowlevel.reactor import watch

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.fixture(params=["hook", "task"], autouse=True)
def hooked(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the streams are served in trio's wait, or by a task where that cannot be."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "task":
            patch.setattr(io_wait, "serve", lambda _: False)
        yield request.param == "hook"


@pytest.fixture
def pairs() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    with ExitStack() as stack:

        def make() -> tuple[socket.socket, socket.socket]:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            return stack.enter_context(ours), stack.enter_context(theirs)

        yield make


async def test_a_step_for_each_arrival_until_it_has_enough(
    pairs: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    ours, theirs = pairs()
    seen: list[bytes] = []

    def step() -> bool:
        seen.append(ours.recv(100))
        return seen[-1] != b"end"

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, ours.fileno(), step)
            for piece in (b"one", b"two", b"end", b"late"):
                await trio.testing.wait_all_tasks_blocked(0.01)
                theirs.send(piece)
    assert seen == [b"one", b"two", b"end"]


async def test_what_fails_fails_alone(pairs: Callable[[], tuple[socket.socket, socket.socket]]) -> None:
    bad, good = pairs(), pairs()
    heard: list[bytes] = []

    def fails() -> bool:
        raise LookupError("bad")

    async def failing() -> None:
        with pytest.raises(LookupError, match="bad"):
            await watch(bad[0].fileno(), fails)

    def hears() -> bool:
        heard.append(good[0].recv(100))
        return len(heard) < 2

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failing)
            nursery.start_soon(watch, good[0].fileno(), hears)
            await trio.testing.wait_all_tasks_blocked(0.01)
            bad[1].send(b"x")
            good[1].send(b"1")
            await trio.testing.wait_all_tasks_blocked(0.01)
            good[1].send(b"2")
    assert heard == [b"1", b"2"]


async def test_a_step_that_closes_its_own_descriptor_harms_nobody(
    pairs: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    (ours, theirs), (others, feeding) = pairs(), pairs()
    heard: list[bytes] = []

    def closes() -> bool:
        ours.close()
        return False

    def hears() -> bool:
        heard.append(others.recv(100))
        return len(heard) < 2

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, others.fileno(), hears)
            nursery.start_soon(watch, ours.fileno(), closes)
            await trio.testing.wait_all_tasks_blocked(0.01)
            theirs.send(b"x")
            for word in (b"1", b"2"):
                feeding.send(word)
                await trio.testing.wait_all_tasks_blocked(0.01)
    assert heard == [b"1", b"2"]


async def test_a_step_may_take_what_trio_waits_for_and_wake_nobody(
    pairs: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    """The stream goes on: trio does not wait in the hook's place for what is not there any more."""
    (ours, theirs), (waited, feeding) = pairs(), pairs()
    calls, over = 0, trio.Event()

    def step() -> bool:
        nonlocal calls
        ours.recv(100)
        with suppress(BlockingIOError):
            waited.recv(100)
        calls += 1
        if calls == 5:
            over.set()
        theirs.send(b"x")
        return calls < 5

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, ours.fileno(), step)
            nursery.start_soon(trio.lowlevel.wait_readable, waited.fileno())
            await trio.testing.wait_all_tasks_blocked()
            feeding.send(b"x")
            theirs.send(b"x")
            await over.wait()
            nursery.cancel_scope.cancel()


async def test_who_leaves_is_called_no_more(pairs: Callable[[], tuple[socket.socket, socket.socket]]) -> None:
    ours, theirs = pairs()
    with trio.move_on_after(0.01) as scope:
        await watch(ours.fileno(), lambda: pytest.fail("it was left"))
    assert scope.cancelled_caught
    theirs.send(b"x")
    await trio.testing.wait_all_tasks_blocked(0.01)
    # And may come back, on the same descriptor.
    with trio.fail_after(10):
        await watch(ours.fileno(), lambda: ours.recv(1) != b"x")


@pytest.mark.parametrize("batch", [1, 2])
async def test_a_flood_leaves_room_for_others(
    pairs: Callable[[], tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """A full batch may have left out what trio waits for."""
    monkeypatch.setattr(reactor, "BATCH", batch)
    calls = 0

    def step() -> bool:
        nonlocal calls
        calls += 1
        return calls < 1000  # never reads: it is ready for ever

    turns = 0
    async with trio.open_nursery() as nursery:
        for _ in range(batch):
            ours, theirs = pairs()
            theirs.send(b"x")
            nursery.start_soon(watch, ours.fileno(), step)
        while calls < 1000:
            await trio.lowlevel.checkpoint()
            turns += 1
    assert turns > 1000 / batch / 2


async def test_steps_that_take_long_let_others_run_between_them(
    pairs: Callable[[], tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, order, over = [0.0], list[str](), trio.Event()
    monkeypatch.setattr(reactor, "perf_counter", lambda: clock[0])

    def step_of(ours: socket.socket) -> Callable[[], bool]:
        def step() -> bool:
            ours.recv(100)
            clock[0] += reactor.TURN * 0.6
            order.append("step")
            if order.count("step") == 40:
                over.set()
            return True

        return step

    async def bystander() -> None:
        while not over.is_set():
            await trio.lowlevel.checkpoint()
            order.append("other")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            streams = [pairs() for _ in range(40)]
            for ours, _ in streams:
                nursery.start_soon(watch, ours.fileno(), step_of(ours))
            await trio.testing.wait_all_tasks_blocked()
            for _, theirs in streams:
                theirs.send(b"x")
            nursery.start_soon(bystander)
            await over.wait()
            nursery.cancel_scope.cancel()
    runs = "".join("s" if each == "step" else "." for each in order).strip(".").split(".")
    assert max(map(len, runs)) <= 4  # two in each of two turns, whose order is random
    assert order.count("step") == 40  # none is left out


async def test_what_is_ready_when_a_turn_ends_is_next(
    pairs: Callable[[], tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams that are always ready take turns, however few fit into one; so does what trio waits for."""
    clock, calls, over = [0.0], Counter[int](), trio.Event()
    monkeypatch.setattr(reactor, "perf_counter", lambda: clock[0])
    mine, others = pairs()

    async def bystander() -> None:
        while True:
            for _ in range(10):
                others.send(b"x")
                await trio.lowlevel.wait_readable(mine.fileno())
                mine.recv(10)
            seen = calls.total()
            while calls.total() < seen + 50:
                await trio.lowlevel.checkpoint()
            # And nothing of trio's is ready for a while, but a step may find that it was.
            await stepped.park()

    def step_of(number: int) -> Callable[[], bool]:
        def step() -> bool:
            clock[0] += reactor.TURN * 0.4
            calls[number] += 1
            if calls.total() == 600:
                over.set()
            if calls.total() % 40 == 0:
                stepped.unpark()
            return True

        return step

    stepped = trio.lowlevel.ParkingLot()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bystander)
            for number in range(20):
                ours, theirs = pairs()
                theirs.send(b"x")
                nursery.start_soon(watch, ours.fileno(), step_of(number))
            await over.wait()
            nursery.cancel_scope.cancel()
    assert min(calls[number] for number in range(20)) >= 25


async def test_the_host_is_not_told_what_was_so_a_turn_ago(
    pairs: Callable[[], tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(reactor, "perf_counter", lambda: clock[0])

    def step() -> bool:
        clock[0] += reactor.TURN * 0.6
        return True

    made = reactor.Reactor()
    for _ in range(6):
        ours, theirs = pairs()
        theirs.send(b"x")
        made.add(ours.fileno(), reactor.Stream(step))
    ours, theirs = pairs()
    theirs.send(b"x")
    made.add_host(ours.fileno())
    assert made.serve(0) == (2, True, False)
    ours.recv(1)
    assert made.serve(0) == (2, True, False)
    assert made.serve(0) == (2, False, False)
    made.close()


async def test_a_silent_stream_delays_no_timer(pairs: Callable[[], tuple[socket.socket, socket.socket]]) -> None:
    """A wait that was over in the hook is not made once more by trio."""
    late = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, pairs()[0].fileno(), lambda: True)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            due = trio.current_time() + 0.05
            await trio.sleep_until(due)
            late.append(trio.current_time() - due)
        nursery.cancel_scope.cancel()
    assert min(late) < 0.04


async def test_a_step_that_wakes_a_task_ends_the_wait(
    pairs: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    ours, theirs = pairs()
    woken = trio.Event()

    def step() -> bool:
        ours.recv(100)
        woken.set()
        return True

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, ours.fileno(), step)
            await trio.testing.wait_all_tasks_blocked()
            theirs.send(b"x")
            await woken.wait()
            nursery.cancel_scope.cancel()


async def test_a_step_may_take_what_a_task_waits_for(
    pairs: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    """And wake the task itself: trio then finds nothing to read."""
    (ours, theirs), (waited, feeding) = pairs(), pairs()
    woken = trio.Event()

    def step() -> bool:
        ours.recv(100)
        with suppress(BlockingIOError):
            waited.recv(100)
        woken.set()
        return True

    with trio.fail_after(10):
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, ours.fileno(), step)
                nursery.start_soon(trio.lowlevel.wait_readable, waited.fileno())
                await trio.testing.wait_all_tasks_blocked()
                feeding.send(b"x")
                theirs.send(b"x")
                await woken.wait()
                nursery.cancel_scope.cancel()
            woken = trio.Event()


async def test_what_trio_waits_for_is_found_among_a_thousand_streams(
    pairs: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    calls, (mine, others) = 0, pairs()

    def step() -> bool:
        nonlocal calls
        calls += 1
        return True

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, HARD), HARD))
    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            ours, theirs = pairs()
            theirs.send(b"x")  # and is never read
            nursery.start_soon(watch, ours.fileno(), step)
        await trio.lowlevel.checkpoint()
        for _ in range(5):
            before = calls
            others.send(b"x")
            await trio.lowlevel.wait_readable(mine.fileno())
            mine.recv(10)
            assert calls - before <= 2 * reactor.BATCH
        nursery.cancel_scope.cancel()


async def test_a_thread_and_a_socket_of_trio_end_the_wait(
    pairs: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    ours, theirs = pairs()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, pairs()[0].fileno(), lambda: True)
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(lambda: theirs.send(b"x"))
            await trio.lowlevel.wait_readable(ours.fileno())
            nursery.cancel_scope.cancel()


async def test_what_is_served_is_no_idleness(
    pairs: Callable[[], tuple[socket.socket, socket.socket]], autojump_clock: trio.testing.MockClock
) -> None:
    """The autojump clock jumps when nothing happens any more, and not between two steps."""
    ours, theirs = pairs()
    begun, at = trio.current_time(), []

    def step() -> bool:
        ours.recv(1)
        at.append(trio.current_time())
        return len(at) < 50

    theirs.send(b"x" * 50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, ours.fileno(), step)
        await trio.sleep(5)
    assert at == [begun] * 50
    assert trio.current_time() == begun + 5
    with trio.move_on_after(7) as scope:
        await watch(pairs()[0].fileno(), step)
    assert scope.cancelled_caught
    assert trio.current_time() == begun + 12


@pytest.mark.parametrize("logged", [True, False])
async def test_a_wait_that_fails_ends_the_streams_that_are_open_and_nothing_else(
    pairs: Callable[[], tuple[socket.socket, socket.socket]],
    monkeypatch: pytest.MonkeyPatch,
    hooked: bool,
    logged: bool,
) -> None:
    """Also where the failure cannot be logged, for want of memory."""
    if not hooked:
        pytest.skip("a task that fails ends the daemon, which systemd starts again")

    def fails(*_: object, **__: object) -> NoReturn:
        raise MemoryError

    failed = list[int]()

    async def failing(fd: int) -> None:
        with pytest.raises(MemoryError):
            await watch(fd, lambda: True)
        failed.append(fd)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(failing, pairs()[0].fileno())
            await trio.testing.wait_all_tasks_blocked()
            with monkeypatch.context() as patch:
                patch.setattr(reactor.running(), "serve", fails)
                if not logged:
                    patch.setattr(io_wait, "log", SimpleNamespace(error=fails))
                while len(failed) < 3:
                    await trio.lowlevel.checkpoint()
    ours, theirs = pairs()
    theirs.send(b"x")
    with trio.fail_after(10):
        await watch(ours.fileno(), lambda: ours.recv(1) != b"x")


async def test_a_thousand_streams_flat_out_delay_timers_and_tasks_by_a_few_milliseconds(
    pairs: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    """Of several attempts the best: a machine that is busy has pauses of its own."""
    calls = 0

    def step() -> bool:
        nonlocal calls
        calls += 1
        until = perf_counter() + 20e-6  # about what an event takes
        while perf_counter() < until:
            pass
        return True

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, HARD), HARD))
    worst = []
    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            ours, theirs = pairs()
            theirs.send(b"x")  # and is never read
            nursery.start_soon(watch, ours.fileno(), step)
        await trio.lowlevel.checkpoint()
        for _ in range(10):
            late = []
            for _ in range(20):
                due = trio.current_time() + 0.002
                await trio.sleep_until(due)
                late.append(trio.current_time() - due)
                before = trio.current_time()
                await trio.lowlevel.checkpoint()
                late.append(trio.current_time() - before)
            worst.append(max(late))
            if worst[-1] < 3 * reactor.TURN:
                break
        nursery.cancel_scope.cancel()
    assert calls > 1000
    assert min(worst) < 3 * reactor.TURN


# --- where the hook cannot be


async def test_trios_inside_is_as_it_is_expected() -> None:
    """With the trio that is pinned, on Linux: otherwise streams would cost twice as much and nobody would know."""
    assert io_wait._inside() is not None


async def test_of_another_trio_nothing_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("trio._core._run.GLOBAL_RUN_CONTEXT", SimpleNamespace(runner=SimpleNamespace(is_guest=False)))
        assert io_wait._inside() is None
    with monkeypatch.context() as patch:
        patch.delattr("trio._core._run.GLOBAL_RUN_CONTEXT")
        assert io_wait._inside() is None


def test_in_guest_mode_there_is_no_hook() -> None:
    """The wait is in a thread there, and the streams are not."""
    jobs, found = queue.Queue[Callable[[], object]](), list[object]()

    async def main() -> None:
        found.append(io_wait._inside())
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.send(b"x")
            await watch(ours.fileno(), lambda: ours.recv(1) != b"x")

    trio.lowlevel.start_guest_run(
        main, run_sync_soon_threadsafe=jobs.put, done_callback=found.append, host_uses_signal_set_wakeup_fd=True
    )
    while len(found) < 2:
        jobs.get(timeout=10)()
    assert found[0] is None

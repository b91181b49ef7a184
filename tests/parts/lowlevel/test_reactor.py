"""Many sockets, one task: whose step is called when, and what becomes of one that fails."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import trio

from codexd.lowlevel import reactor
from codexd.lowlevel.reactor import watch


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


async def test_a_flood_leaves_room_for_others(
    pairs: Callable[[], tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor, "BATCH", 1)
    ours, theirs = pairs()
    theirs.send(b"x")
    calls = 0

    def step() -> bool:
        nonlocal calls
        calls += 1
        return calls < 1000  # never reads: it is ready for ever

    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, ours.fileno(), step)
        while calls < 1000:
            await trio.lowlevel.checkpoint()
            turns += 1
    assert turns > 500


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

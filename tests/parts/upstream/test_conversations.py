"""Which websocket a request gets: by the answer that it continues, by its key, or none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from codexd.protocol.codex.request import InputItem, Reasoning
from codexd.upstream import conversations
from codexd.upstream.call import Call
from codexd.upstream.conversations import MAX_AGE, SWEEP_INTERVAL, Conversations, Entry
from codexd.upstream.websocket import WebSocket
from support.calls import call, called, head, output, said, user


class Socket:
    """A websocket without a network. ``end`` is what the server does; ``ends_at_claim`` loses that race."""

    def __init__(self) -> None:
        self.opened_at = trio.current_time()
        self.closed = False
        self.watching: trio.CancelScope | None = None
        self.ended = trio.Event()
        self.watched = trio.Event()
        self.ends_at_claim = False

    def rest(self) -> None:
        assert self.watching is None
        self.watching, self.watched, self.ended = trio.CancelScope(), trio.Event(), trio.Event()

    async def watch(self) -> None:
        assert self.watching is not None
        try:
            with self.watching:
                await self.ended.wait()
                self.closed = True
        finally:
            self.watching = None
            self.watched.set()

    async def claim(self) -> bool:
        if self.watching is not None:
            self.watching.cancel()
            await self.watched.wait()
        self.closed = self.closed or self.ends_at_claim
        return not self.closed

    def close(self) -> None:
        self.closed = True
        if self.watching is not None:
            self.watching.cancel()


class Pool(Conversations):
    """Conversations over sockets without a network."""

    def opened(self, asked: Call, access: str = "t") -> Entry:
        entry = Entry(cast("WebSocket", Socket()), asked, access)
        self.add(entry, asked)
        return entry

    def answered(self, asked: Call, *answer: InputItem, access: str = "t", **options: Any) -> Entry:
        """A new connection that has answered this and is idle."""
        entry = self.opened(asked, access)
        self.release(entry, head(asked, *(answer or [said("done")]), **options))
        return entry


@asynccontextmanager
async def running(most: int = 10, idle_seconds: float = 1e9) -> AsyncIterator[Pool]:
    pool = Pool(most, idle_seconds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        await wait_all_tasks_blocked()
        yield pool
        nursery.cancel_scope.cancel()


def has_room(pool: Conversations) -> bool:
    with pool.room() as wait:
        return wait is not None


def socket_of(entry: Entry) -> Socket:
    return cast("Socket", entry.socket)


FIRST = call(user("a"))
NEXT = call(user("a"), said("done"), user("b"))


# --- heads


async def test_an_answer_is_continued_once(autojump_clock: MockClock) -> None:
    async with running() as pool:
        entry = pool.opened(FIRST)
        assert (pool.counts, entry.answering, entry.kept) == ((1, 0), True, False)
        assert await pool.claim(NEXT, "t") is None
        given = head(FIRST, said("done"))
        pool.release(entry, given)
        assert (pool.counts, entry.answering, entry.kept) == ((1, 1), False, True)
        assert repr(pool) == "<Conversations 1 websockets, 1 idle, 1 heads>"
        assert await pool.claim(NEXT, "t") == (entry, given)
        assert (pool.counts, entry.answering, entry.head) == ((1, 0), True, None)
        assert await pool.claim(NEXT, "t") is None, "a retry sends its whole input"
        pool.release(entry, head(NEXT, said("more"), name="resp_2"))
        last = call(user("a"), said("done"), user("b"), said("more"), user("c"))
        found = await pool.claim(last, "t")
        assert found is not None
        assert found[1] is not None
        assert found[1].response_id == "resp_2"
        assert repr(pool) == "<Conversations 1 websockets, 0 idle, 0 heads>"


@pytest.mark.parametrize(
    "other",
    [
        call(user("a"), said("edited"), user("b")),
        call(user("x"), said("done"), user("b")),
        call(user("a"), said("done"), user("b"), model="other"),
        call(user("a"), said("done"), user("b"), reasoning=Reasoning(effort="high")),
        call(user("a"), user("b")),
        call(user("a")),
        call(user("a"), said("done")),
    ],
)
async def test_what_continues_nothing_gets_the_connection_of_its_key(autojump_clock: MockClock, other: Call) -> None:
    async with running() as pool:
        entry = pool.answered(FIRST)
        assert await pool.claim(other, "t") == (entry, None)
        pool.release(entry, head(other, said("y")))
        assert await pool.claim(NEXT, "t") == (entry, None), "the head was gone with the claim"


@pytest.mark.parametrize(
    "foreign",
    [
        call(user("a"), said("done"), user("b"), caller="another"),
        call(user("x"), key="another"),
        call(user("a"), said("edited"), user("b"), key="another"),
    ],
)
async def test_another_callers_or_conversations_connection_is_not_taken(
    autojump_clock: MockClock, foreign: Call
) -> None:
    async with running() as pool:
        entry = pool.answered(FIRST)
        assert await pool.claim(foreign, "t") is None
        assert await pool.claim(NEXT, "t") == (entry, head(FIRST, said("done")))


async def test_an_answer_is_found_under_another_key_and_the_connection_has_that_then(
    autojump_clock: MockClock,
) -> None:
    async with running() as pool:
        entry = pool.answered(FIRST)
        found = await pool.claim(call(user("a"), said("done"), user("b"), key="new"), "t")
        assert found is not None
        assert (found[0], found[1] and found[1].key) == (entry, "k")
        pool.release(entry, head(NEXT, said("more")))
        assert await pool.claim(call(user("x")), "t") is None
        assert await pool.claim(call(user("x"), key="new"), "t") == (entry, None)


async def test_the_client_may_leave_out_what_its_api_does_not_carry(autojump_clock: MockClock) -> None:
    commentary: Any = {"type": "message", "role": "assistant", "phase": "commentary", "content": "Look:"}
    for lossless in (True, False):
        async with running() as pool:
            entry = pool.answered(FIRST, commentary, called())
            again = call(user("a"), called(), output(), lossless=lossless)
            found = await pool.claim(again, "t")
            assert found is not None
            assert (found[0], found[1] is None) == (entry, lossless)


async def test_of_two_equal_answers_the_later_is_continued(autojump_clock: MockClock) -> None:
    async with running() as pool:
        entries = [pool.opened(call(user("x"))), pool.opened(call(user("y")))]
        for number, entry in enumerate(entries):
            pool.release(entry, head(FIRST, said("done"), name=f"resp_{number}"))
        assert repr(pool) == "<Conversations 2 websockets, 2 idle, 1 heads>"
        found = await pool.claim(NEXT, "t")
        assert found is not None
        assert found == (entries[1], head(FIRST, said("done"), name="resp_1"))
        assert await pool.claim(NEXT, "t") == (entries[0], None)


async def test_a_miss_gets_the_connection_used_last(autojump_clock: MockClock) -> None:
    async with running() as pool:
        asked = [call(user(text)) for text in "xyz"]
        entries = [pool.opened(each) for each in asked]
        for number in (2, 0, 1):
            pool.release(entries[number], head(asked[number], said("done")))
        for expected in (entries[1], entries[0], entries[2]):
            assert await pool.claim(call(user("new")), "t") == (expected, None)
        assert await pool.claim(call(user("new")), "t") is None


# --- what is kept


async def test_the_same_request_a_second_time_ends_with_its_answer(autojump_clock: MockClock) -> None:
    """A client with ``n`` asks the same several times at once; one connection is worth keeping."""
    async with running() as pool:
        first, second, other = pool.opened(FIRST), pool.opened(FIRST), pool.opened(NEXT)
        assert [entry.once for entry in (first, second, other)] == [False, True, False]
        for entry in (second, first, other):
            pool.release(entry, head(FIRST, said("done")))
        assert [entry.socket.closed for entry in (first, second, other)] == [False, True, False]
        assert pool.counts == (2, 2)
        assert not pool.opened(FIRST).once, "nothing like it is being answered"


@pytest.mark.parametrize("why", ["no head", "closed", "nobody watches"])
async def test_what_cannot_be_continued_is_closed(autojump_clock: MockClock, why: str) -> None:
    async with running() as running_pool:
        pool = Pool(10, 100) if why == "nobody watches" else running_pool
        entry = pool.opened(FIRST)
        if why == "closed":
            socket_of(entry).closed = True
        pool.release(entry, None if why == "no head" else head(FIRST, said("done")))
        assert entry.socket.closed
        assert (pool.counts, await pool.claim(NEXT, "t")) == ((0, 0), None)
        pool.close(entry)
        assert pool.counts == (0, 0)


async def test_one_that_ends_while_idle_is_forgotten(autojump_clock: MockClock) -> None:
    async with running() as pool:
        entry = pool.answered(FIRST)
        await wait_all_tasks_blocked()
        socket_of(entry).ended.set()
        await wait_all_tasks_blocked()
        assert repr(pool) == "<Conversations 0 websockets, 0 idle, 0 heads>"


async def test_one_that_ends_as_it_is_claimed_is_passed_over(autojump_clock: MockClock) -> None:
    async with running() as pool:
        entry, other = pool.answered(FIRST), pool.answered(call(user("x")))
        socket_of(entry).ends_at_claim = True
        assert await pool.claim(NEXT, "t") == (other, None)
        assert pool.counts == (1, 0)
        socket_of(other).ends_at_claim = True
        pool.release(other, head(FIRST, said("done")))
        assert await pool.claim(NEXT, "t") is None
        assert pool.counts == (0, 0)


async def test_a_request_may_come_in_the_moment_of_the_release(autojump_clock: MockClock) -> None:
    async with running() as pool:
        entry = pool.answered(FIRST)
        found = await pool.claim(NEXT, "t")
        assert found is not None
        assert found[0] is entry
        await wait_all_tasks_blocked()
        assert socket_of(entry).watching is None, "nobody else reads now"


async def test_two_requests_never_get_the_same_connection(autojump_clock: MockClock) -> None:
    async with running() as pool:
        entry, other = pool.answered(call(user("x"))), pool.answered(call(user("y")))
        entry.used_at, other.used_at = 2.0, 1.0
        socket_of(entry).ends_at_claim = True
        found = list[tuple[Entry, Any] | None]()

        async def claim(number: int) -> None:
            found.append(await pool.claim(call(user(str(number))), "t"))

        async with trio.open_nursery() as nursery:
            await wait_all_tasks_blocked()
            for number in range(4):
                nursery.start_soon(claim, number)
        assert sorted(each is None for each in found) == [False, True, True, True]
        assert (other, None) in found


# --- how many, and for how long


async def test_idle_ones_used_long_ago_make_room(autojump_clock: MockClock) -> None:
    async with running(most=3) as pool:
        asked = [call(user(text), key=text) for text in "xyz"]
        entries = [pool.opened(each) for each in asked]
        for number in (1, 0, 2):
            pool.release(entries[number], head(asked[number], said("done")))
        assert has_room(pool)
        assert [entry.socket.closed for entry in entries] == [False, True, False]
        assert has_room(pool), "there is room"
        assert pool.counts == (2, 2)
        assert await pool.claim(call(user("n"), key="z"), "t") is not None
        pool.opened(call(user("o"), key="o"))
        assert has_room(pool)
        assert [entry.socket.closed for entry in entries] == [True, True, False]
        pool.opened(call(user("p"), key="p"))
        assert not has_room(pool), "nobody's answer is ended for another's"
        pool.configure(5, 100)
        assert has_room(pool)
        pool.configure(1, 100)
        assert not has_room(pool)
        assert pool.counts == (3, 0)


async def test_idle_ones_are_closed_in_time(autojump_clock: MockClock) -> None:
    async with running(idle_seconds=60) as pool:
        early, answering = pool.answered(FIRST), pool.opened(call(user("x")))
        await trio.sleep(40)
        late = pool.answered(call(user("y"), key="y"))
        await trio.sleep(20 + 2 * SWEEP_INTERVAL)
        assert [entry.socket.closed for entry in (early, answering, late)] == [True, False, False]
        await trio.sleep(60)
        assert [entry.socket.closed for entry in (early, answering, late)] == [True, False, True]
        pool.release(answering, head(call(user("x")), said("y")))
        await trio.sleep(60)
        assert not answering.socket.closed, "the time of its answer does not count"
        await trio.sleep(2 * SWEEP_INTERVAL)
        assert answering.socket.closed
        assert repr(pool) == "<Conversations 0 websockets, 0 idle, 0 heads>"


async def test_an_old_one_starts_no_answer(autojump_clock: MockClock) -> None:
    async with running() as pool:
        entry = pool.answered(FIRST)
        await trio.sleep(MAX_AGE - 1)
        found = await pool.claim(NEXT, "t")
        assert found is not None
        await trio.sleep(10)
        assert not entry.socket.closed, "an answer may end later"
        pool.release(entry, head(NEXT, said("more")))
        assert await pool.claim(call(user("c")), "t") is None
        assert entry.socket.closed


async def test_another_token_closes(autojump_clock: MockClock) -> None:
    async with running() as pool:
        old, new, busy = pool.answered(FIRST), pool.answered(call(user("x")), access="u"), pool.opened(call(user("y")))
        assert await pool.claim(NEXT, "u") == (new, None)
        assert [entry.socket.closed for entry in (old, new, busy)] == [True, False, False]
        pool.release(busy, head(call(user("y")), said("z")))
        assert await pool.claim(call(user("y"), said("z"), user("more")), "u") is None
        assert busy.socket.closed


# --- ends


async def test_the_end_closes_all(autojump_clock: MockClock) -> None:
    async with running() as pool:
        idle, fresh = pool.answered(FIRST), pool.opened(call(user("x")))
        answering = pool.opened(call(user("y")))
        await wait_all_tasks_blocked()
        pool.release(fresh, head(call(user("x")), said("z")))
    assert [entry.socket.closed for entry in (idle, fresh)] == [True, True]
    assert pool.counts == (1, 0)
    pool.release(answering, head(call(user("y")), said("z")))
    assert answering.socket.closed
    assert repr(pool) == "<Conversations 0 websockets, 0 idle, 0 heads>"


async def test_no_watch_outlives_its_connection(autojump_clock: MockClock) -> None:
    async with running(most=1) as pool:
        for text in "xyz":
            assert has_room(pool)
            pool.answered(call(user(text)))
            await wait_all_tasks_blocked()
            assert pool._nursery is not None
            assert len(pool._nursery.child_tasks) == 1


@pytest.mark.parametrize("by", ["its answer", "its key"])
async def test_a_claim_that_is_cancelled_leaks_nothing(autojump_clock: MockClock, by: str) -> None:
    async with running() as pool:
        entry = pool.answered(FIRST)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.claim(NEXT if by == "its answer" else call(user("x")), "t")
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert entry.socket.closed
        assert repr(pool) == "<Conversations 0 websockets, 0 idle, 0 heads>"
        assert pool._nursery is not None
        assert not pool._nursery.child_tasks


def test_an_answer_ends_before_the_backend_ends_its_connection() -> None:
    assert conversations.MAX_AGE + 600 <= 3600


async def test_of_many_handshakes_there_is_one_a_second(autojump_clock: MockClock) -> None:
    pool = Conversations(100, 600.0)

    def opens() -> float | None:
        with pool.room(patience=conversations.PATIENCE) as wait:
            if wait is not None:
                pool.add(Entry(cast("WebSocket", Socket()), call(user("x")), "t"), call(user("x")))
            return wait

    at_once = [opens() for _ in range(conversations.BURST)]
    assert at_once == [0.0] * conversations.BURST
    assert [opens() for _ in range(4)] == [1.0, 2.0, None, None]
    with pool.room() as wait:
        assert wait == 0.0, "where nothing else is left it does not wait"
    await trio.sleep(5)
    assert [opens() for _ in range(4)] == [0.0, 0.0, 1.0, 2.0]

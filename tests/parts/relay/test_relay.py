"""One stream to one client, with the autojump clock and fakes on both sides."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock

from codexd.config.model import Backend
from codexd.errors import ApiError
from codexd.protocol.chat.converter import ChatConverter
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.conversion import Conversion
from codexd.protocol.responses.stream import ResponsesStream
from codexd.relay.pacing import KEEPALIVE_INTERVAL, MAX_RETRIES
from codexd.relay.relay import Header, Relay
from support.upstream import ADDED, COMPLETED, CREATED, Json, done, failed, text

KEEPALIVE = b": keepalive\n\n"
WHOLE: list["Json | float"] = [CREATED, ADDED, text("Hel"), text("lo"), done("Hello"), COMPLETED]


class Fake:
    """An upstream response: events and pauses in seconds. Counts how many are open."""

    headers: dict[str, str] = {"x-codex-plan-type": "plus"}  # noqa: RUF012

    def __init__(self, *plays: "list[Json | float]") -> None:
        self.plays = list(plays)
        self.opened = self.closed = 0
        self.fault: ApiError | None = None
        self.broken_end = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Fake"]:
        self.opened += 1
        try:
            await trio.lowlevel.checkpoint()
            if self.fault is not None:
                raise self.fault
            self.play = Play(self.plays[min(self.opened, len(self.plays)) - 1], self.broken_end)
            yield self
        except ConnectionError as error:
            raise ApiError(502, "broken", retryable=True) from error
        finally:
            self.closed += 1

    pending = 0

    async def push(self, step: Callable[[Sequence[bytes]], bool]) -> bool:
        async for event in self.play:
            if not step([event]):
                return False
        return True


class Play:
    """The steps of one answer. A class: an async generator that is left half-way is another matter than this test's."""

    def __init__(self, steps: "list[Json | float]", broken_end: bool) -> None:
        self._steps = iter(steps)
        self._broken_end = broken_end

    def __aiter__(self) -> "Play":
        return self

    async def __anext__(self) -> bytes:
        for step in self._steps:
            if isinstance(step, int | float):
                await trio.sleep(step)
            else:
                await trio.lowlevel.checkpoint()
                return msgspec.json.encode(step)
        if self._broken_end:
            raise ConnectionError
        raise StopAsyncIteration


class Client:
    """What a client gets, and when. ``patience`` is what each write takes."""

    def __init__(self, write_seconds: float = 0) -> None:
        self.started_at: float | None = None
        self.writes: list[tuple[float, bytes]] = []
        self.ended = False
        self.busy = False
        self._seconds = write_seconds

    async def start(self, headers: Sequence[Header]) -> None:
        assert self.started_at is None
        assert headers == [("x-codex-plan-type", "plus")] or not headers
        self.started_at = trio.current_time()
        await trio.lowlevel.checkpoint()

    def write_now(self, data: bytes) -> bytes:
        return data

    async def write_rest(self, data: bytes) -> None:
        assert not self.busy, "two writes at once"
        assert not self.ended
        self.busy = True
        try:
            await trio.sleep(self._seconds)
        finally:
            self.busy = False
        self.writes.append((trio.current_time(), data))

    async def end(self) -> None:
        assert not self.busy
        self.ended = True
        await trio.lowlevel.checkpoint()

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.writes)


def chat(*, streamed: bool = True) -> Conversion:
    return Conversion(ChatConverter(ChatStream(id="i", model="m", created=1, include_usage=False), streamed=streamed))


def responses() -> Conversion:
    return Conversion(ResponsesStream({}))


def relay(
    fake: Fake,
    convert: Callable[[], Conversion] = chat,
    *,
    forget: Callable[[], None] = lambda: None,
    **deadlines: float,
) -> Relay:
    return Relay(fake.open, convert, lambda source: list(source.headers.items()), Backend(**deadlines), forget)


async def test_an_answer_goes_through_with_one_write_a_read(autojump_clock: MockClock) -> None:
    fake, client = Fake(WHOLE), Client()
    await relay(fake).stream(client)
    assert client.body.endswith(b"data: [DONE]\n\n")
    assert client.ended
    assert len(client.writes) == 4  # the beginning, two deltas, the end
    assert (fake.opened, fake.closed) == (1, 1)


@pytest.mark.parametrize("convert", [chat, responses])
async def test_silence_is_filled_every_fifteen_seconds(
    autojump_clock: MockClock, convert: Callable[[], Conversion]
) -> None:
    fake, client = Fake([CREATED, ADDED, text("Hel"), 50.0, text("lo"), done("Hello"), COMPLETED]), Client()
    await relay(fake, convert).stream(client)
    beats = [moment for moment, data in client.writes if b"keepalive" in data]
    assert beats == pytest.approx([15, 30, 45])
    assert client.body.endswith(b"data: [DONE]\n\n")


async def test_the_status_is_held_back_for_a_beginning_but_not_longer_than_a_beat(autojump_clock: MockClock) -> None:
    client = Client()
    await relay(Fake([CREATED, 5.0, *WHOLE])).stream(client)
    assert client.started_at == pytest.approx(5)
    client = Client()
    begun = trio.current_time()
    await relay(Fake([CREATED, 20.0, *WHOLE]), responses).stream(client)
    assert client.started_at == pytest.approx(begun + KEEPALIVE_INTERVAL)
    assert client.body.startswith(b"event: response.created\n")
    assert client.body.split(b"\n\n")[1].startswith(b"event: keepalive\n")


async def test_a_failure_after_an_early_start_is_a_frame_and_is_not_tried_again(autojump_clock: MockClock) -> None:
    fake, client = Fake([20.0, failed("server_error")], WHOLE), Client()
    await relay(fake).stream(client)
    assert client.writes[0][1] == KEEPALIVE
    assert b'"error":' in client.body
    assert b"[DONE]" not in client.body
    assert client.ended
    assert fake.opened == 1


async def test_a_retry_before_the_first_byte_has_a_fresh_conversion(autojump_clock: MockClock) -> None:
    fake, client = Fake([CREATED, failed("server_is_overloaded")], WHOLE), Client()
    await relay(fake, responses).stream(client)
    assert client.body.count(b"event: response.created\n") == 1
    assert fake.opened == fake.closed == 2
    stubborn = Fake([CREATED])
    with pytest.raises(ApiError) as caught:
        await relay(stubborn).stream(Client())
    assert (caught.value.status, stubborn.opened) == (502, 1 + MAX_RETRIES)


async def test_a_beat_in_the_pause_before_the_retry_leaves_nothing_to_try(autojump_clock: MockClock) -> None:
    """The keep-alive has begun the answer, so its failure is told in the stream."""
    fake, client = Fake([CREATED, KEEPALIVE_INTERVAL - 0.01, failed("server_is_overloaded")], WHOLE), Client()
    await relay(fake).stream(client)
    assert client.started_at == pytest.approx(KEEPALIVE_INTERVAL)
    assert (client.body.count(b'"error":'), client.ended, fake.opened) == (1, True, 1)


async def test_the_request_is_forgotten_when_nothing_can_be_tried_again(autojump_clock: MockClock) -> None:
    forgotten: list[float] = []

    class Noting(Client):
        async def write_rest(self, data: bytes) -> None:
            forgotten[0:0] = [] if forgotten else pytest.fail("the answer has begun, and the request is kept")
            await super().write_rest(data)

    fake = Fake([CREATED, 1.0, failed("server_is_overloaded")], WHOLE)
    made = relay(fake, forget=lambda: forgotten.append(trio.current_time()))
    await made.stream(Noting())
    assert (len(forgotten), fake.opened) == (1, 2)


async def test_the_quick_way_gives_back_what_it_cannot_do(autojump_clock: MockClock) -> None:
    """A source that pushes and a client that takes pieces at once: what is left is written before anything else."""
    written: list[bytes] = []

    class Taking(Client):
        """Takes four bytes at once, and the rest when somebody waits for it."""

        def write_now(self, data: bytes) -> bytes:
            written.append(data[:4])
            return data[4:]

        async def write_rest(self, rest: memoryview | bytes) -> None:
            written.append(bytes(rest))
            await super().write_rest(bytes(rest))

    plain, quick = Client(), Taking()
    await relay(Fake(WHOLE)).stream(plain)
    await relay(Fake(WHOLE)).stream(quick)
    assert b"".join(written) == plain.body


async def test_the_first_of_the_answer_is_noted_behind_a_keep_alive_too(autojump_clock: MockClock) -> None:
    class All(Client):
        def write_now(self, data: bytes) -> bytes:
            self.writes.append((trio.current_time(), data))
            return b""

    client = All()
    made = relay(Fake([CREATED, 16.0, CREATED, 4.0, *WHOLE]))
    await made.stream(client)
    assert client.writes[0] == (15, KEEPALIVE)
    assert made.first_at == 20
    assert made.events == 2 + len(WHOLE)


async def test_what_is_not_retryable_is_raised_before_the_first_byte(autojump_clock: MockClock) -> None:
    fake = Fake(WHOLE)
    fake.fault = ApiError(400, "no")
    client = Client()
    with pytest.raises(ApiError):
        await relay(fake).stream(client)
    assert (fake.opened, client.started_at) == (1, None)


async def test_deadlines_for_the_first_event_and_between_events(autojump_clock: MockClock) -> None:
    with pytest.raises(ApiError) as caught:
        await relay(Fake([100.0, *WHOLE]), lambda: chat(streamed=False), first_event_timeout=7).collect()
    assert (caught.value.status, trio.current_time()) == (504, pytest.approx(7))
    client = Client()
    fake = Fake([CREATED, ADDED, text("Hel"), 100.0, *WHOLE])
    await relay(fake, idle_timeout=20).stream(client)
    assert b"backend.idle_timeout" in client.body
    assert fake.closed == 1
    # There is no deadline on the whole: an answer may take as long as it keeps coming.
    long = Fake([CREATED, ADDED, *([19.0, text("x")] * 500), done("x" * 500), COMPLETED])
    client = Client()
    await relay(long, idle_timeout=20).stream(client)
    assert client.body.endswith(b"data: [DONE]\n\n")


async def test_a_slow_client_stalls_nobody_but_itself(autojump_clock: MockClock) -> None:
    client = Client(write_seconds=40)
    await relay(Fake(WHOLE), idle_timeout=20).stream(client)
    assert client.body.endswith(b"data: [DONE]\n\n")
    assert KEEPALIVE not in client.body


async def test_the_upstreams_silence_is_counted_from_the_end_of_a_write(autojump_clock: MockClock) -> None:
    client = Client(write_seconds=40)
    steps = [CREATED, ADDED, *([15.0, text("x")] * 10), done("x" * 10), COMPLETED]
    await relay(Fake(steps), idle_timeout=20).stream(client)
    assert client.body.endswith(b"data: [DONE]\n\n")


async def test_a_beat_and_an_event_at_once_do_not_mix(autojump_clock: MockClock) -> None:
    client = Client(write_seconds=1)
    gaps = [step for _ in range(20) for step in (KEEPALIVE_INTERVAL + 0.5, text("x"))]
    await relay(Fake([CREATED, ADDED, *gaps, done("x" * 20), COMPLETED])).stream(client)
    assert client.body.count(b'"content":"x"') == 20


async def test_collecting_gives_one_document(autojump_clock: MockClock) -> None:
    running = relay(Fake(WHOLE), lambda: chat(streamed=False))
    document, headers = await running.collect()
    assert msgspec.json.decode(document)["choices"][0]["message"]["content"] == "Hello"
    assert headers == [("x-codex-plan-type", "plus")]
    assert running.usage is not None
    assert running.usage.input_tokens == 7


async def test_an_upstream_that_does_not_end_its_stream_is_not_waited_for(autojump_clock: MockClock) -> None:
    client = Client()
    await relay(Fake([*WHOLE, 1000.0])).stream(client)
    assert client.ended
    assert trio.current_time() < 2


@pytest.mark.parametrize("step", range(40))
async def test_a_client_that_leaves_at_any_await_closes_the_upstream(autojump_clock: MockClock, step: int) -> None:
    """Cancel after every number of scheduler passes that an answer takes."""
    fake, client = Fake(WHOLE), Client(write_seconds=0)
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            for _ in range(step):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        nursery.start_soon(leave)
        await relay(fake).stream(client)
        nursery.cancel_scope.cancel()
    assert fake.opened == fake.closed


async def test_a_bug_is_loud(autojump_clock: MockClock) -> None:
    class Broken(Client):
        async def write_rest(self, data: bytes) -> None:
            raise ZeroDivisionError

    fake = Fake(WHOLE)
    with pytest.raises(ZeroDivisionError):
        await relay(fake).stream(Broken())
    assert fake.closed == 1


async def test_a_bug_in_a_keep_alive_is_loud_too(autojump_clock: MockClock) -> None:
    class Broken(Client):
        async def write_rest(self, data: bytes) -> None:
            if data == KEEPALIVE:
                raise ZeroDivisionError

    fake = Fake([CREATED, ADDED, text("Hel"), 100.0, COMPLETED])
    with pytest.raises(ZeroDivisionError):
        await relay(fake).stream(Broken())
    assert (trio.current_time(), fake.closed) == (pytest.approx(KEEPALIVE_INTERVAL), 1)


@pytest.mark.parametrize("moment", [KEEPALIVE_INTERVAL, KEEPALIVE_INTERVAL + 2])
async def test_who_leaves_gets_no_end_of_a_keep_alive(autojump_clock: MockClock, moment: float) -> None:
    fake, client = Fake([CREATED, 100.0, COMPLETED]), Client(write_seconds=5)
    with trio.move_on_after(moment):
        await relay(fake).stream(client)
    assert trio.current_time() == pytest.approx(moment)
    assert fake.closed == 1
    await trio.sleep(100)
    assert client.writes == []


async def test_what_ends_an_answer_waits_for_the_keep_alive_that_it_cuts(autojump_clock: MockClock) -> None:
    fake, client = Fake([CREATED, 100.0, COMPLETED]), Client(write_seconds=5)
    made = relay(fake)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.stream, client)
        await trio.sleep(KEEPALIVE_INTERVAL + 2)
        made.abort(ApiError(503, "enough"))
    assert [b"enough" in data for _, data in client.writes] == [True]
    assert client.ended


async def test_an_answer_that_has_failed_can_be_ended_while_a_keep_alive_waits_for_its_client(
    autojump_clock: MockClock,
) -> None:
    fake, client = Fake([CREATED, KEEPALIVE_INTERVAL + 1, failed("server_error")]), Client(write_seconds=50)
    made = relay(fake)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.stream, client)
        await trio.sleep(KEEPALIVE_INTERVAL + 5)
        assert (fake.closed, made.running) == (1, True)
        made.abort(ApiError(503, "enough"))
    assert [moment for moment, _ in client.writes] == [pytest.approx(KEEPALIVE_INTERVAL + 55)]


async def test_what_ends_an_answer_as_it_begins_still_has_a_status_of_its_own(autojump_clock: MockClock) -> None:
    class Unlucky(Client):
        async def start(self, headers: Sequence[Header]) -> None:
            made.abort(ApiError(503, "enough"))
            await trio.lowlevel.checkpoint()

    client = Unlucky()
    made = relay(Fake(WHOLE))
    with pytest.raises(ApiError, match="enough"):
        await made.stream(client)
    assert (client.writes, client.ended) == ([], False)


async def test_a_connection_that_breaks_when_all_is_said_changes_nothing(autojump_clock: MockClock) -> None:
    fake, client = Fake(WHOLE), Client()
    fake.broken_end = True
    await relay(fake).stream(client)
    assert client.body.endswith(b"data: [DONE]\n\n")
    document, _ = await relay(fake, lambda: chat(streamed=False)).collect()
    assert b"Hello" in document
    assert fake.opened == 2


async def test_the_retry_has_its_own_deadline(autojump_clock: MockClock) -> None:
    fake, client = Fake([1.5], [1.0, *WHOLE]), Client()
    await relay(fake, first_event_timeout=2, idle_timeout=2).stream(client)
    assert client.body.endswith(b"data: [DONE]\n\n")


async def test_an_answer_can_be_ended_with_a_word(autojump_clock: MockClock) -> None:
    client = Client()
    running = relay(Fake([CREATED, ADDED, text("Hel"), 100.0, *WHOLE]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.stream, client)
        await trio.sleep(5)
        running.abort(ApiError(503, "stopping"))
    assert b'"message":"stopping"' in client.body
    assert client.ended
    running.abort(ApiError(503, "too late"))
    whole = relay(Fake(WHOLE))
    whole.abort(ApiError(503, "too early"))
    await whole.stream(client := Client())
    assert client.body.endswith(b"data: [DONE]\n\n")


async def test_a_failure_inside_a_200_tells_the_limits(autojump_clock: MockClock) -> None:
    with pytest.raises(ApiError) as caught:
        await relay(Fake([failed("rate_limit_exceeded")])).stream(Client())
    assert caught.value.headers == [("x-codex-plan-type", "plus")]


async def test_a_connection_that_breaks_when_all_is_said_changes_nothing_after_a_retry_either(
    autojump_clock: MockClock,
) -> None:
    fake, client = Fake([failed("server_error")], WHOLE), Client()
    fake.broken_end = True
    await relay(fake).stream(client)
    assert client.body.endswith(b"data: [DONE]\n\n")
    assert fake.opened == 2

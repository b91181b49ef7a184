"""One answer on one websocket: whose events they are, what ends it, and what the next request can continue."""

from collections.abc import Sequence
from typing import Any, cast

import httpx
import msgspec
import pytest

from codexd.errors import ApiError
from codexd.protocol.codex.request import InputItem
from codexd.upstream.call import Call
from codexd.upstream.conversations import Entry, Head
from codexd.upstream.frames import Closed
from codexd.upstream.identity import LITE_METADATA, TURN_STATE
from codexd.upstream.websocket import WebSocket
from codexd.upstream.websocket_lane import WebsocketStream, message
from support.calls import call, called, head, output, raw, said, user

Json = dict[str, Any]

NOW = 1_795_000_000.0


def event(kind: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"type": f"response.{kind}", **fields})


def of(kind: str, name: str | None = "resp_1", **fields: Any) -> bytes:
    """An event with a response."""
    return event(kind, response=({} if name is None else {"id": name}) | fields)


CREATED, COMPLETED = of("created"), of("completed")
TEXT = b'{"type":"response.output_text.delta","delta":"x"}'


def item(value: InputItem | Json) -> bytes:
    return event("output_item.done", item=raw(value))


class Socket:
    """A websocket that brings these reads, and then its end."""

    opened_at = 0.0

    def __init__(self, reads: Sequence[Sequence[bytes]], end: Exception) -> None:
        self.reads = list(reads)
        self.end = end

    async def push(self, step: Any) -> None:
        while self.reads:
            if not step(self.reads.pop(0)):
                return
        raise self.end


class Answer(WebsocketStream):
    """An answer of these reads. ``seen`` is what the relay got, ``limits`` the events about limits."""

    def __init__(
        self,
        *reads: Sequence[bytes],
        asked: Call | None = None,
        after: Head | None = None,
        end: Exception | None = None,
    ) -> None:
        asked = asked or call(user("a"))
        self.socket = Socket(reads, end or httpx.RemoteProtocolError("the connection ended"))
        self.seen = list[bytes]()
        self.limits = list[bytes]()
        self.known = {"x-codex-plan-type": "plus"}
        entry = Entry(cast("WebSocket", self.socket), asked, "t")
        super().__init__(entry, asked, after, lambda: self.known, self.limits.append, lambda: NOW)

    async def read(self) -> bool:
        """Reads to the end; returns whether there was one."""

        def step(events: Sequence[bytes]) -> bool:
            self.seen.extend(events)
            return True

        while not (ended := await self.push(step)):
            pass  # the events before a failure come first
        return ended

    async def failure(self) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.read()
        assert self.head() is None
        return caught.value


# --- the usual answer


async def test_a_complete_answer_can_be_continued() -> None:
    events = [CREATED, of("in_progress"), TEXT, item(said("done")), COMPLETED]
    asked = call(user("a"))
    for reads in ([events], [[each] for each in events], [events[:2], events[2:]]):
        answer = Answer(*reads, asked=asked)
        assert answer.head() is None
        assert await answer.read()
        assert answer.seen == events
        assert answer.head() == head(asked, said("done"))
        assert await answer.read(), "it stays at its end"
        assert answer.headers == {"x-codex-plan-type": "plus"}


async def test_reading_may_stop_and_go_on() -> None:
    answer = Answer([CREATED], [TEXT, TEXT], [COMPLETED])
    assert not await answer.push(lambda _: False)
    assert not await answer.push(lambda events: len(events) < 2)
    assert answer.socket.reads == [[COMPLETED]]
    assert await answer.push(lambda _: False)
    assert answer.head() is not None


async def test_what_nobody_can_read_is_passed_on() -> None:
    odd = [b"{}", b"no json", b"\xff", b"[]", b'{"type":"new"}', b'{"type":1}', event("new.kind")]
    answer = Answer([b"[]", CREATED, *odd, COMPLETED])
    assert await answer.read()
    assert answer.seen == [b"[]", CREATED, *odd, COMPLETED]
    assert answer.head() is not None


@pytest.mark.parametrize("odd", [{}, {"item": None}, {"item": "x"}, {"item": []}])
async def test_an_answer_with_an_odd_item_is_complete_and_not_continued(odd: Json) -> None:
    answer = Answer([CREATED, event("output_item.done", **odd), item(said("x")), COMPLETED])
    assert await answer.read()
    assert answer.head() is None


# --- whose events


@pytest.mark.parametrize(
    "events",
    [
        [CREATED, of("completed", "resp_2")],
        [CREATED, of("in_progress", "resp_2")],
        [CREATED, of("incomplete", "resp_2")],
        [CREATED, CREATED],
        [CREATED, of("created", "resp_2")],
        [COMPLETED],
        [of("in_progress")],
        [item(said("late"))],
        [TEXT],
        [TEXT, CREATED, COMPLETED],
        [event("function_call_arguments.delta", delta="x")],
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_events_of_another_answer_are_a_failure(events: list[bytes], together: bool) -> None:
    answer = Answer(*([events] if together else [[each] for each in events]))
    failure = await answer.failure()
    assert (failure.status, failure.error.code, failure.retryable) == (502, "upstream_stream_ended", True)
    assert "mixed up" in failure.error.message
    assert answer.seen == events[: len(answer.seen)] != events


async def test_a_last_event_may_have_no_id() -> None:
    answer = Answer([CREATED, of("completed", None)])
    assert await answer.read()
    found = answer.head()
    assert found is not None
    assert found.response_id == "resp_1"


async def test_an_answer_with_an_empty_id_is_not_continued() -> None:
    answer = Answer([of("created", ""), of("completed", "")])
    assert await answer.read()
    assert answer.head() is None


# --- ends


@pytest.mark.parametrize("kind", ["incomplete", "failed", "cancelled"])
async def test_an_answer_that_is_not_complete_is_not_continued(kind: str) -> None:
    answer = Answer([CREATED, item(said("x"))], [of(kind), TEXT])
    assert await answer.read()
    assert answer.seen[-1] == of(kind), "nothing behind the end is passed on"
    assert answer.head() is None


async def test_a_failure_may_come_before_the_answer() -> None:
    answer = Answer([of("failed", None, error={"code": "server_error", "message": "x"})])
    assert await answer.read()
    assert answer.head() is None


@pytest.mark.parametrize("behind", [TEXT, b"{}", b"no json", COMPLETED])
async def test_what_stands_behind_the_end_is_not_read_and_forbids_to_continue(behind: bytes) -> None:
    answer = Answer([CREATED], [COMPLETED, behind])
    assert await answer.read()
    assert answer.seen == [CREATED, COMPLETED]
    assert answer.head() is None


@pytest.mark.parametrize(
    "end", [httpx.ReadError("x"), httpx.RemoteProtocolError("x"), Closed(1011, "x"), Closed(1000, "")]
)
@pytest.mark.parametrize("reads", [[], [[CREATED]], [[CREATED, TEXT, item(said("x"))]]])
async def test_the_end_of_the_connection_is_a_cut(reads: list[list[bytes]], end: Exception) -> None:
    answer = Answer(*reads, end=end)
    failure = await answer.failure()
    assert (failure.status, failure.error.code, failure.retryable) == (502, "upstream_stream_ended", True)
    assert answer.seen == [each for read in reads for each in read]


# --- error frames


def error(status: int | None = None, *, key: str = "status", **fields: Any) -> bytes:
    given = {} if status is None else {key: status}
    headers = fields.pop("headers", None)
    return msgspec.json.encode({"type": "error", **given, "error": fields, "headers": headers})


@pytest.mark.parametrize("key", ["status", "status_code"])
@pytest.mark.parametrize("began", [True, False])
async def test_an_error_with_a_status_is_what_http_would_have_answered(key: str, began: bool) -> None:
    frame = error(429, key=key, message="Slow down.", code="rate_limit_exceeded", headers={"Retry-After": 7, "x": None})
    answer = Answer([CREATED, frame] if began else [frame])
    failure = await answer.failure()
    assert (failure.status, failure.error.code, failure.retry_after) == (429, "rate_limit_exceeded", 7)
    assert failure.error.message == "Slow down."
    assert not failure.retryable


@pytest.mark.parametrize(
    ("frame", "status", "code", "retryable"),
    [
        (error(500, message="x"), 502, "upstream_error", True),
        (error(503, message="x"), 503, "upstream_error", True),
        (error(503, code="slow_down", message="x"), 503, "slow_down", True),
        (error(503, code="server_is_overloaded", message="x"), 503, "server_is_overloaded", False),
        (error(401, message="x"), 401, "upstream_unauthorized", True),
        (error(400, code="bad", message="x"), 400, "bad", False),
        (error(429, type="usage_limit_reached", message="x", resets_at=NOW + 60), 429, "usage_limit_reached", False),
    ],
)
async def test_which_errors_are_final(frame: bytes, status: int, code: str, retryable: bool) -> None:
    failure = await Answer([frame]).failure()
    assert (failure.status, failure.error.code, failure.retryable) == (status, code, retryable)


async def test_the_time_of_a_limits_end_is_counted_from_now() -> None:
    failure = await Answer([error(429, type="usage_limit_reached", resets_at=NOW + 60)]).failure()
    assert failure.retry_after == 60


async def test_an_error_without_a_status_is_an_event_like_others() -> None:
    frame = error(code="server_error", message="x")
    answer = Answer([CREATED, frame, TEXT])
    assert await answer.read()
    assert answer.seen == [CREATED, frame]
    assert answer.head() is None


LOST: list[Json] = [
    {"code": "previous_response_not_found", "message": "Previous response with id 'resp_0' not found."},
    {"code": "websocket_connection_limit_reached"},
    {"message": "Invalid previous_response_id."},
    {"code": 400, "message": "Unsupported parameter: previous_response_id"},
]


@pytest.mark.parametrize("said_error", LOST)
@pytest.mark.parametrize("way", ["status", "no status", "failed"])
async def test_a_lost_conversation_is_one_that_may_be_sent_whole(said_error: Json, way: str) -> None:
    frames = {
        "status": error(400, **said_error),
        "no status": error(**said_error),
        "failed": of("failed", error=said_error),
    }
    failure = await Answer([CREATED, frames[way]]).failure()
    assert (failure.status, failure.error.code, failure.retryable) == (502, "upstream_stream_ended", True)


# --- limits and turn state


async def test_limits_are_told_at_once() -> None:
    frame = b'{"type":"codex.rate_limits","plan_type":"plus"}'
    answer = Answer([frame, CREATED, frame, COMPLETED])
    assert await answer.read()
    assert answer.limits == [frame, frame]
    assert answer.seen == [frame, CREATED, frame, COMPLETED]
    assert answer.head() is not None


def state(value: Any, name: str = TURN_STATE) -> bytes:
    return event("metadata", headers={name: value})


BEFORE = head(call(user("a")), called())


@pytest.mark.parametrize(
    ("told", "events", "kept"),
    [
        (None, [], None),
        (None, [state("new")], "new"),
        (None, [state("new"), state("second")], "new"),
        (None, [state(1), state(None), state("x", "other"), event("metadata"), state("new")], "new"),
        ("kept", [], "kept"),
        ("kept", [state("new")], "kept"),
    ],
)
async def test_the_first_turn_state_of_a_turn_stays(told: str | None, events: list[bytes], kept: str | None) -> None:
    asked = call(user("a"), called(), output())
    asked.turn_state = told
    answer = Answer([*events, CREATED, COMPLETED], asked=asked, after=BEFORE)
    assert await answer.read()
    assert answer.turn_state == kept


# --- what is sent


def sent(asked: Call, after: Head | None = None) -> Json:
    decoded: Json = msgspec.json.decode(message(asked, after))
    return decoded


async def test_the_first_message_has_everything() -> None:
    asked = call(user("a"), called(), output(), key="k", instructions="I", service_tier="priority")
    found = sent(asked)
    assert list(found) == [
        "type", "model", "instructions", "stream", "service_tier", "input", "tool_choice", "parallel_tool_calls",
        "reasoning", "store", "include", "prompt_cache_key", "text", "client_metadata",
    ]  # fmt: skip
    over_http = msgspec.json.decode(asked.body)
    assert {key: found[key] for key in over_http} == over_http
    assert found["type"] == "response.create"
    assert found["client_metadata"] == {"session_id": "k", "thread_id": "k", "x-codex-window-id": "k:0"}


async def test_a_later_message_has_all_fields_and_of_the_input_what_is_new() -> None:
    asked = call(user("a"), said("done"), user("b"), user("c"), key="own", instructions="I")
    after = head(call(user("a"), key="first", instructions="I"), said("done"), name="resp_7")
    found = sent(asked, after)
    assert (found["previous_response_id"], found["prompt_cache_key"]) == ("resp_7", "first")
    assert [part["content"][0]["text"] for part in found["input"]] == ["b", "c"]
    whole = sent(asked)
    assert {key for key in found if found[key] != whole.get(key)} == {
        "previous_response_id", "input", "prompt_cache_key",
    }  # fmt: skip
    assert list(found).index("previous_response_id") == list(found).index("input") - 1


async def test_the_key_of_a_conversation_stays() -> None:
    answer = Answer([CREATED, COMPLETED], asked=call(user("x"), key="own"), after=head(call(user("a"), key="first")))
    assert await answer.read()
    found = answer.head()
    assert found is not None
    assert found.key == "first"


async def test_the_clients_metadata_is_kept() -> None:
    own = {"session_id": "mine", "turn": "7", "nested": {"a": [1]}}
    asked = call(user("a"), called(), output(), lite=True, client_metadata=msgspec.Raw(msgspec.json.encode(own)))
    asked.turn_state = "kept"
    assert sent(asked, BEFORE)["client_metadata"] == own | {LITE_METADATA: "true", TURN_STATE: "kept"}
    assert sent(call(user("a"), lite=True))["client_metadata"][LITE_METADATA] == "true"


@pytest.mark.parametrize("odd", ['"text"', "[1]", "7", "[[1,2]]"])
async def test_metadata_in_an_odd_shape_is_the_backends_to_refuse(odd: str) -> None:
    asked = call(user("a"), lite=True, client_metadata=msgspec.Raw(odd.encode()))
    assert sent(asked)["client_metadata"] == msgspec.json.decode(odd)

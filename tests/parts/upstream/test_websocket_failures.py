"""What the websocket lane makes of an answer's events, however they are spread over reads."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from codexd.errors import ApiError
from codexd.telemetry.trace import Timings
from codexd.upstream.frames import Closed
from codexd.upstream.websocket_lane import WebsocketStream
from support.upstream import ADDED, COMPLETED, CREATED, Json, done, failed, text

OTHER = COMPLETED | {"response": COMPLETED["response"] | {"id": "resp_other"}}
ENDINGS: dict[str, list[Json]] = {
    "complete": [COMPLETED],
    "more": [COMPLETED, text("stray")],
    "cut": [],
    "refused": [{"type": "error", "status": 500, "error": {"message": "oops"}}],
    "lost": [{"type": "error", "status": 400, "error": {"code": "previous_response_not_found"}}],
    "foreign": [OTHER],
    "failed": [failed("server_error")],
    "chain lost": [failed("previous_response_not_found")],
}


class Socket:
    """Gives these reads, and then the end."""

    def __init__(self, reads: list[list[bytes]]) -> None:
        self.reads = reads

    async def push(self, step: Callable[[Sequence[bytes]], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while self.reads:
            if not step(self.reads.pop(0)):
                return
        raise Closed(1000, "")


def stream_of(reads: list[list[bytes]]) -> WebsocketStream:
    call = SimpleNamespace(
        request=SimpleNamespace(prompt_cache_key="k"),
        turn_state=None,
        new_turn=True,
        timings=Timings(),
        chain=SimpleNamespace(digest=b""),
    )
    entry = SimpleNamespace(socket=Socket(reads))
    return WebsocketStream(cast("Any", entry), cast("Any", call), None, dict, lambda _: None, lambda: 0.0)


def outcome(reads: list[list[bytes]], answer: Callable[[Sequence[bytes]], bool]) -> tuple[list[bytes], str]:
    """All events that came, and how it ended."""
    stream = stream_of(reads)
    got: list[bytes] = []

    def step(messages: Sequence[bytes]) -> bool:
        got.extend(messages)
        return answer(messages)

    async def drive() -> str:
        try:
            while not await stream.push(step):
                pass
        except ApiError as error:
            return f"{error.error.code} {error.error.message}"
        return "ended"

    return got, trio.run(drive)


@pytest.mark.parametrize("ending", ENDINGS)
@given(data=st.data())
def test_nothing_depends_on_which_events_came_in_one_read(ending: str, data: st.DataObject) -> None:
    """Nor on how often the reader stops to write."""
    events = [msgspec.json.encode(event) for event in [CREATED, ADDED, text("Hel"), done("Hel"), *ENDINGS[ending]]]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(events) - 1))))
    reads = [events[start:end] for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True)]
    alone = outcome([[event] for event in events], lambda _: True)
    assert outcome(reads, lambda _: data.draw(st.booleans())) == alone
    assert alone[0][:4] == events[:4]


@pytest.mark.parametrize(
    ("status", "error", "headers", "again"),
    [
        (400, {"message": "no"}, {}, False),
        (400, {"code": "previous_response_not_found"}, {}, True),
        (401, {"code": "token_expired"}, {}, True),
        (403, {"message": "no"}, {}, True),
        (404, {"message": "no"}, {}, True),
        (413, {"message": "no"}, {}, True),
        (429, {"message": "slow"}, {}, False),
        (429, {"type": "usage_limit_reached"}, {}, False),
        (500, {"message": "oops"}, {}, True),
        (503, {"code": "slow_down"}, {}, True),
        (503, {"code": "slow_down"}, {"Retry-After": 7}, False),
        (503, {"code": "server_is_overloaded"}, {}, False),
    ],
)
def test_which_refusals_are_tried_again(status: int, error: Json, headers: Json, again: bool) -> None:
    """A 401 is: the token may have been replaced since the handshake, and the next one finds out."""
    event = {"type": "error", "status": status, "error": error, "headers": headers}
    stream = stream_of([[msgspec.json.encode(event)]])

    async def refused() -> ApiError:
        with pytest.raises(ApiError) as caught:
            while not await stream.push(lambda _: True):
                pass
        return caught.value

    assert trio.run(refused).retryable is again

"""Pacing as a table: what happened, and what is due then."""

import pytest

from codexd.config.model import Backend
from codexd.relay.pacing import KEEPALIVE_INTERVAL, RETRY_PAUSE, Due, Pacing

LIMITS = Backend(first_event_timeout=100.0, idle_timeout=40.0)


def pacing(*, streams: bool = True, **state: float | bool) -> Pacing:
    made = Pacing(LIMITS, 0.0, streams=streams)
    for name, value in state.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("state", "now", "due"),
    [
        # Before the first event the longer limit holds; the client is kept alive meanwhile.
        ({}, 0.0, Due("wait", 15.0)),
        ({}, 15.0, Due("keep alive", 30.0)),
        ({"wrote_at": 90.0}, 99.0, Due("wait", 100.0)),
        ({"wrote_at": 90.0}, 100.0, Due("give up", 100.0)),
        # After it the shorter one, from the last read.
        ({"heard": True, "read_at": 10.0, "wrote_at": 10.0}, 12.0, Due("wait", 25.0)),
        ({"heard": True, "read_at": 10.0, "wrote_at": 49.0}, 49.0, Due("wait", 50.0)),
        ({"heard": True, "read_at": 10.0, "wrote_at": 49.0}, 50.0, Due("give up", 50.0)),
        # Reads without output are silence to the client, and none of the backend's.
        ({"heard": True, "read_at": 14.9}, 15.0, Due("keep alive", 30.0)),
        # While a write is pending neither silence counts, however long it takes.
        ({"heard": True, "writing": True}, 1000.0, Due("wait", 1015.0)),
        ({"heard": True, "keeping_alive": True}, 1000.0, Due("wait", 1015.0)),
        # Nobody waits for pieces of an answer that is collected.
        ({"streams": False}, 20.0, Due("wait", 100.0)),
        ({"streams": False, "heard": True, "read_at": 20.0}, 60.0, Due("give up", 60.0)),
    ],
)
def test_what_is_due(state: dict[str, float | bool], now: float, due: Due) -> None:
    assert pacing(**state).due(now) == due  # type: ignore[arg-type]


def test_a_keep_alive_that_is_due_is_due_once() -> None:
    made = pacing()
    assert [made.due(now).action for now in (15.0, 15.0, 29.9, 30.0)] == ["keep alive", "wait", "wait", "keep alive"]
    assert KEEPALIVE_INTERVAL == 15.0


def test_a_write_that_was_waited_for_begins_both_silences_again() -> None:
    made = pacing(heard=True, writing=True)
    made.wrote(60.0)
    assert made.due(74.0) == Due("wait", 75.0)


def test_there_are_two_retries_and_each_begins_again() -> None:
    made = pacing(heard=True)
    assert made.retry(5.0, safe=False, jitter=1.0) is None
    assert made.retry(5.0, safe=True, jitter=0.5) == RETRY_PAUSE / 2
    assert (made.heard, made.read_at) == (False, 5.0 + RETRY_PAUSE / 2)
    assert made.retry(6.0, safe=True, jitter=1.0) == RETRY_PAUSE
    assert made.retry(7.0, safe=True, jitter=1.0) is None

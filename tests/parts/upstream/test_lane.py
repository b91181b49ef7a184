"""Which lane a request takes, as a table: what happened, and what the next request then may do."""

import pytest

from codexd.upstream.lane import FAILURES, PAUSE, UNSUPPORTED_PAUSE, Failure, Lane

HOUR, TEN = UNSUPPORTED_PAUSE, PAUSE


@pytest.mark.parametrize(
    ("happened", "told", "closed_for"),
    [
        ([], [], 0.0),
        (["refused"] * (FAILURES - 1), [None] * (FAILURES - 1), 0.0),
        (["refused"] * FAILURES, [None] * (FAILURES - 1) + [TEN], TEN),
        (["refused", "refused", "worked", "refused", "refused"], [None, None, False, None, None], 0.0),
        (["silent"], [TEN], TEN),
        (["final"] * (FAILURES + 1), [None] * (FAILURES + 1), 0.0),
        (["unsupported"], [HOUR], HOUR),
        (["refused", "unsupported"], [None, HOUR], HOUR),
        # Requests that had begun before it closed: reported once, the last one counts.
        (["silent", "silent"], [TEN, None], TEN),
        (["silent", "unsupported"], [TEN, None], HOUR),
        (["silent", "refused"], [TEN, None], TEN),
        (["silent", "worked"], [TEN, True], 0.0),
        (["silent", "gave up"], [TEN, None], TEN),
    ],
)
def test_what_closes_the_lane_and_for_how_long(
    happened: list[str], told: list[float | bool | None], closed_for: float
) -> None:
    lane = Lane()
    assert [happen(lane, each, 100.0) for each in happened] == told
    assert lane.open == (closed_for == 0)
    if closed_for:
        assert not lane.take(100.0 + closed_for - 0.1)
        assert lane.take(100.0 + closed_for)
    else:
        assert [lane.take(100.0) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("end", "told", "again_at"),
    [
        ("worked", True, 0.0),
        ("refused", None, TEN),  # at once: it need not fail three times again
        ("silent", None, TEN),
        ("unsupported", None, HOUR),
        ("gave up", None, 0.0),
        ("final", None, 0.0),
    ],
)
def test_one_request_tries_while_others_do_not(end: str, told: bool | None, again_at: float) -> None:
    lane = Lane()
    lane.failed("silent", 0.0)
    assert [lane.take(TEN) for _ in range(3)] == [True, False, False]
    assert happen(lane, end, TEN) == told
    assert lane.open == (end == "worked")
    if again_at:
        assert not lane.take(TEN + again_at - 0.1)
    assert lane.take(TEN + again_at)
    assert lane.take(TEN + again_at) == (end == "worked")


def test_a_lane_that_opened_again_takes_three_failures_to_close() -> None:
    lane = Lane()
    for _ in range(FAILURES):
        lane.failed("refused", 0.0)
    assert lane.take(TEN)
    assert lane.worked()
    assert not lane.worked()
    assert [lane.failed("refused", TEN) for _ in range(FAILURES)] == [None, None, TEN]


def happen(lane: Lane, what: str, now: float) -> float | bool | None:
    failures: dict[str, Failure] = {
        "final": "final",
        "unsupported": "unsupported",
        "silent": "silent",
        "refused": "refused",
    }
    if what == "worked":
        return lane.worked()
    if what == "gave up":
        lane.gave_up()
        return None
    return lane.failed(failures[what], now)

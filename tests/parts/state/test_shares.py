"""What part of each window each key has used."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.protocol.codex.rate_limits import MAIN, Window
from codexd.state.shares import ELSEWHERE, Shares


def window(used: float, resets_at: int | None = 1000, label: str = "5 h", limit: str = MAIN) -> Window:
    return Window(limit=limit, label=label, used_percent=used, window_minutes=300, resets_at=resets_at)


def percents(shares: Shares) -> dict[str, float]:
    (row,) = shares.rows()
    return row.percent


def test_growth_is_spread_by_tokens() -> None:
    shares = Shares()
    shares.observe([window(10), window(3, limit="gpt-reserve")])
    shares.ran("a", 300)
    shares.ran("b", 100)
    shares.observe([window(10)])
    shares.ran("b", 0)
    shares.observe([window(14)])
    assert percents(shares) == {ELSEWHERE: 10, "a": pytest.approx(4 * 300 / 401), "b": pytest.approx(4 * 101 / 401)}
    shares.observe([window(20)])
    assert percents(shares)[ELSEWHERE] == 16, "nothing of codexd's ended meanwhile"


def test_a_window_that_resets_begins_at_nothing() -> None:
    for reset in (window(0, 1000), window(2, 9000), window(60, 9000), window(5, None)):
        shares = Shares()
        shares.observe([window(50, None if reset.resets_at is None else 1000)])
        shares.ran("a", 1)
        shares.observe([reset])
        assert percents(shares) == ({"a": reset.used_percent} if reset.used_percent else {})
    shares = Shares()
    shares.observe([window(50)])
    shares.observe([window(49, 1001)])
    assert percents(shares) == {ELSEWHERE: 50}, "a jitter is not a reset"
    again = Shares(shares.rows())
    assert again.rows() == shares.rows()
    again.ran("a", 1)
    again.observe([window(55)])
    assert percents(again) == {ELSEWHERE: 50, "a": 5}, "what runs after a restart counts"


@given(st.lists(st.tuples(st.sampled_from(["a", "b", ""]), st.integers(0, 9), st.integers(0, 5)), max_size=30))
def test_the_parts_are_the_whole(steps: Sequence[tuple[str, int, int]]) -> None:
    shares, used = Shares(), 0
    for key, tokens, grown in steps:
        used += grown
        shares.ran(key, tokens)
        shares.observe([window(used)])
    assert sum(percents(shares).values() if steps else [0]) == pytest.approx(used)

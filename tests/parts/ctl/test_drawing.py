"""Tables on terminals of any width: columns fold away in their order, and no word is broken."""

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.ctl import drawing

WORDS = st.text("abcdefgh0123456789-", min_size=1, max_size=14)
CELLS = st.lists(WORDS, min_size=0, max_size=3).map(" ".join)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, columns: int, *args: Any, **options: Any) -> str:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    drawing.put(drawing.table(*args, **options))
    return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())


@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS, CELLS), min_size=1, max_size=4), columns=st.integers(60, 110)
)
def test_no_line_is_too_long_and_no_word_is_broken(rows: list[tuple[str, ...]], columns: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        shown = drawn(monkeypatch, columns, ["one", "two", "three", "four", "five"], rows, fold=["four", "two", "five"])
    assert max(map(len, shown.splitlines())) <= columns
    headings = shown.splitlines()[0].split()
    assert [each for each in ("one", "three") if each not in headings] == []
    words = set(re.split(r"\s+", shown))
    for row in rows:
        for place, name in enumerate(("one", "two", "three", "four", "five")):
            if name in headings:
                assert set(row[place].split()) <= words


def test_columns_fold_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ["a" * 20, "b" * 20, "c" * 20]
    headings = ["first", "second", "third"]
    for columns, left in ((70, headings), (60, ["first", "third"]), (30, ["third"])):
        shown = drawn(monkeypatch, columns, headings, [row], fold=["second", "first"])
        assert shown.splitlines()[0].split() == left


def test_a_column_without_values_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = drawn(monkeypatch, 100, ["name", "note"], [["x", ""]], fold=["note"])
    assert shown.splitlines()[0].strip() == "name"


def test_a_long_reason_is_cut_and_its_id_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = drawn(monkeypatch, 60, ["request", "why"], [["req_0123456789ab", drawing.Cut("because " * 30)]])
    last = shown.splitlines()[-1]
    assert last.startswith("req_0123456789ab   because") and last.endswith("…") and len(last) <= 60

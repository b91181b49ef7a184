"""The count of a document's values, against the document that a parser builds."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.errors import ApiError
from codexd.protocol import bounds

TEXTS = st.text(alphabet='ab\\"[]{},:\n é', max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=40,
)


def values(tree: Any) -> int:
    """One for each object, list, and each of their members or items but the first, as marks in the text."""
    if isinstance(tree, list | dict):
        inner = list(tree.values()) if isinstance(tree, dict) else tree
        return 1 + max(0, len(inner) - 1) + sum(map(values, inner))
    return 0


@given(VALUES, st.integers(1, 40))
def test_each_value_is_counted_wherever_the_pieces_are_cut(tree: Any, piece: int) -> None:
    data = msgspec.json.encode(tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "_PIECE", piece)
        assert bounds.count(data, 10**9) == values(tree)
        assert bounds._most(data) >= values(tree)
        patch.setattr(bounds, "SMALL", 0)
        assert bounds.measure(data, 10**9, 0) == values(tree)
        assert values(tree) <= bounds.measure(data, 10**9, 20) <= max(20, values(tree))


@given(
    st.binary(max_size=200).map(
        lambda data: data.translate(bytes.maketrans(bytes(range(256)), (b'\\"[]{},:a1 ' * 24)[:256]))
    )
)
def test_what_no_parser_reads_is_counted_up_to_where_it_stops(data: bytes) -> None:
    bounds.count(data, 10**9)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"{}," * 20_000 + b"{}]",
        b'{"a":"' + b"\\\\" * 300_001 + b'","b":[' + b"1," * 40_000 + b"1]}",
        b'{"a":"' + b"\\\\" * 131_069 + b'\\"","b":[' + b'"",' * 40_000 + b"1]}",
        b"[" * 40_001,
        b'["' + rb"\n" * 50 * 40_001 + b'"]',
    ],
)
def test_too_many_are_refused_before_they_are_built(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        bounds.measure(body, 40_000, 0)
    assert (caught.value.status, "server.max_items" in caught.value.error.message) == (413, True)
    bounds.measure(body, 60_000, 0)
    assert bounds.exceeds(body, 40_000)
    assert not bounds.exceeds(body, 60_000)
    assert not bounds.exceeds(body, len(body))


def test_a_text_full_of_code_is_one_value() -> None:
    code = '{[(",\\)]}\n' * 40_000
    body = msgspec.json.encode([{"content": code}])
    assert bounds.measure(body, 5000, 0) == 2
    assert bounds.measure(body, 10**9, 10**9) > 100_000

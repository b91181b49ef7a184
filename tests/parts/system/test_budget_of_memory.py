"""The budget of memory: where it comes from, how it is divided, and what holds of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.system import memory
from codexd.system.memory import LEAST, MIB, SMALL, Room


def group(root: Path, name: str, **limits: str) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    for kind, value in limits.items():
        (root / name / kind.replace("_", ".", 1)).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("lines", "mib"),
    [
        ("0::/system.slice/codexd.service\n", 240),
        ("0::/system.slice\n", 400),
        ("12:pids:/x\n4:memory:/docker/abc\n0::/\n", 160),
        ("0::/nowhere\n", None),
        ("nonsense\n", None),
    ],
)
def test_the_limit_is_the_lowest_of_the_groups(tmp_path: Path, lines: str, mib: int | None) -> None:
    group(tmp_path, "", memory_max="max")
    group(tmp_path, "system.slice", memory_max=str(500 * MIB), memory_high="max")
    group(tmp_path, "system.slice/codexd.service", memory_max=str(1000 * MIB), memory_high=str(300 * MIB))
    group(tmp_path / "memory", "docker/abc")
    (tmp_path / "memory" / "docker" / "abc" / "memory.limit_in_bytes").write_text(str(200 * MIB))
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    own = tmp_path / "own"
    own.write_text(lines)
    found = memory.total(tmp_path, own)
    assert found == mib * MIB if mib is not None else 0 < found <= 2048 * MIB


def test_without_any_group_it_is_a_part_of_the_machine(tmp_path: Path) -> None:
    assert 0 < memory.total(tmp_path / "no", tmp_path / "such") <= 2048 * MIB


SIZES = st.integers(0, 1 << 34)


@given(SIZES, SIZES, SIZES, SIZES)
def test_stores_fit_and_requests_have_the_rest(budget: int, responses: int, images: int, reasoning: int) -> None:
    shares = memory.divided(budget, responses=responses, images=images, reasoning=reasoning)
    assert (shares.responses, shares.images) <= (responses, images)
    assert shares.requests >= LEAST
    assert sum(shares[:3]) * 16 <= budget * 5
    if shares.requests > LEAST:
        assert sum(shares) <= budget


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6 * MIB), st.booleans()), max_size=60))
def test_what_is_held_is_what_was_taken_and_not_given_back(steps: list[tuple[int, int, bool]]) -> None:
    room = Room(16 * MIB)
    holds = [room.hold() for _ in range(5)]
    for index, size, back in steps:
        if back:
            holds[index].release(size)
            assert holds[index].taken <= size or holds[index].taken == 0
        else:
            before = room.used
            taken = holds[index].take(size)
            assert room.used == before + size * taken
        assert room.used == sum(hold.taken for hold in holds) <= room.size
    for hold in holds:
        hold.release()
    assert room.used == 0


def test_an_eighth_is_for_small_requests_alone() -> None:
    room = Room(16 * MIB)
    large, small = room.hold(), room.hold()
    assert not large.take(15 * MIB)
    assert large.take(14 * MIB)
    assert small.take(SMALL)
    assert not small.take(1)

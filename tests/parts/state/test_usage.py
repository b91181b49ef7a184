"""What was used: counted, bounded, and there after a restart."""

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from codexd.state import files, usage
from codexd.state.usage import Ledger
from codexd.telemetry.tokens import Tokens
from codexd.telemetry.trace import KEPT, Recent, Spans, Trace

DAY = 86400
NOW = 1_795_000_000.0


def trace(**given: object) -> Trace:
    known = {
        "id": "req_1", "at": NOW, "method": "POST", "endpoint": "/responses", "status": 200, "streamed": True,
        "spans": Spans(), "model": "gpt-5.1", "tokens": Tokens(input=100, cached=40, output=10, reasoning=4),
    }  # fmt: skip
    return Trace(**(known | given))  # type: ignore[arg-type]


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def test_it_counts_by_day_model_and_key(tmp_path: Path) -> None:
    clock = Clock()
    book = Ledger(tmp_path / "usage.json", clock=clock)
    book.add(trace())
    book.add(trace(key="phone"))
    book.add(trace(error="rate_limited", tokens=None))
    book.add(trace(model=None, error="unknown_url"))
    first = book.today().isoformat()
    clock.now += DAY
    book.add(trace(model="gpt-5.2"))
    found = [(row.day, row.model, row.key, row.requests, row.failed, row.input, row.cached) for row in book.since("")]
    second = book.today().isoformat()
    assert found == [
        (first, "gpt-5.1", "", 2, 1, 100, 40),
        (first, "gpt-5.1", "phone", 1, 0, 100, 40),
        (second, "gpt-5.2", "", 1, 0, 100, 40),
    ]
    assert [row.model for row in book.since(second)] == ["gpt-5.2"]


def test_the_last_day_by_hours(tmp_path: Path) -> None:
    clock = Clock()
    book = Ledger(tmp_path / "usage.json", clock=clock)
    for _ in range(30):
        book.add(trace())
        clock.now += 3600
    hours = book.hours()
    assert [hour.requests for hour in hours] == [*[1] * 23, 0]
    assert [after.hour - before.hour for before, after in pairwise(hours)] == [1] * 23
    clock.now += DAY
    assert sum(hour.requests for hour in book.hours()) == 0


async def test_it_outlives_a_restart(tmp_path: Path, autojump_clock: MockClock) -> None:
    path, clock = tmp_path / "usage.json", Clock()
    async with trio.open_nursery() as nursery:
        book = Ledger(path, clock=clock)
        nursery.start_soon(book.run)
        book.add(trace(key="phone"))
        await trio.sleep(usage.SAVE_INTERVAL + 1)
        saved = path.read_bytes()
        assert b"phone" in saved
        await trio.sleep(10 * usage.SAVE_INTERVAL)
        book.add(trace(key="laptop"))
        nursery.cancel_scope.cancel()
    again = Ledger(path, clock=clock)
    assert [(row.key, row.requests) for row in again.since("")] == [("phone", 1), ("laptop", 1)]
    assert again.hours()[-1].requests == 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_ends_in_a_drain_is_taken_up_by_the_successor(tmp_path: Path) -> None:
    path = tmp_path / "usage.json"
    old = Ledger(path, clock=Clock())
    old.add(trace())
    old.retire()
    new = Ledger(path, clock=Clock())
    new.add(trace(key="phone"))
    new.save()
    before = path.read_bytes()
    old.add(trace())
    old.save()
    assert path.read_bytes() == before, "it is the successor's"
    new.save()
    again = Ledger(path, clock=Clock())
    assert [(row.key, row.requests) for row in again.since("")] == [("", 2), ("phone", 1)]
    assert again.hours()[-1].requests == 3
    assert [each.name for each in tmp_path.iterdir()] == ["usage.json"]
    (tmp_path / "usage-late-1.json").write_bytes(b"{")
    again.save()
    assert len(again.since("")) == 2


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_ROWS", 5)
    book = Ledger(tmp_path / "usage.json", clock=Clock())
    for number in range(9):
        book.add(trace(key=f"k{number}"))
    assert [row.key for row in book.since("")] == ["k4", "k5", "k6", "k7", "k8"]


@pytest.mark.parametrize("spoiled", [b"", b"{", b'{"version": 2}', b'{"rows": 1}', b"\xff"])
def test_what_cannot_be_read_is_kept_aside(tmp_path: Path, spoiled: bytes) -> None:
    path = tmp_path / "usage.json"
    path.write_bytes(spoiled)
    book = Ledger(path, clock=Clock())
    assert book.since("") == []
    book.add(trace())
    book.save()
    assert len(Ledger(path, clock=Clock()).since("")) == 1
    assert spoiled in [other.read_bytes() for other in tmp_path.iterdir()]


def test_a_disk_that_is_full_costs_nothing_but_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    book = Ledger(tmp_path / "usage.json", clock=Clock())
    book.add(trace())
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_durably", full)
        book.save()
    book.save()
    assert msgspec.json.decode((tmp_path / "usage.json").read_bytes())["rows"]


def test_the_last_requests_are_found_by_their_ids() -> None:
    recent = Recent()
    recent.add(trace(id="early", error="oops"))
    for number in range(KEPT):
        recent.add(trace(id=f"req_{number}", at=NOW + number))
    assert len(recent.all()) == KEPT
    assert [each.id for each in recent.errors()] == ["early"]
    assert (found := recent.find("early")) is not None and found.error == "oops"
    assert (found := recent.find("req_7")) is not None and found.id == "req_7"
    assert (found := recent.find("req_")) is not None and found.id == f"req_{KEPT - 1}"
    assert recent.find("nobody") is None


def test_of_two_writes_at_once_the_newest_stays(tmp_path: Path) -> None:
    writes, path = files.Newest(), tmp_path / "a"
    older, newer = writes.number(), writes.number()
    writes.write(newer, path, b"newer")
    writes.write(older, path, b"older")
    assert path.read_bytes() == b"newer"
    late = writes.number()
    writes.close()
    writes.write(late, path, b"a successor's by now")
    assert path.read_bytes() == b"newer"

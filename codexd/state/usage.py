"""Usage by day, model and key: bounded, in memory and in one small file that survives a restart."""

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import msgspec
import structlog
import trio
from msgspec import Struct

from codexd.lowlevel import workers
from codexd.protocol import decoding
from codexd.protocol.codex.rate_limits import Window
from codexd.reasons import reason_of
from codexd.state.files import Newest, set_aside
from codexd.state.shares import Share, Shares
from codexd.telemetry.tokens import Amount, Hour, Row
from codexd.telemetry.trace import Trace

SAVE_INTERVAL = 900.0
"""Seconds."""

MAX_ROWS = 10_000
"""Rows (day, model, key); beyond this the oldest are removed. Enough for a year with a dozen models and keys."""

HOURS = 24

log = structlog.get_logger()


@lru_cache(maxsize=1)
def _date(minute: int) -> datetime.date:
    """Returns the local date of a minute of Unix time."""
    return datetime.datetime.fromtimestamp(minute * 60).astimezone().date()


class _UsageFile(Struct):
    rows: list[Row] = []
    hours: list[Hour] = []
    shares: list[Share] = []
    version: int = 1


class Ledger:
    """Usage of this state directory. ``clock`` gives Unix seconds."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._rows: dict[tuple[str, str, str], Row] = {}
        self._hours: dict[int, Hour] = {}
        self._unsaved = False
        self._retired = False
        self._writes = Newest()
        self.shares = Shares()
        self._load()

    def add(self, trace: Trace, windows: Sequence[Window] = ()) -> None:
        """Counts a request for an answer, after which the windows are these. Requests without a model do not count."""
        if trace.model is None:
            return
        now = self._clock()
        day = _date(int(now // 60)).isoformat()
        place = day, trace.model, trace.key or ""
        row = self._rows.get(place)
        if row is None:
            row = self._rows[place] = Row(day=day, model=trace.model, key=trace.key or "")
            while len(self._rows) > MAX_ROWS:
                del self._rows[next(iter(self._rows))]
        hour = int(now // 3600)
        if hour not in self._hours:
            self._hours[hour] = Hour(hour=hour)
            for old in [each for each in self._hours if each <= hour - HOURS]:
                del self._hours[old]
        failed = trace.error is not None
        for amount in (row, self._hours[hour]):
            amount.add(trace.tokens, failed=failed)
        if windows:
            tokens = trace.tokens
            self.shares.ran(trace.key or "", tokens.input - tokens.cached + tokens.output if tokens else 0)
            self.shares.observe(windows)
        self._unsaved = True

    def since(self, day: str) -> list[Row]:
        """Returns the rows from that day (``2030-12-31``) on, the oldest first."""
        return [row for row in self._rows.values() if row.day >= day]

    def by_key(self, *, days: int) -> dict[str, Amount]:
        """Returns what each key has used in the last days, today included; the empty key is that of no key."""
        first = (self.today() - datetime.timedelta(days=days - 1)).isoformat()
        found: dict[str, Amount] = {}
        for row in self.since(first):
            found.setdefault(row.key, Amount()).join(row)
        return found

    def tokens_today(self, key: str) -> int:
        """Returns the tokens that a key has used today, in and out."""
        day = self.today().isoformat()
        return sum(row.input + row.output for row in self._rows.values() if row.key == key and row.day == day)

    def today(self) -> datetime.date:
        return _date(int(self._clock() // 60))

    def hours(self) -> list[Hour]:
        """Returns the last 24 hours, the current one last; hours without requests are empty."""
        now = int(self._clock() // 3600)
        return [self._hours.get(hour) or Hour(hour=hour) for hour in range(now - HOURS + 1, now + 1)]

    async def run(self) -> None:
        """Saves every ``SAVE_INTERVAL`` seconds and at the end. Runs until cancelled."""
        try:
            while True:
                await trio.sleep(SAVE_INTERVAL)
                await self._save_in_thread()
        finally:
            self.save()

    def retire(self) -> None:
        """Saves, and counts into another file from now on: a successor may own this one, and will merge the other."""
        self.save()
        self._writes.close()
        self._rows, self._hours, self._unsaved, self._writes = {}, {}, False, Newest()
        self._path = self._path.with_name(f"{self._path.stem}-late-{os.getpid()}.json")
        self._retired = True

    def save(self) -> None:
        if (data := self._taken()) is not None:
            self._write(self._writes, self._writes.number(), self._path, data)

    async def _save_in_thread(self) -> None:
        """Saves without blocking streams: a disk can be slow. If codexd stops meanwhile, it saves again."""
        if (data := self._taken()) is None:
            return
        write = partial(self._write, self._writes, self._writes.number(), self._path, data)
        try:
            await workers.run(sys.maxsize, write)
        except trio.Cancelled:
            self._unsaved = True
            raise

    def _taken(self) -> bytes | None:
        """Returns the file's new contents; None if nothing has changed since the last save."""
        if not self._retired:
            self._take_up()
        if not self._unsaved:
            return None
        self._unsaved = False
        file = _UsageFile(list(self._rows.values()), list(self._hours.values()), self.shares.rows())
        return msgspec.json.encode(file) + b"\n"

    def _write(self, writes: Newest, number: int, path: Path, data: bytes) -> None:
        try:
            writes.write(number, path, data)
        except OSError as error:
            self._unsaved = True
            log.warning("the usage could not be saved; trying again later", path=str(path), reason=reason_of(error))

    def _take_up(self) -> None:
        """Merges the usage that predecessors counted while they drained."""
        for path in self._path.parent.glob(f"{self._path.stem}-late-*.json"):
            try:
                file = decoding.decode(path.read_bytes(), type=_UsageFile)
                path.unlink()
            except (OSError, ValueError) as error:
                log.warning("usage from a drain cannot be read", path=str(path), reason=reason_of(error))
                continue
            for row in file.rows:
                self._rows.setdefault(
                    (row.day, row.model, row.key), Row(day=row.day, model=row.model, key=row.key)
                ).join(row)
            for hour in file.hours:
                self._hours.setdefault(hour.hour, Hour(hour=hour.hour)).join(hour)
            self._unsaved = True

    def _load(self) -> None:
        try:
            file = decoding.decode(self._path.read_bytes(), type=_UsageFile)
            if file.version != 1:
                raise ValueError(f"its version is {file.version}, but this codexd supports only version 1")
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            # Counting starts from zero; the unreadable file is kept.
            aside = None
            with contextlib.suppress(OSError):
                aside = set_aside(self._path)
            log.warning(
                "the usage cannot be read; starting from zero", reason=reason_of(error), kept=aside and str(aside)
            )
            return
        self._rows = {(row.day, row.model, row.key): row for row in file.rows}
        self._hours = {hour.hour: hour for hour in file.hours}
        self.shares = Shares(file.shares)

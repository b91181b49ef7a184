"""Stored answers of the Responses API, for ``previous_response_id`` and for reading or deleting them.

The backend stores nothing, so these are the only copies. They are kept encoded, bounded in bytes and age: decoded, a
conversation of small items takes ten times its bytes. With ``storage.responses`` each one is also written durably to a
file in the state directory, in the background.
"""

import contextlib
import hashlib
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import structlog
import trio
from msgspec import Raw, Struct

from codexd.config.model import Storage
from codexd.lowlevel import workers
from codexd.protocol import decoding
from codexd.protocol.raw import RawObject, plain
from codexd.reasons import reason_of
from codexd.state.files import write_durably

_SANE_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")

PRIVATE = 64 * 1024 * 1024
"""Bytes up to which a websocket keeps its last response, whatever may be stored."""

OVERHEAD = 2048
"""Bytes that an entry takes besides its document, about."""

log = structlog.get_logger()


class Stored(Struct):
    """A stored answer. ``input`` is the whole conversation before it, earlier turns included; ``at``: Unix seconds."""

    id: str
    at: float
    input: list[RawObject]
    response: Raw

    def output(self) -> list[RawObject]:
        return decoding.decode(self.response, type=_Output).output


class _Output(Struct):
    output: list[RawObject] = []


class _Head(Struct):
    """What is read of a file at the start."""

    id: str
    at: float
    response: _Output


class Entry:
    """One stored answer, encoded. ``size`` is in bytes, an estimate as long as it is not ``encoded``.

    ``names`` are the ids of its output items.
    """

    __slots__ = ("_data", "_fresh", "at", "id", "names", "size")

    def __init__(self, id: str, at: float, names: Iterable[str], size: int) -> None:  # noqa: A002 - the API's own word
        self.id = id
        self.at = at
        self.names = tuple(names)
        self.size = size + OVERHEAD
        self._data = b""
        self._fresh: Stored | None = None

    @classmethod
    def of(cls, stored: Stored, size: int) -> "Entry":
        entry = cls(stored.id, stored.at, _names(stored.output()), size)
        entry._fresh = stored
        return entry

    @classmethod
    def read(cls, data: bytes) -> "Entry":
        """Returns an entry of a file. Raises msgspec.DecodeError."""
        head = decoding.decode(data, type=_Head)
        entry = cls(head.id, head.at, _names(head.response.output), len(data))
        entry._data = data
        return entry

    @property
    def length(self) -> int:
        """The bytes of its document."""
        return self.size - OVERHEAD

    @property
    def fresh(self) -> bool:
        """Whether it is not encoded yet."""
        return self._fresh is not None

    def encoded(self) -> bytes:
        """Returns the document, which takes long for a large one the first time."""
        if (fresh := self._fresh) is not None:
            self._data = msgspec.json.encode(fresh)
            self._fresh = None
            self.size = len(self._data) + OVERHEAD
        return self._data

    def stored(self) -> Stored:
        """Returns the decoded answer, which takes long for a large one. Raises msgspec.DecodeError."""
        return self._fresh or decoding.decode(self._data, type=Stored)

    def items(self) -> dict[str, RawObject]:
        """Returns the output items by their ids."""
        return {plain(item.get("id")) or "": item for item in self.stored().output()}


def _names(items: list[RawObject]) -> list[str]:
    return [name for item in items if (name := plain(item.get("id"))) is not None]


class ResponseStore:
    """All stored answers. ``clock`` gives Unix seconds. ``run`` encodes large ones and writes the files."""

    def __init__(self, folder: Path, config: Storage, *, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._sources: dict[str, Entry] = {}
        self._bytes = 0
        self._fresh: dict[Entry, int] = {}
        self._unwritten: dict[str, Entry | None] = {}
        self._due = trio.Event()
        self.configure(config)
        if config.responses:
            self._load()

    def __repr__(self) -> str:
        return f"<ResponseStore {len(self._entries)} responses, {self._bytes} bytes>"

    def configure(self, config: Storage) -> None:
        self._config = config
        self._shrink()

    def entry(self, id: str, input: list[RawObject], response: bytes, weight: int) -> Entry:  # noqa: A002 - the API's own words
        """Returns an entry that is not stored yet. ``weight`` is the size of its input, in bytes.

        Called in any thread; a large one stays as it is until ``run`` encodes it.
        """
        made = Entry.of(Stored(id, self._clock(), input, Raw(response)), weight + len(response))
        if made.size <= workers.LARGE:
            made.encoded()
        return made

    def add(self, entry: Entry) -> None:
        self._put(entry, write=True)

    def private(self, entry: Entry) -> Entry | None:
        """Has an entry encoded that is not in the store, and returns it; None if it is too large to keep."""
        if entry.size > max(self._config.response_bytes, PRIVATE):
            return None
        self._encode_later(entry)
        return entry

    def get(self, id: str) -> Entry | None:  # noqa: A002 - the API's own word
        self._shrink()
        return self._entries.get(id)

    def sources(self, names: Iterable[str]) -> list[Entry]:
        """Returns the newest entries whose output items have these ids; none for unknown ones."""
        self._shrink()
        found = (self._sources.get(name) for name in names)
        return list(dict.fromkeys(entry for entry in found if entry is not None))

    def delete(self, id: str) -> bool:  # noqa: A002 - the API's own word
        """Deletes a response; returns whether it existed."""
        if id not in self._entries:
            return False
        self._forget(id)
        return True

    async def run(self) -> None:
        """Encodes entries, writes and deletes files as needed. Runs until cancelled, and then finishes the rest."""
        try:
            while True:
                await self._due.wait()
                self._due = trio.Event()
                while self._fresh:
                    entry = next(iter(self._fresh))
                    await workers.run(sys.maxsize, entry.encoded)
                    before = self._fresh.pop(entry)
                    if self._entries.get(entry.id) is entry:
                        self._bytes += entry.size - before
                self._shrink()
                while self._unwritten:
                    name, entry_or_none = next(iter(self._unwritten.items()))
                    await trio.to_thread.run_sync(self._write, name, entry_or_none)
                    # Only now: a write that is cancelled before its thread starts is done at the end.
                    if self._unwritten.get(name, ...) is entry_or_none:
                        del self._unwritten[name]
        finally:
            while self._unwritten:
                self._write(*self._unwritten.popitem())

    def _put(self, entry: Entry, *, write: bool) -> None:
        if entry.id in self._entries:
            self._forget(entry.id)
        if entry.size > self._config.response_bytes:
            return
        self._entries[entry.id] = entry
        self._bytes += entry.size
        self._sources.update(dict.fromkeys(entry.names, entry))
        self._encode_later(entry)
        if write:
            self._later(entry.id, entry)
        self._shrink()

    def _encode_later(self, entry: Entry) -> None:
        if entry.fresh and entry not in self._fresh:
            self._fresh[entry] = entry.size
            self._due.set()

    def _shrink(self) -> None:
        oldest = self._clock() - self._config.response_seconds
        while self._entries:
            entry = next(iter(self._entries.values()))
            if self._bytes <= self._config.response_bytes and entry.at >= oldest:
                return
            self._forget(entry.id)

    def _forget(self, id: str) -> None:  # noqa: A002 - the API's own word
        entry = self._entries.pop(id)
        self._bytes -= self._fresh.get(entry, entry.size)
        for name in entry.names:
            if self._sources.get(name) is entry:
                del self._sources[name]
        self._later(id, None)

    # --- the files

    def _later(self, id: str, entry: Entry | None) -> None:  # noqa: A002 - the API's own word
        if self._config.responses:
            name = id if _SANE_ID.fullmatch(id) else hashlib.sha256(id.encode()).hexdigest()
            self._unwritten[f"{name}.json"] = entry
            self._due.set()

    def _write(self, name: str, entry: Entry | None) -> None:
        """Writes or deletes a file. Runs in a thread, because encoding a long conversation and syncing take time."""
        try:
            if entry is None:
                (self._folder / name).unlink(missing_ok=True)
            else:
                write_durably(self._folder / name, entry.encoded())
        except OSError as error:
            log.warning("a stored response could not be written", name=name, reason=reason_of(error))

    def _load(self) -> None:
        found: list[Entry] = []
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*.json"):
                try:
                    found.append(Entry.read(path.read_bytes()))
                except (OSError, msgspec.DecodeError) as error:
                    log.warning(
                        "a stored response cannot be read; the file is kept", path=str(path), reason=reason_of(error)
                    )
        for entry in sorted(found, key=lambda each: each.at):
            self._put(entry, write=False)

"""Stored answers of the Responses API, for ``previous_response_id`` and for reading or deleting them.

The backend stores nothing, so these are the only copies. They are in memory, bounded in bytes and age. With
``storage.responses`` each one is also written durably to a file in the state directory, in the background.
"""

import contextlib
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
import trio
from msgspec import Raw, Struct

from codexd.config.model import Storage
from codexd.protocol import decoding
from codexd.protocol.raw import RawObject
from codexd.state.files import write_durably

_SANE_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")

_ENVELOPE = 64

log = structlog.get_logger()


class Stored(Struct):
    """A stored answer. ``input`` is the whole conversation before it, earlier turns included; ``at``: Unix seconds."""

    id: str
    at: float
    input: list[RawObject]
    response: Raw

    def output(self) -> list[RawObject]:
        return decoding.decode(self.response, type=_Output).output

    def size(self) -> int:
        """Returns an upper estimate of the encoded bytes, without encoding the whole conversation."""
        pairs = (pair for item in self.input for pair in item.items())
        items = sum(len(key) + 4 + len(bytes(value)) for key, value in pairs)
        return _ENVELOPE + len(self.id) + len(bytes(self.response)) + items


class _Output(Struct):
    output: list[RawObject] = []


class ResponseStore:
    """All stored answers. ``clock`` gives Unix seconds. ``run`` writes the files; without it they stay in memory."""

    def __init__(self, folder: Path, config: Storage, *, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._entries: OrderedDict[str, tuple[int, Stored]] = OrderedDict()
        self._bytes = 0
        self._unwritten: dict[str, Stored | None] = {}
        self._due = trio.Event()
        self.configure(config)
        if config.responses:
            self._load()

    def __repr__(self) -> str:
        return f"<ResponseStore {len(self._entries)} responses, {self._bytes} bytes>"

    def configure(self, config: Storage) -> None:
        self._config = config
        self._shrink()

    def add(self, id: str, input: list[RawObject], response: bytes) -> None:  # noqa: A002 - the API's own words
        self._put(Stored(id, self._clock(), input, Raw(response)), write=True)

    def get(self, id: str) -> Stored | None:  # noqa: A002 - the API's own word
        self._shrink()
        found = self._entries.get(id)
        return None if found is None else found[1]

    def item(self, id: str) -> RawObject | None:  # noqa: A002 - the API's own word
        """Returns an output item of any stored response, the newest first; None if there is none with that id."""
        self._shrink()
        key, wanted = id.encode(), Raw(msgspec.json.encode(id))
        for _, stored in reversed(self._entries.values()):
            if key in bytes(stored.response):
                for item in stored.output():
                    if item.get("id") == wanted:
                        return item
        return None

    def delete(self, id: str) -> bool:  # noqa: A002 - the API's own word
        """Deletes a response; returns whether it existed."""
        if id not in self._entries:
            return False
        self._forget(id)
        return True

    async def run(self) -> None:
        """Writes and deletes files as needed. Runs until cancelled, and then finishes the rest."""
        try:
            while True:
                await self._due.wait()
                self._due = trio.Event()
                while self._unwritten:
                    name, stored = next(iter(self._unwritten.items()))
                    await trio.to_thread.run_sync(self._write, name, stored)
                    # Only now: a write that is cancelled before its thread starts is done at the end.
                    if self._unwritten.get(name, ...) is stored:
                        del self._unwritten[name]
        finally:
            while self._unwritten:
                self._write(*self._unwritten.popitem())

    def _put(self, stored: Stored, *, write: bool) -> None:
        size = stored.size()
        if stored.id in self._entries:
            self._forget(stored.id)
        if size > self._config.response_bytes:
            return
        self._entries[stored.id] = size, stored
        self._bytes += size
        if write:
            self._later(stored.id, stored)
        self._shrink()

    def _shrink(self) -> None:
        oldest = self._clock() - self._config.response_seconds
        while self._entries:
            id, (_, stored) = next(iter(self._entries.items()))  # noqa: A001 - the API's own word
            if self._bytes <= self._config.response_bytes and stored.at >= oldest:
                return
            self._forget(id)

    def _forget(self, id: str) -> None:  # noqa: A002 - the API's own word
        size, _ = self._entries.pop(id)
        self._bytes -= size
        self._later(id, None)

    # --- the files

    def _later(self, id: str, stored: Stored | None) -> None:  # noqa: A002 - the API's own word
        if self._config.responses:
            name = id if _SANE_ID.fullmatch(id) else hashlib.sha256(id.encode()).hexdigest()
            self._unwritten[f"{name}.json"] = stored
            self._due.set()

    def _write(self, name: str, stored: Stored | None) -> None:
        """Writes or deletes a file. Runs in a thread, because encoding a long conversation and syncing take time."""
        try:
            if stored is None:
                (self._folder / name).unlink(missing_ok=True)
            else:
                write_durably(self._folder / name, msgspec.json.encode(stored))
        except OSError as error:
            log.warning("a stored response could not be written", name=name, reason=str(error))

    def _load(self) -> None:
        found: list[Stored] = []
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*.json"):
                try:
                    found.append(decoding.decode(path.read_bytes(), type=Stored))
                except (OSError, msgspec.DecodeError) as error:
                    log.warning("a stored response cannot be read; the file is kept", path=str(path), reason=str(error))
        for stored in sorted(found, key=lambda each: each.at):
            self._put(stored, write=False)

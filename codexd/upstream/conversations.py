"""Which websocket holds which conversation.

    connection | left by                                                          | to
    -----------|------------------------------------------------------------------|-----------
    answering  | a complete answer, read to its last event                        | idle, with a head
    answering  | an answer whose end does not allow to continue it                | closed
    idle       | ``claim`` by a request that continues its head                   | answering
    idle       | ``claim`` by another request with the same key and caller        | answering, without the head
    idle       | ``room`` (least recently used first), ``sweep``, its end         | closed

A head is the last answer of a connection, found by the digest of the input that it answers. Once taken it is gone: a
retry, an edit or a second request at once sends its whole input. No bodies are kept, only digests.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import trio

from codexd.lowlevel import timers, workers
from codexd.protocol.codex import continuation
from codexd.protocol.codex.continuation import Answer
from codexd.upstream.call import Call
from codexd.upstream.websocket import WebSocket

BURST = 8
"""Handshakes that may follow one another at once; the backend is said to refuse many in a second."""

SPACE = 1.0
"""Seconds between two handshakes beyond that number."""

PATIENCE = 2.0
"""Seconds for which a request waits for its handshake. The first token over HTTP is said to be later by three."""

MAX_AGE = 50 * 60.0
"""Seconds of a connection's life in which an answer may start. The backend ends it after an hour."""

SWEEP_INTERVAL = 5.0


class Head(NamedTuple):
    """A complete answer that its connection can continue. ``key``: the prompt cache key that was sent."""

    digest: bytes
    response_id: str
    answer: Answer
    key: str


class Entry:
    """One connection. ``token``: the access token of its handshake. ``kept``: it has answered before."""

    __slots__ = ("answering", "caller", "digest", "head", "kept", "key", "once", "socket", "token", "used_at")

    def __init__(self, socket: WebSocket, call: Call, token: str) -> None:
        self.socket = socket
        self.token = token
        self.caller, self.key = call.caller, call.key
        self.head: Head | None = None
        self.answering = True
        self.kept = False
        self.once = False
        self.digest = b""
        self.used_at = trio.current_time()


class Conversations:
    """All websockets. ``run`` watches the idle ones; without it none is kept."""

    def __init__(self, max_connections: int, idle_seconds: float) -> None:
        self.configure(max_connections, idle_seconds)
        self._answering: dict[Entry, None] = {}
        self._opening = 0
        self._spaced_until = -math.inf
        self._heads: dict[bytes, Entry] = {}
        self._idle: dict[Entry, None] = {}
        self._idle_of: dict[tuple[str, str], list[Entry]] = {}
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        websockets, idle = self.counts
        return f"<Conversations {websockets} websockets, {idle} idle, {len(self._heads)} heads>"

    def configure(self, max_connections: int, idle_seconds: float) -> None:
        self._max, self._idle_seconds = max_connections, idle_seconds

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of open and of idle connections."""
        return len(self._answering) + len(self._idle), len(self._idle)

    async def run(self) -> None:
        """Answers pings on idle connections and closes old ones. Runs until cancelled; then closes the idle ones."""
        try:
            async with trio.open_nursery() as self._nursery:
                while True:
                    await timers.pause(SWEEP_INTERVAL)
                    self.sweep()
        finally:
            self._nursery = None
            self.close_idle()

    def sweep(self, token: str | None = None) -> None:
        """Closes idle connections that are too old, or, if ``token`` is given, were opened with another one."""
        for entry in list(self._idle):
            if self._is_past(entry, token):
                self.close(entry)

    def _is_past(self, entry: Entry, token: str | None) -> bool:
        now = trio.current_time()
        return (
            now > entry.used_at + self._idle_seconds
            or now > entry.socket.opened_at + MAX_AGE
            or token not in (None, entry.token)
        )

    def close_idle(self) -> None:
        for entry in list(self._idle):
            self.close(entry)

    async def claim(self, call: Call, token: str, *, whole: bool = True) -> tuple[Entry, Head | None] | None:
        """Returns an idle connection for the request, and the head that it continues.

        Without a head to continue it is one that had the same key: the backend's cache is warm there. ``whole``: all of
        the request may be sent; otherwise only a connection with a head will do.
        """
        chain = call.chain
        found = None if chain.before is None else self._heads.get(chain.before)
        if found is not None and self._is_past(found, token):
            self.close(found)
        elif found is not None and (head := found.head) is not None and not found.answering:
            answer = call.request.input[chain.start : chain.tail]
            equals = partial(continuation.equals, head.answer, answer, lossless=call.lossless)
            if await workers.run(call.weight, equals) and found.head is head and await self._claim(found, call):
                return found, head
        while whole and (same := self._idle_of.get((call.caller, call.key))):
            entry = same[-1]  # the one used last
            if self._is_past(entry, token):
                self.close(entry)
            elif await self._claim(entry, call):
                return entry, None
        return None

    @contextmanager
    def room(self, *, patience: float | None = None) -> Iterator[float | None]:
        """Holds a place while a connection is opened; closes an idle one for it. Gives the seconds to wait before.

        None if all are answering, or if the wait for earlier handshakes would exceed ``patience``.
        Without ``patience`` there is no wait.
        """
        now = trio.current_time()
        wait = 0.0 if patience is None else max(0.0, self._spaced_until - (BURST - 1) * SPACE - now)
        if patience is not None and wait > patience:
            yield None
            return
        while (full := self.counts[0] + self._opening >= self._max) and (oldest := self._oldest()) is not None:
            self.close(oldest)
        if full:
            yield None
            return
        self._spaced_until = max(now, self._spaced_until) + SPACE
        self._opening += 1
        try:
            yield wait
        finally:
            self._opening -= 1

    def _oldest(self) -> Entry | None:
        return next(iter(self._idle), None)

    def add(self, entry: Entry, call: Call) -> None:
        """Takes in a new connection. If the same request is being answered already, this one ends with its answer."""
        entry.digest = call.chain.digest
        entry.once = any(other.digest == entry.digest for other in self._answering)
        self._answering[entry] = None

    def release(self, entry: Entry, head: Head | None) -> None:
        """Ends an answer: keeps the connection if there is a head, closes it otherwise."""
        if head is None or entry.once or entry.socket.closed or self._nursery is None:
            self.close(entry)
            return
        entry.answering, entry.kept, entry.head = False, True, head
        entry.used_at = trio.current_time()
        self._answering.pop(entry, None)
        self._idle[entry] = None
        self._idle_of.setdefault((entry.caller, entry.key), []).append(entry)
        if (other := self._heads.get(head.digest)) is not None:
            other.head = None
        self._heads[head.digest] = entry
        entry.socket.rest()
        self._nursery.start_soon(self._watch, entry)

    def close(self, entry: Entry) -> None:
        self._take(entry)
        self._forget_head(entry)
        self._answering.pop(entry, None)
        entry.socket.close()

    async def _watch(self, entry: Entry) -> None:
        await entry.socket.watch()
        if entry.socket.closed:
            self.close(entry)

    async def _claim(self, entry: Entry, call: Call) -> bool:
        self._take(entry)
        self._forget_head(entry)
        self._answering[entry] = None
        entry.answering, entry.digest, entry.key = True, call.chain.digest, call.key
        try:
            usable = await entry.socket.claim()
        except BaseException:
            self.close(entry)
            raise
        if not usable:
            self.close(entry)
        return usable

    def _forget_head(self, entry: Entry) -> None:
        if entry.head is not None and self._heads.get(entry.head.digest) is entry:
            del self._heads[entry.head.digest]
        entry.head = None

    def _take(self, entry: Entry) -> None:
        """Takes a connection out of the idle ones, if it is one of them."""
        if entry in self._idle:
            del self._idle[entry]
            place = entry.caller, entry.key
            self._idle_of[place].remove(entry)
            if not self._idle_of[place]:
                del self._idle_of[place]

"""Encrypted reasoning that a chat client cannot carry, kept in memory for its next turn.

The Chat Completions API has no place for reasoning items. A client's tool loop therefore loses the reasoning between
calls, which makes answers worse and misses the backend's prompt cache. The items are stored under a value that the
client does send back: the id of a tool call, or the hash of an answer's text.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

from msgspec import Raw

from codexd.protocol.raw import RawObject

OVERHEAD = 512
"""Bytes that an entry and each of its items take besides their values, about."""

Items = tuple[RawObject, ...]
Recall = Callable[[str], Items]
"""Returns the reasoning items that led to a call or a text; empty when they are unknown."""


def of_call(call_id: str) -> str:
    return f"call {call_id}"


def of_text(text: str) -> str:
    return f"text {hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def nothing(_: str) -> Items:
    return ()


class ReasoningMemory:
    """A bounded store. ``max_bytes`` limits all items together, ``max_age`` is in seconds; the oldest go first.

    Only the model that made an item can read it, so keys are separate for each model.
    """

    def __init__(self, max_bytes: int, max_age: float) -> None:
        self._entries: OrderedDict[tuple[str, str], tuple[float, int, Items]] = OrderedDict()
        self._bytes = 0
        self.configure(max_bytes, max_age)

    def __repr__(self) -> str:
        return f"<ReasoningMemory {len(self._entries)} answers, {self._bytes} bytes>"

    def configure(self, max_bytes: int, max_age: float) -> None:
        self._max_bytes, self._max_age = max_bytes, max_age
        self._shrink(-float("inf"))

    def remember(self, model: str, key: str, items: Sequence[RawObject], now: float) -> None:
        """Stores the items. ``now`` is in seconds of any monotonic clock, always the same one."""
        size = OVERHEAD * (1 + len(items)) + sum(len(memoryview(value)) for item in items for value in item.values())
        self._forget((model, key))
        if size <= self._max_bytes:
            self._entries[model, key] = now, size, tuple(items)
            self._bytes += size
        self._shrink(now - self._max_age)

    def recall(self, model: str, key: str, now: float) -> Items:
        found = self._entries.get((model, key))
        if found is None or found[0] < now - self._max_age:
            return ()
        return found[2]

    def _shrink(self, oldest: float) -> None:
        while self._entries:
            key, (moment, _, _) = next(iter(self._entries.items()))
            if self._bytes <= self._max_bytes and moment >= oldest:
                return
            self._forget(key)

    def _forget(self, key: tuple[str, str]) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._bytes -= found[1]


class Turn:
    """Collects the reasoning items of one answer, and the call or text that followed each."""

    def __init__(self, keep: Callable[[str, Sequence[RawObject]], None]) -> None:
        self._keep = keep
        self._pending: list[RawObject] = []
        self._led_to: list[tuple[str, list[RawObject]]] = []

    def add(self, item: RawObject) -> None:
        """Adds an item in the form in which it is sent back: without its id, because the backend stores nothing."""
        self._pending.append({key: value for key, value in item.items() if key not in ("id", "status")})

    def attach(self, key: str) -> None:
        """Assigns the items since the last call or text to this key."""
        if self._pending:
            self._led_to.append((key, self._pending))
            self._pending = []

    def end(self) -> None:
        """Stores the collected items. Called only for a complete answer."""
        for key, items in self._led_to:
            self._keep(key, items)


def encrypted(item: RawObject) -> bool:
    """Returns whether an item can be sent back: it is reasoning and has encrypted content."""
    return item.get("type") == Raw(b'"reasoning"') and bytes(item.get("encrypted_content", b"null")) not in (
        b"null",
        b'""',
    )

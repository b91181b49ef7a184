"""Memory and start-up time: a budget, optional imports that are skipped, large blocks that go back to the system.

structlog imports rich for tracebacks, httpx a command line, httpcore and hypercorn HTTP/2, each only if installed.
Measured: without these four codexd starts in three quarters of the time and uses a tenth less memory when idle.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

_OPTIONAL = ("rich", "httpx._main", "httpcore._async.http2", "httpcore._sync.http2")
"""Modules whose importers continue without them."""

_HTTP_2 = "hypercorn.protocol.h2"
"""hypercorn imports it for a class that codexd never uses; ``codexd.server`` supports only HTTP/1.1."""

_FOR_TYPES = ("h2", "h2.events")
"""What hypercorn imports only to name types."""

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE = 1 << 20
"""Bytes. Larger blocks are allocated with mmap, and unmapped when they are freed."""


def limit_retention() -> None:
    """Makes the C library return large blocks to the system; otherwise glibc raises its threshold up to 32 MiB.

    Measured with 20 MiB of images: the peak fell from 2.7 to 2.0 times the request, and all of it was returned. And all
    threads share one heap: each of their own would keep what it had at its highest.
    """
    import ctypes

    # musl and macOS have no mallopt.
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Returns free memory to the system; glibc keeps that of small objects between others. Takes milliseconds."""
    import ctypes

    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def lean_imports() -> Iterator[None]:
    """Hides the optional modules from imports inside the block. Modules that are already imported stay."""
    missing = [name for name in (*_OPTIONAL, *_FOR_TYPES) if name not in sys.modules]
    for name in missing:
        # None is how the import system spells "not installed".
        sys.modules[name] = ModuleType(name) if name in _FOR_TYPES else None  # type: ignore[assignment]
    if _HTTP_2 not in sys.modules:
        sys.modules[_HTTP_2] = stub = ModuleType(_HTTP_2)
        stub.H2Protocol = type("H2Protocol", (), {})  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


# --- the budget

MIB = 1 << 20

BASE = 96 * MIB
"""Bytes that codexd takes without any request, and that the heap holds between objects."""

_PART_OF_LIMIT, _PART_OF_MACHINE, _MOST = 0.8, 0.25, 2048 * MIB
LEAST = 32 * MIB


def total(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Returns the default budget in bytes: most of the unit's or container's limit, else a part of the machine."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for limit in _limits_of(root, own) if limit < physical]
    return int(min([physical * _PART_OF_MACHINE, _MOST, *(limit * _PART_OF_LIMIT for limit in limits)]))


def _limits_of(root: Path, own: Path) -> Iterator[int]:
    """Yields the limits of the process's control group and of those above it (cgroup v2, and v1's for memory)."""
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            top = root / controllers
            group = top / name.lstrip("/")
            for each in (group, *group.parents):
                for kind in ("memory.high", "memory.max", "memory.limit_in_bytes"):
                    with suppress(OSError, ValueError):
                        yield int((each / kind).read_text())
                if each == top:
                    break


class Shares(NamedTuple):
    """How a budget is divided, in bytes: stored responses, images, reasoning, and requests in progress."""

    responses: int
    images: int
    reasoning: int
    requests: int


def divided(budget: int, *, responses: int, images: int, reasoning: int) -> Shares:
    """Divides a budget: to each store what is configured, but an eighth at most, and the rest to requests."""
    stores = min(responses, budget // 8), min(images, budget // 8), min(reasoning, budget // 16)
    return Shares(*stores, max(budget - BASE - sum(stores), LEAST))


SMALL = MIB
"""Bytes; a request that takes no more is small."""


MUCH = 4 * MIB
"""Bytes; what a request that took more leaves behind is worth looking for."""


def _nothing() -> None:
    pass


class Room:
    """The memory for requests in progress, in bytes. Each takes what it is expected to need, or is refused.

    An eighth of it is for small requests alone, so that large ones that take their time keep nobody else out.
    ``on_freed`` is called when a large one has ended.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self.on_freed: Callable[[], None] = _nothing

    def __repr__(self) -> str:
        return f"<Room {self.used} of {self.size} bytes used>"

    def hold(self) -> "Hold":
        return Hold(self)


class Hold:
    """What one request has taken."""

    __slots__ = ("_room", "taken")

    def __init__(self, room: Room) -> None:
        self._room = room
        self.taken = 0

    @property
    def room(self) -> Room:
        return self._room

    def take(self, size: int) -> bool:
        """Takes more; returns False, and takes nothing, if there is no room."""
        room = self._room
        most = room.size if self.taken + size <= SMALL else room.size - room.size // 8
        if room.used + size > most:
            return False
        self._room.used += size
        self.taken += size
        return True

    def release(self, keep: int = 0) -> None:
        """Gives back all but ``keep`` bytes; it may take again."""
        if (freed := self.taken - keep) > 0:
            self._room.used -= freed
            self.taken = keep
            if freed > MUCH:
                self._room.on_freed()


UNBOUNDED = Room(sys.maxsize)

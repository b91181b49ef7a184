"""When an answer is kept alive, when it is given up, when it is tried once more. Nothing here waits or reads a clock.

Two silences are watched. The backend's lasts from ``read_at``: beyond the limit the answer is given up. The client's
lasts from ``wrote_at``: beyond the interval it gets a keep-alive, so that proxies keep their patience; reads without
output, such as the backend's own pings, are silence to it. While a write is pending neither counts: the backend is not
read, and the client is not idle.
"""

from typing import Literal, NamedTuple, Protocol

KEEPALIVE_INTERVAL = 15.0
RETRY_PAUSE = 0.3
"""Seconds before the one retry, give or take half of it."""


class Deadlines(Protocol):
    """The two configured limits, in seconds."""

    @property
    def first_event_timeout(self) -> float: ...

    @property
    def idle_timeout(self) -> float: ...


class Due(NamedTuple):
    """What is to be done now, and when to look again. Times are those of the caller's clock, in seconds."""

    action: Literal["wait", "keep alive", "give up"]
    look_again_at: float


class Pacing:
    """The caller sets ``read_at`` and ``heard`` with each read, ``wrote_at`` with each write that need not wait.

    ``writing`` and ``keeping_alive`` are set round writes that may wait: those of the answer, and of a keep-alive. They
    are attributes and not methods because that is done for each event of a stream. ``streams``: the client gets
    the answer as it comes, and may be kept alive.
    """

    __slots__ = ("_deadlines", "_retried", "_streams", "heard", "keeping_alive", "read_at", "writing", "wrote_at")

    def __init__(self, deadlines: Deadlines, now: float, *, streams: bool) -> None:
        self._deadlines = deadlines
        self._streams = streams
        self._retried = False
        self.read_at = self.wrote_at = now
        self.heard = self.writing = self.keeping_alive = False

    def wrote(self, now: float) -> None:
        """A write that was waited for is complete: the backend was not read meanwhile, so its silence starts now."""
        self.writing = False
        self.read_at = self.wrote_at = now

    @property
    def limit(self) -> float:
        """Seconds that the backend may be silent: until its first event, or after it."""
        return self._deadlines.idle_timeout if self.heard else self._deadlines.first_event_timeout

    def due(self, now: float) -> Due:
        """Decides what is due; a keep-alive that is due counts as written."""
        busy = self.writing or self.keeping_alive
        give_up_at = (now if busy else self.read_at) + self.limit
        if now >= give_up_at:
            return Due("give up", now)
        if not self._streams:
            return Due("wait", give_up_at)
        silent = not busy and now >= self.wrote_at + KEEPALIVE_INTERVAL
        if silent or busy:
            self.wrote_at = now
        look_again_at = min(give_up_at, self.wrote_at + KEEPALIVE_INTERVAL)
        return Due("keep alive" if silent else "wait", look_again_at)

    def retry(self, now: float, *, safe: bool, jitter: float) -> float | None:
        """Returns the pause before another try, after which all begins again; None when there is none.

        ``safe``: the failure is one that may pass, and the client has seen nothing. ``jitter`` is between 0.5 and 1.5.
        """
        if self._retried or not safe:
            return None
        self._retried, self.heard = True, False
        pause = RETRY_PAUSE * jitter
        self.read_at = now + pause
        return pause

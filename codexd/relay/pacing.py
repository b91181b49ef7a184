"""Decides when to send a keep-alive, give up, or retry an answer. Pure: nothing here waits or reads a clock.

    state      | left by                                                  | to
    -----------|----------------------------------------------------------|---------
    unheard    | a read: the caller sets ``heard``                        | heard
    heard      | ``retry`` returns a pause                                | unheard
    any        | ``limit`` seconds since ``read_at`` without a read       | given up

A keep-alive is due KEEPALIVE_INTERVAL seconds after ``wrote_at``, because proxies have timeouts; reads without output,
such as the backend's pings, do not count as writes. While a write is pending neither interval runs.
"""

from typing import Literal, NamedTuple, Protocol

KEEPALIVE_INTERVAL = 15.0
RETRY_PAUSE = 0.3
"""Seconds before a retry, plus or minus half of it."""

MAX_RETRIES = 2
"""A websocket that failed is followed by a new one, that by HTTP. A failure says whether a retry is safe."""


class Deadlines(Protocol):
    """The configured limits on the backend's silence, in seconds."""

    @property
    def first_event_timeout(self) -> float: ...

    @property
    def idle_timeout(self) -> float: ...


class Due(NamedTuple):
    """What to do now, and when to call ``due`` again, in seconds of the caller's clock."""

    action: Literal["wait", "keep alive", "give up"]
    look_again_at: float


class Pacing:
    """The timing of one answer. ``streams``: the client gets a stream, and so may get keep-alives.

    The caller sets ``read_at`` and ``heard`` on each read, ``wrote_at`` on each write that did not wait, and
    ``writing`` or ``keeping_alive`` during a write that may wait. They are attributes, not methods, for speed: they are
    set for each event of a stream.
    """

    __slots__ = ("_deadlines", "_retries", "_streams", "heard", "keeping_alive", "read_at", "writing", "wrote_at")

    def __init__(self, deadlines: Deadlines, now: float, *, streams: bool) -> None:
        self._deadlines = deadlines
        self._streams = streams
        self._retries = 0
        self.read_at = self.wrote_at = now
        self.heard = self.writing = self.keeping_alive = False

    def wrote(self, now: float) -> None:
        """Ends a write that waited. The backend was not read during it, so its silence starts now."""
        self.writing = False
        self.read_at = self.wrote_at = now

    @property
    def limit(self) -> float:
        """Maximum silence of the backend in seconds, before or after its first event."""
        return self._deadlines.idle_timeout if self.heard else self._deadlines.first_event_timeout

    def due(self, now: float) -> Due:
        """Returns what is due. A keep-alive that is due counts as written."""
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
        """Returns the pause in seconds before the retry; None if the request must not be retried.

        ``safe``: the failure may be temporary, and the client has received nothing. ``jitter``: 0.5 to 1.5.
        """
        if self._retries >= MAX_RETRIES or not safe:
            return None
        self._retries += 1
        self.heard = False
        pause = RETRY_PAUSE * jitter
        self.read_at = now + pause
        return pause

"""Which lane a request takes: websocket first, HTTP for a while after the websocket failed. Pure: no clock, no I/O.

    state    | left by                                                              | to
    ---------|----------------------------------------------------------------------|--------
    open     | 426 (an hour); no answer, or FAILURES in a row (ten minutes)         | closed
    closed   | its time is over: the next request tries a websocket                 | trying
    trying   | the websocket works                                                  | open
    trying   | it does not                                                          | closed

While one request tries, others take HTTP. A proxy that lets no websocket through so costs one slow request, not each.
"""

from typing import Literal

FAILURES = 3
PAUSE = 600.0
UNSUPPORTED_PAUSE = 3600.0

Failure = Literal["unsupported", "silent", "refused", "final"]
"""``unsupported``: 426. ``silent``: no answer within the deadline. ``final``: a refusal of the request or the account,
as over HTTP. ``refused``: anything else."""


class Lane:
    """The state for all requests. Times are in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._failures = 0
        self._closed_until: float | None = None
        self._trying = False

    @property
    def open(self) -> bool:
        return self._closed_until is None

    def take(self, now: float) -> bool:
        """Returns whether the next request may use a websocket. If so, ``worked`` or ``failed`` must follow."""
        if self._closed_until is None:
            return True
        if self._trying or now < self._closed_until:
            return False
        self._trying = True
        return True

    def worked(self) -> bool:
        """Returns whether this opens the lane again."""
        opened, self._closed_until = self._closed_until is not None, None
        self._failures, self._trying = 0, False
        return opened

    def failed(self, why: Failure, now: float) -> float | None:
        """Returns for how many seconds this closes the lane; None if it stays as it was."""
        if why == "final":
            self._trying = False
            return None
        self._failures += 1
        if why == "refused" and self._failures < FAILURES and not self._trying:
            return None
        first, self._trying = self._closed_until is None, False
        pause = UNSUPPORTED_PAUSE if why == "unsupported" else PAUSE
        self._closed_until = now + pause
        return pause if first else None

    def gave_up(self) -> None:
        """Undoes ``take``: the request ended before its outcome was known."""
        self._trying = False

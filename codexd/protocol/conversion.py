"""The backend's events in, client bytes out: an automaton and an encoder, joined for one answer.

``relay`` drives a ``Conversion`` without knowing the dialect. Everything here is synchronous.
"""

from collections.abc import Sequence
from typing import Protocol

from codexd import errors
from codexd.errors import ApiError
from codexd.protocol.codex.events import Usage
from codexd.protocol.decoding import TooDeep

DONE = b"data: [DONE]\n\n"


class State(Protocol):
    """Progress of one answer. The automaton of each dialect implements it."""

    begun: bool
    """Part of the answer has arrived; from now on the HTTP status is 200."""

    done: bool
    """The answer is complete; the upstream sends nothing more."""

    error: ApiError | None
    """The failure of the answer; nothing more is converted after it."""

    cut_short: bool
    """codexd ended the answer early; the upstream may still be sending."""

    usage: Usage | None

    def eof(self) -> None:
        """Handles the end of the upstream's stream; sets ``error`` when it came too early."""


class EventConverter(Protocol):
    """An automaton with its events as bytes on both sides."""

    @property
    def state(self) -> State: ...

    def push(self, data: bytes) -> bytes:
        """Converts the ``data`` of one event; the result is often empty."""

    def failure(self, error: ApiError) -> bytes:
        """Returns the frame that ends a stream which fails after its first byte."""

    def keepalive(self) -> bytes:
        """Returns a frame that keeps client and proxies from timing out while the backend is silent."""

    def document(self) -> bytes:
        """Returns the whole answer as one JSON document, for clients that do not stream. Valid once ``done``."""


class Conversion:
    """Conversion of one answer for one client. ``events`` counts the backend's events."""

    def __init__(self, dialect: EventConverter, last: bytes = DONE) -> None:
        self._last = last
        self._dialect = dialect
        self.events = 0
        self.state = dialect.state
        self.failure = dialect.failure
        self.keepalive = dialect.keepalive
        self.document = dialect.document

    def feed(self, events: Sequence[bytes]) -> bytes:
        """Converts the events of one read, each a JSON document."""
        state, push = self.state, self._dialect.push
        if state.done or state.error is not None:
            return b""
        self.events += len(events)
        try:
            # Nearly always it is one.
            out = push(events[0]) if len(events) == 1 else b"".join([push(event) for event in events])
        except (RecursionError, TooDeep):
            state.error = errors.upstream_unreadable("an event of its answer is nested too deeply")
            return b""
        return out + self._last if self.state.done else out

"""Upstream bytes in, client bytes out: the decoder, an automaton and an encoder, joined for one answer.

``relay`` drives one of these without knowing the dialect. All of it is synchronous: nothing here waits.
"""

from typing import Protocol

from codexd import errors
from codexd.errors import ApiError
from codexd.protocol import sse
from codexd.protocol.codex.events import Usage

DONE = b"data: [DONE]\n\n"


class State(Protocol):
    """How far an answer has come. An automaton of either dialect is one."""

    begun: bool
    """Something of the answer has been seen: from here on the HTTP status is 200."""

    done: bool
    """The answer is complete; the upstream has nothing more to say."""

    error: ApiError | None
    """The answer has failed; nothing more is converted."""

    cut_short: bool
    """The answer was ended here and not by the upstream, which may have much to say still."""

    usage: Usage | None

    def eof(self) -> None:
        """The upstream has ended its stream; sets ``error`` when that came too early."""


class EventConverter(Protocol):
    """An automaton, with its events as bytes on both sides."""

    @property
    def state(self) -> State: ...

    def push(self, data: bytes) -> bytes:
        """Convert the ``data`` of one event; an empty result is common."""

    def failure(self, error: ApiError) -> bytes:
        """The frame that ends a stream which fails after its beginning."""

    def keepalive(self) -> bytes:
        """What keeps client and proxies waiting through a silence."""

    def document(self) -> bytes:
        """The whole answer as one JSON document, once done; for clients that do not stream."""


class Conversion:
    """One answer on its way to one client. ``events`` counts what the backend has sent."""

    def __init__(self, dialect: EventConverter, last: bytes = DONE) -> None:
        self._last = last
        self._decoder = sse.EventDecoder()
        self._dialect = dialect
        self.events = 0
        self.state = dialect.state
        self.failure = dialect.failure
        self.keepalive = dialect.keepalive
        self.document = dialect.document

    def feed(self, data: bytes) -> bytes:
        """Convert what one read brought. Bytes that make no sense as a stream set ``state.error``."""
        state, push = self.state, self._dialect.push
        if state.done or state.error is not None:
            return b""
        try:
            events = self._decoder.feed(data)
        except sse.EventTooLarge:
            state.error = errors.stream_ended()
            return b""
        self.events += len(events)
        out = b"".join([push(event) for event in events])
        return out + self._last if self.state.done else out

"""Upstream bytes in, client bytes out: the decoder, an automaton and an encoder, joined for one answer.

``relay`` drives one of these without knowing the dialect. All of it is synchronous: nothing here waits.
"""

from typing import Protocol

import msgspec

from codexd import errors
from codexd.errors import ApiError
from codexd.protocol import sse
from codexd.protocol.chat import Chunk
from codexd.protocol.fold import fold
from codexd.protocol.memory import Turn, encrypted, of_call, of_text
from codexd.protocol.passthrough import ResponsesStream
from codexd.protocol.responses import Item, OutputItemDone, RawObject, TextDelta, Usage, decode_event
from codexd.protocol.stream import ChatStream

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode
_MARK = "\0text\0"  # no model is called so


class _RawItem(msgspec.Struct):
    item: RawObject


_ITEM = msgspec.json.Decoder(_RawItem)


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


class Dialect(Protocol):
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

    def __init__(self, dialect: Dialect, last: bytes = DONE) -> None:
        self._last = last
        self._decoder = sse.Decoder()
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


class ChatDialect:
    """Chat Completions. A client that does not stream gets the same chunks, folded."""

    def __init__(self, stream: ChatStream, *, streamed: bool, turn: Turn | None = None) -> None:
        self.state = stream
        self._turn = turn
        self._streamed = streamed
        self._chunks: list[Chunk] = []
        # All that is the same in each chunk of text is written once.
        before, _, after = _encode(stream.text_chunk(_MARK)).partition(_encode(_MARK))
        self._before, self._after = b"data: " + before, after + b"\n\n"

    def push(self, data: bytes) -> bytes:
        event = decode_event(data)
        if type(event) is TextDelta and self._streamed and self.state.passes(event):
            return self._before + _encode(event.delta) + self._after
        if isinstance(event, OutputItemDone):
            gather(self._turn, event.item, data)
        chunks = self.state.push(event)
        if self._turn is not None and self.state.done and not self.state.cut_short:
            self._turn.end()
        if self._streamed:
            return b"".join([b"data: %b\n\n" % _encode(chunk) for chunk in chunks])
        self._chunks += chunks
        return b""

    def failure(self, error: ApiError) -> bytes:
        return b"data: %b\n\n" % error.body()

    def keepalive(self) -> bytes:
        return b": keepalive\n\n"

    def document(self) -> bytes:
        return _encode(fold(self._chunks))


def gather(turn: Turn | None, item: Item, data: bytes) -> None:
    """Remember a complete item for the next turn, when there is anything to remember it in."""
    if turn is None:
        return
    match item.type:
        case "reasoning":
            raw = _ITEM.decode(data).item
            if encrypted(raw):
                turn.reasoned(raw)
        case "function_call" | "custom_tool_call":
            turn.came(of_call(item.call_id))
        case "message" if item.phase != "commentary":
            turn.came(of_text("".join(part.text for part in item.content or ())))


def chat(stream: ChatStream, *, streamed: bool, last: bytes = DONE, turn: Turn | None = None) -> Conversion:
    """``last`` ends the stream; one of several choices leaves that to the whole. ``turn`` gathers the reasoning."""
    return Conversion(ChatDialect(stream, streamed=streamed, turn=turn), last)


def responses(stream: ResponsesStream, last: bytes = DONE) -> Conversion:
    return Conversion(stream, last)

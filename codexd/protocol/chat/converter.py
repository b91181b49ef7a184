"""The Chat Completions dialect: backend events in, chunks as bytes out."""

from collections.abc import Callable

import msgspec

from codexd.errors import ApiError
from codexd.protocol import decoding
from codexd.protocol.chat.fold import fold
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.chat.wire import Chunk
from codexd.protocol.codex.events import Event, Item, OutputItemDone, TextDelta, decode_event, decode_known
from codexd.protocol.decoding import UNREADABLE
from codexd.protocol.raw import RawObject
from codexd.protocol.reasoning import Turn, encrypted, of_call, of_text

_encode = msgspec.json.Encoder().encode

_MARK = "\0text\0"  # cannot occur in a model name


class _RawItem(msgspec.Struct):
    item: RawObject


_ITEM = decoding.Decoder(_RawItem)


class ChatConverter:
    """The Chat Completions dialect. A client that does not stream gets the same chunks, folded."""

    def __init__(self, stream: ChatStream, *, streamed: bool, turn: Turn | None = None) -> None:
        self.state = stream
        self._turn = turn
        self._streamed = streamed
        self._chunks: list[Chunk] = []
        # The constant part of a text chunk is encoded only once.
        before, _, after = _encode(stream.text_chunk(_MARK)).partition(_encode(_MARK))
        self._before, self._after = b"data: " + before, after + b"\n\n"
        # The item whose text passes since the last event that was not such a text, and where it is kept.
        self._passing: int | None = None
        self._keep: Callable[[str], None] = list[str]().append

    def push(self, data: bytes) -> bytes:
        event: Event
        try:
            event = decode_known(data)
        except UNREADABLE:
            event = decode_event(data)
        if type(event) is TextDelta:
            delta = event.delta
            if event.output_index == self._passing and delta:
                self._keep(delta)
                return self._before + _encode(delta) + self._after
            if self._streamed and self.state.passes(event):
                self._passing, self._keep = event.output_index, self.state.keeper(event.output_index)
                return self._before + _encode(delta) + self._after
        self._passing = None
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
    """Stores a complete item in ``turn`` for the next request. Does nothing when ``turn`` is None."""
    if turn is None:
        return
    match item.type:
        case "reasoning":
            raw = _ITEM.decode(data).item
            if encrypted(raw):
                turn.add(raw)
        case "function_call" | "custom_tool_call":
            turn.attach(of_call(item.call_id))
        case "message" if item.phase != "commentary":
            turn.attach(of_text("".join(part.text for part in item.content or ())))

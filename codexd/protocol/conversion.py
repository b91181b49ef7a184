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
from codexd.protocol.passthrough import ResponsesStream
from codexd.protocol.responses import Usage, decode_event
from codexd.protocol.stream import ChatStream

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class Conversion(Protocol):
    """One answer on its way to one client."""

    @property
    def begun(self) -> bool:
        """Something of the answer has been seen: from here on the HTTP status is 200."""

    @property
    def done(self) -> bool:
        """The answer is complete; the upstream has nothing more to say."""

    @property
    def error(self) -> ApiError | None:
        """The answer has failed; nothing more is converted."""

    @property
    def usage(self) -> Usage | None: ...

    def feed(self, data: bytes) -> bytes:
        """Convert what one read brought; an empty result is common."""

    def eof(self) -> None:
        """The upstream has ended its stream; sets ``error`` when that came too early."""

    def failure(self, error: ApiError) -> bytes:
        """The frame that ends a stream which fails after its beginning."""

    def keepalive(self) -> bytes:
        """What keeps client and proxies waiting through a silence."""

    def document(self) -> bytes:
        """The whole answer as one JSON document, once done; for clients that do not stream."""


class ChatConversion:
    """Chat Completions. A client that does not stream gets the same chunks, folded."""

    def __init__(self, stream: ChatStream, *, streamed: bool) -> None:
        self._decoder = sse.Decoder()
        self._stream = stream
        self._streamed = streamed
        self._chunks: list[Chunk] = []
        self._broken: ApiError | None = None

    @property
    def begun(self) -> bool:
        return self._stream.begun

    @property
    def done(self) -> bool:
        return self._stream.done

    @property
    def error(self) -> ApiError | None:
        return self._broken or self._stream.error

    @property
    def usage(self) -> Usage | None:
        return self._stream.usage

    def feed(self, data: bytes) -> bytes:
        stream = self._stream
        if self.done or self.error is not None:
            return b""
        try:
            events = self._decoder.feed(data)
        except sse.EventTooLarge:
            self._broken = errors.stream_ended()
            return b""
        chunks = [chunk for event in events for chunk in stream.push(decode_event(event.data))]
        if not self._streamed:
            self._chunks += chunks
            return b""
        out = b"".join([b"data: %b\n\n" % _encode(chunk) for chunk in chunks])
        return out + DONE if stream.done else out

    def eof(self) -> None:
        self._stream.eof()

    def failure(self, error: ApiError) -> bytes:
        return b"data: %b\n\n" % error.body()

    def keepalive(self) -> bytes:
        return b": keepalive\n\n"

    def document(self) -> bytes:
        return _encode(fold(self._chunks))


class ResponsesConversion:
    """Responses. Every event of the upstream passes through the automaton, streamed or not."""

    def __init__(self, stream: ResponsesStream) -> None:
        self._decoder = sse.Decoder()
        self._stream = stream
        self._broken: ApiError | None = None

    @property
    def begun(self) -> bool:
        return self._stream.begun

    @property
    def done(self) -> bool:
        return self._stream.done

    @property
    def error(self) -> ApiError | None:
        return self._broken or self._stream.error

    @property
    def usage(self) -> Usage | None:
        return self._stream.usage

    def feed(self, data: bytes) -> bytes:
        stream = self._stream
        if self.done or self.error is not None:
            return b""
        try:
            events = self._decoder.feed(data)
        except sse.EventTooLarge:
            self._broken = errors.stream_ended()
            return b""
        out = b"".join([stream.push(event.data) for event in events])
        return out + DONE if stream.done else out

    def eof(self) -> None:
        self._stream.eof()

    def failure(self, error: ApiError) -> bytes:
        return self._stream.failure(error)

    def keepalive(self) -> bytes:
        return self._stream.keepalive()

    def document(self) -> bytes:
        if self._stream.response is None:
            raise ValueError("an answer without an end has no document")
        return self._stream.response

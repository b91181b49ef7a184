"""Frames of a websocket client (RFC 6455): bytes in, text messages out, and the reverse. Pure: no I/O.

    state        | left by                                                  | to
    -------------|----------------------------------------------------------|------------
    between      | a whole text frame, or a control frame                   | between
    between      | the first frame of a fragmented message                  | in a message
    in a message | its last fragment                                        | between
    any          | a close frame, a binary frame, anything RFC 6455 forbids | closed: ``Closed`` is raised

wsproto parses and makes all frames, except the usual one, a whole unfragmented text frame from the server, which is
taken directly (0.4 µs instead of 12 µs, measured). So wsproto only gets whole frames, and is always between two.
Extensions are not offered: with permessage-deflate each event would have to be inflated.
"""

from collections.abc import Iterator

from wsproto.connection import CLIENT, Connection
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from codexd.protocol.sse import MAX_EVENT_BYTES

MAX_MESSAGE = MAX_EVENT_BYTES
"""Bytes of one message, as over HTTP; the official client's limit is twice that."""

FRAGMENT = 1024 * 1024
"""Bytes of one frame that is sent; larger messages are sent in fragments of this size, as the official client does."""

_WHOLE_TEXT = 0x81


class Closed(Exception):
    """The server closed the websocket, or sent what it must not send. ``code``: of the close frame, or 1002 or 1009."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})" if reason else f"close code {code}")
        self.code = code


class Frames:
    """The frames of one connection. ``replies`` holds control frames to be sent: pongs.

    ``ended``: why nothing may follow. An end that was read together with messages is only here, because a server may
    close right behind the last event of an answer. ``growing``: the last read brought part of a message that is not
    complete, which pings do not.
    """

    __slots__ = (
        "_fragments",
        "_have",
        "_in_message",
        "_need",
        "_pieces",
        "_size",
        "_ws",
        "ended",
        "growing",
        "replies",
    )

    def __init__(self) -> None:
        self._ws = Connection(CLIENT)
        self._pieces: list[bytes] = []
        self._have = self._need = self._size = 0
        self._fragments: list[str] = []
        self._in_message = False
        self.replies = b""
        self.ended: Closed | None = None
        self.growing = False

    @property
    def pending(self) -> int:
        """Bytes of a message that has not come to its end."""
        return self._size + (self._have if self._pieces else 0)

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the bytes of a read; returns the text messages that became complete. Raises Closed if there are none.

        With messages before the end it returns those and sets ``ended``.
        """
        if self.ended is not None:
            raise self.ended
        messages: list[bytes] = []
        self.growing = False
        try:
            self._read(data, messages)
        except Closed as error:
            self.ended = error
            if not messages:
                raise
        return messages

    def _read(self, data: bytes, messages: list[bytes]) -> None:
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                self.growing = not self._pieces[0][0] & 0x08
                return
            data, self._pieces = b"".join(self._pieces), []
        at, size = 0, len(data)
        while at < size:
            start, end = _bounds(data, at, size)
            if end > size:
                self._pieces, self._have, self._need = [data[at:]], size - at, end - at
                self.growing = not data[at] & 0x08
                break
            if data[at] == _WHOLE_TEXT and not self._in_message:
                messages.append(data[start:end])
            else:
                self._other(data[at:end], messages)
            at = end

    def _other(self, frame: bytes, messages: list[bytes]) -> None:
        if not frame[0] & 0x08:
            self._in_message = self.growing = not frame[0] & 0x80
        self._ws.receive_data(frame)
        for event in self._ws.events():
            match event:
                case Ping():
                    self.replies += self._ws.send(event.response())
                case TextMessage():
                    self._fragments.append(event.data)
                    self._size += len(event.data)
                    if self._size > MAX_MESSAGE:
                        raise Closed(1009, f"a message of more than {MAX_MESSAGE} bytes")
                    if event.message_finished:
                        messages.append("".join(self._fragments).encode())
                        self._fragments, self._size = [], 0
                case CloseConnection():
                    raise Closed(int(event.code), event.reason or "")
                case BytesMessage():
                    raise Closed(1003, "a binary message")
                case _:
                    pass  # a pong that nobody asked for

    def encode(self, message: bytes) -> Iterator[bytes]:
        """Yields a text message as masked frames. ``message`` must be UTF-8."""
        at, size = 0, len(message)
        while at < size:
            end = min(at + FRAGMENT, size)
            while end < size and message[end] & 0xC0 == 0x80:
                end -= 1  # wsproto takes text, so a fragment ends between characters
            yield self._ws.send(TextMessage(message[at:end].decode(), message_finished=end == size))
            at = end


def _bounds(data: bytes, at: int, size: int) -> tuple[int, int]:
    """Returns start and end of the payload of the frame at ``at``; more than ``size`` if it is incomplete."""
    if size - at < 2:
        return size, at + 2
    length, start = data[at + 1], at + 2
    if length > 125:
        start += 2 if length == 126 else 8
        if length > 127:
            raise Closed(1002, "a masked frame")
        if start > size:
            return size, start
        length = int.from_bytes(data[at + 2 : start])
        if length > MAX_MESSAGE:
            raise Closed(1009, f"a message of more than {MAX_MESSAGE} bytes")
    return start, start + length

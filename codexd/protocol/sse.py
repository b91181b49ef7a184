"""Server-sent events: bytes in, events out, however the network splits the bytes.

Line splitters of HTTP clients break at U+2028, U+0085, VT and FF, which are legal inside JSON strings. The usual
helpers also insist on a ``content-type``, which the backend does not send. The event stream format:
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re

MAX_EVENT_BYTES = 32 * 1024 * 1024
"""Limit for one event. It is generous because an event may hold a whole image as base64, of some megabytes."""


MAX_LINES = 50_000
"""Lines of one event; JSON needs one, and the most careless printer one for each value."""


class EventTooLarge(ValueError):
    """The upstream sent more than ``MAX_EVENT_BYTES``, or MAX_LINES, without ending the event."""


_PLAIN = re.compile(rb"(?:event: .*\n)?data: (.*)\n\n")
"""The usual form of an event. Other valid forms are parsed by the slow path. The dot matches all but a line feed, as
``[^\n]`` does, in half of the time."""


LONG = 2048
"""Bytes of a read from which on line feeds are looked for, which is ten times as fast for each byte as a pattern, and
slower for each event."""


def _find_end(data: bytes) -> int:
    """Returns the offset of the first empty line's line feeds, or -1. One line feed is found sooner than two."""
    first = data.find(b"\n")
    return first if first < 0 else data.find(b"\n\n", first)


def _take_long(data: bytes, at: int, events: list[bytes]) -> int:
    """Appends events of the form of ``_PLAIN``; returns the offset behind the last one."""
    find, starts = data.find, data.startswith
    while True:
        start = at
        if starts(b"event: ", at) and (start := find(b"\n", at) + 1) == 0:
            return at
        if not starts(b"data: ", start) or (end := find(b"\n", start)) < 0 or not starts(b"\n", end + 1):
            return at
        events.append(data[start + 6 : end])
        at = end + 2


class EventDecoder:
    """Splits a byte stream into events; ``feed`` returns the ``data`` of the events that became complete.

    The ``event:`` line is ignored: it repeats the type in the data, and may be missing. The pieces of an unfinished
    event are kept in a list and joined once, so an event that arrives byte by byte costs linear time. An event that
    is unfinished at the end of the stream is dropped, as the format requires.
    """

    __slots__ = ("_cr", "_pieces", "_size", "_start")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._cr = False
        self._start = True

    @property
    def pending(self) -> int:
        """Bytes of an event that has not come to its end."""
        return self._size

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes and returns the joined ``data:`` lines of each complete event. Raises EventTooLarge."""
        if self._cr or b"\r" in data:
            data = self._unify(data)
        events: list[bytes] = []
        at = self._finish(data, events) if data and (self._pieces or self._start) else 0
        if len(data) > LONG:
            at = _take_long(data, at, events)
        else:
            while (found := _PLAIN.match(data, at)) is not None:
                events.append(found[1])
                at = found.end()
        if at < len(data):
            events += self._feed(data[at:] if at else data)
        return events

    def _finish(self, data: bytes, events: list[bytes]) -> int:
        """Completes the event that earlier bytes began; returns the offset behind it, where the fast path continues.

        Returns 0 when the event does not end in these bytes.
        """
        pieces = self._pieces
        if data[0] == 0x0A and pieces and pieces[-1].endswith(b"\n"):
            end = 1
        elif (end := _find_end(data) + 2) == 1:
            return 0
        pieces.append(data[:end])
        whole = b"".join(pieces)
        if not self._start and _take_long(whole, 0, events) == len(whole):
            pass
        elif (event := self._parse(whole[:-2])) is not None:
            events.append(event)
        self._pieces, self._size = [], 0
        return end

    def _feed(self, data: bytes) -> list[bytes]:
        if _find_end(data) < 0:
            self._pieces.append(data)
            self._size += len(data)
            if self._size > MAX_EVENT_BYTES:
                raise EventTooLarge(f"an event of more than {MAX_EVENT_BYTES} bytes")
            return []
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        self._pieces = [rest] if rest else []
        self._size = len(rest)
        return [event for block in blocks if (event := self._parse(block)) is not None]

    def _unify(self, data: bytes) -> bytes:
        # CR, LF and CRLF all end a line. A CR at the end of the last read was already counted as a line end.
        if self._cr and data.startswith(b"\n"):
            data = data[1:]
            self._cr = False
        if data:
            self._cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _parse(self, block: bytes) -> bytes | None:
        if self._start:
            self._start = False
            block = block.removeprefix(b"\xef\xbb\xbf")
        if len(block) > MAX_LINES and block.count(b"\n") > MAX_LINES:
            raise EventTooLarge(f"an event of more than {MAX_LINES} lines")
        data: list[bytes] = []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
        return b"\n".join(data) if data else None


def encode(name: bytes, data: bytes) -> bytes:
    """Returns one event as bytes. Newlines in ``data`` become blanks; in JSON they are only white space."""
    if b"\n" in data:
        data = data.replace(b"\n", b" ")
    return b"event: %b\ndata: %b\n\n" % (name, data)

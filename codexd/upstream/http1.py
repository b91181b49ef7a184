"""Parser of HTTP/1.1 responses (RFC 9112, strict): status line, header fields, end of the body. Pure: no I/O.

Raises httpx.RemoteProtocolError for invalid responses; their connection cannot be used any more.
"""

import re
from typing import Protocol

import httpx

MAX_HEAD = 64 * 1024
"""Maximum bytes of a status line with its headers, or of a chunked body's trailers."""

Fields = list[tuple[bytes, bytes]]

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\x00\r\n]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00\r\n]*)?\r\n")
_LENGTH = re.compile(r"[0-9]{1,18}")


def parse_head(head: bytes) -> tuple[int, Fields, bool]:
    """Returns status, fields (names in lower case), and whether the connection persists. ``head`` has no end mark."""
    first, *lines = head.split(b"\r\n")
    found = _STATUS.fullmatch(first)
    if found is None:
        raise httpx.RemoteProtocolError("the response has no HTTP/1.1 status line")
    tokens: list[bytes] = []
    fields: Fields = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise httpx.RemoteProtocolError("the response has an invalid header")
        name, value = field[1].lower(), field[2].rstrip(b" \t")
        if name == b"connection":
            tokens += [token.strip() for token in value.lower().split(b",")]
        fields.append((name, value))
    persistent = (found[1] == b"1" or b"keep-alive" in tokens) and b"close" not in tokens
    return int(found[2]), fields, persistent


def framing_of(method: str, status: int, fields: Fields, *, keep: bool) -> tuple["Framing", bool]:
    """Returns the framing of the body, and whether the connection can be reused. Raises RemoteProtocolError."""
    if method == "HEAD" or status in (204, 304):
        return Length(0), keep
    codings = [value.decode("latin-1").strip().lower() for name, value in fields if name == b"transfer-encoding"]
    lengths = {value.decode("latin-1") for name, value in fields if name == b"content-length"}
    if codings:
        if codings != ["chunked"]:
            raise httpx.RemoteProtocolError(f"the response has an unsupported transfer coding: {codings}")
        # With a content-length too, a proxy may have seen another end, so the connection is not reused.
        return Chunked(), keep and not lengths
    if lengths:
        length = lengths.pop()
        if lengths or not _LENGTH.fullmatch(length):
            raise httpx.RemoteProtocolError("the response has an invalid content-length")
        return Length(int(length)), keep
    return UntilClose(), False


# --- bodies


class Framing(Protocol):
    """Finds the end of a body. ``rest`` holds bytes that do not belong to it or cannot be decoded yet."""

    done: bool
    rest: bytes

    def feed(self, data: bytes) -> bytes:
        """Returns the content in the bytes of a read. Raises RemoteProtocolError."""

    def eof(self) -> None:
        """Handles the end of the connection. Raises RemoteProtocolError if the body is incomplete."""


class Length:
    __slots__ = ("_left", "done", "rest")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            data, self.rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        self.done = self._left == 0
        return data

    def eof(self) -> None:
        raise httpx.RemoteProtocolError(f"the connection ended {self._left} bytes before the response's end")


class UntilClose:
    __slots__ = ("done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def eof(self) -> None:
        self.done = True


class Chunked:
    """The chunked coding: size line, data, and so on, then trailers (``_ending``), then done.

    All chunks of a read are taken in one pass with an index; slicing the rest off for each would be quadratic.
    """

    __slots__ = ("_ending", "_left", "done", "rest")

    def __init__(self) -> None:
        self._left = 0  # bytes of the current chunk, with its line end
        self._ending = False
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        if self.rest:
            data, self.rest = self.rest + data, b""
        out: list[bytes] = []
        at, size = 0, len(data)
        left = self._left
        while not self._ending:
            if left > 2:
                piece = data[at : at + left - 2]
                out.append(piece)
                at += len(piece)
                left -= len(piece)
            if left:
                if size - at < left:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise httpx.RemoteProtocolError("a chunk of the response is longer than its size")
                at += 2
                left = 0
            found = _CHUNK.match(data, at)
            if found is None:
                if size - at > MAX_HEAD or b"\n" in data[at : at + MAX_HEAD]:
                    raise httpx.RemoteProtocolError("a chunk of the response has an invalid size")
                break
            at = found.end()
            length = int(found[1], 16)
            if length:
                left = length + 2
            else:
                self._ending = True
        self._left = left
        self.rest = data[at:]
        if self._ending:
            self._trailers()
        return out[0] if len(out) == 1 else b"".join(out)

    def _trailers(self) -> None:
        """Skips the trailer fields after the last chunk, up to an empty line."""
        if self.rest.startswith(b"\r\n"):
            self.done, self.rest = True, self.rest[2:]
        elif (end := self.rest.find(b"\r\n\r\n")) >= 0:
            self.done, self.rest = True, self.rest[end + 4 :]
        elif len(self.rest) > MAX_HEAD:
            raise httpx.RemoteProtocolError("the response's trailers are too long")

    def eof(self) -> None:
        raise httpx.RemoteProtocolError("the connection ended before the response's last chunk")

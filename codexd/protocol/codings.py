"""The content codings of requests (RFC 9110, section 8.4): gzip, deflate, br and zstd, up to a limit."""

import zlib
from collections.abc import Callable, Mapping

from codexd.protocol import zstd
from codexd.protocol.zstd import Undecodable

__all__ = ["Undecodable", "decompress"]

MAX_CODINGS = 4

MAX_MEMBERS = 16
"""Members of a gzip body (RFC 1952, section 2.2); each takes a copy of what follows it."""

_OVERHEAD = 64 * 1024
"""Bytes by which a coding may make a body larger."""


def decompress(codings: str, data: bytes, limit: int) -> bytes:
    """Returns a body without its codings, up to one byte more than ``limit``.

    ``codings`` is the value of ``content-encoding``, in the order in which they were applied. Raises Undecodable for
    data that is not so coded, and LookupError for a coding that is not known.
    """
    names = [name.strip().lower() for name in codings.split(",")]
    if len(names) > MAX_CODINGS:
        raise LookupError(codings)
    for number, name in enumerate(reversed(names), 1):
        if name not in ("", "identity"):
            data = _DECODERS[name](data, limit if number == len(names) else limit + _OVERHEAD)
    return data


def _gzip(data: bytes, limit: int) -> bytes:
    found = b""
    for _ in range(MAX_MEMBERS):
        reader = zlib.decompressobj(zlib.MAX_WBITS | 16)
        found += _inflated(reader, data, limit + 1 - len(found))
        data = reader.unused_data.lstrip(b"\0")
        if not data or len(found) > limit:
            return found
    raise Undecodable(f"it has more than {MAX_MEMBERS} members")


def _deflate(data: bytes, limit: int) -> bytes:
    # Without zlib's header (RFC 1950, section 2.2), as many clients understand the name.
    headed = len(data) > 1 and data[0] & 0xF == zlib.DEFLATED and (data[0] << 8 | data[1]) % 31 == 0
    return _inflated(zlib.decompressobj(zlib.MAX_WBITS if headed else -zlib.MAX_WBITS), data, limit + 1)


def _inflated(reader: "zlib._Decompress", data: bytes, size: int) -> bytes:
    try:
        found = reader.decompress(data, size)
    except zlib.error as error:
        raise Undecodable(str(error)) from error
    if not reader.eof and len(found) < size:
        raise Undecodable("the data ends too early")
    return found


def _brotli(data: bytes, limit: int) -> bytes:
    import brotli  # imported when one comes, as zstd is

    reader, found = brotli.Decompressor(), b""
    try:
        while not reader.is_finished() and len(found) <= limit:
            piece = reader.process(data, output_buffer_limit=limit + 1 - len(found))
            if not piece and not data:
                raise Undecodable("the data ends too early")
            found, data = found + piece, b""
    except brotli.error as error:
        raise Undecodable(str(error)) from error
    return found[: limit + 1]


_DECODERS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": zstd.decompress,
}

"""Limits of what a JSON document becomes, checked on its bytes, before anything is built of it.

64 MiB of text are one object, and 64 MiB of ``{},`` are twenty million: gigabytes of memory and many seconds. Bytes are
counted in pieces, so that a thread which does it gives way to others.
"""

from codexd import errors

SMALL = 1024
"""Bytes below which ``measure`` does not look at a document."""

ESCAPES = 50
"""Escapes in texts, such as line ends, that count as one value: a text is decoded in one call, without interruption."""

_PIECE = 256 * 1024

_TEXT = bytes(set(range(256)) - set(b",[{"))
"""All bytes except ``,``, ``[`` and ``{``. Deleting them takes one pass over the bytes; counting each takes three."""


def exceeds(body: bytes, most: int) -> bool:
    """Returns whether a JSON document has more values, of which ESCAPES escapes in its texts count as one."""
    if len(body) <= most:
        return False
    escapes = _count(body, b"\\") // ESCAPES
    return escapes > most or (_most(body) + escapes > most and count(body, most) + escapes > most)


def measure(body: bytes, most: int, enough: int) -> int:
    """Returns the number of a document's values. Raises ApiError 413 for more than ``most``, as ``exceeds`` counts.

    It may be more than there are, as long as it is no more than ``enough``: counting takes longer than decoding. For a
    small document it is a guess.
    """
    if len(body) < SMALL and len(body) <= most:
        return len(body) // 8
    found = _most(body)
    if found <= enough and found + len(body) // ESCAPES <= most:
        return found
    escapes = _count(body, b"\\") // ESCAPES
    if escapes <= most:
        found = count(body, most)
    if found + escapes > most:
        raise errors.too_many_items(most)
    return found


def _most(body: bytes) -> int:
    """Returns a number that the document's values cannot exceed; a text with code in it may have a high one."""
    return sum(len(body[at : at + _PIECE].translate(None, _TEXT)) for at in range(0, len(body), _PIECE))


def _count(body: bytes, mark: bytes) -> int:
    return sum(body.count(mark, at, at + _PIECE) for at in range(0, len(body), _PIECE))


def count(body: bytes, most: int) -> int:
    """Returns the number of a document's values, or any number above ``most``, as soon as it is known.

    Each value follows a comma or is the first in an object or a list. The document need not be valid.
    """
    found, inside, at, size = 0, False, 0, len(body)
    while at < size and found <= most:
        end = min(at + _PIECE, size)
        piece = body[at:end]
        if (end - at - len(piece.rstrip(b"\\"))) % 2:
            end += 1  # not between a backslash and what it escapes
            piece = body[at:end]
        # Backslashes are only in strings: without escaped ones, and then escaped quotes, each quote is a string's end.
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[inside::2])
        found += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        inside ^= not len(parts) % 2
        at = end
    return found

"""Token counts for cases where the backend's count is unknown.

Of a request they are rough: 4 bytes of text per token, and 0 for images and files, whose tokens do not depend on their
size in bytes. Of an answer they are counted from below: o200k_base splits a text into words, numbers of three digits,
punctuation and white space, and each piece is at least one token. The pieces here are as large as its own or larger.
"""

import math
import re
from collections.abc import Callable
from functools import cache, partial

import msgspec

from codexd.protocol.codex.events import Usage
from codexd.protocol.codex.request import InputItem, InputText, Message, OutputText, UpstreamRequest

BYTES_PER_TOKEN = 4

_DATA = re.compile(rb'"data:[a-z]+/[^"\\]*;base64,[^"\\]*"')
"""An image or a file inside JSON. A text cannot match, because its quotation marks are escaped."""


def tokens_of(size: int) -> int:
    """Returns the estimated tokens of ``size`` bytes of text."""
    return math.ceil(size / BYTES_PER_TOKEN)


def estimated_usage(tokens_in: int, tokens_out: int) -> Usage:
    """Returns the usage of an answer that was cut before the backend reported it."""
    return Usage(input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out)


_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0dff"
    "\u0e31-\u0e4e\u0eb1-\u0ece\u1000-\u109f\u1780-\u17d3"
)
"""Vowel signs and accents, which belong to a word."""

_UPPER, _LOWER = rf"(?:[^\W\d_a-z]|[{_MARKS}])", rf"(?:[^\W\d_A-Z]|[{_MARKS}])"
"""Letters; those outside ASCII count as both."""

_SHORT = "(?:'(?:s|t|re|ve|m|ll|d))?"

_PIECE = re.compile(
    rf"(?:[^\r\n\w]|_)?{_UPPER}*{_LOWER}+{_SHORT}|(?:[^\r\n\w]|_)?{_UPPER}+{_LOWER}*{_SHORT}"
    r"|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""A piece of text that is at least one token."""

_LONGEST, _LONGEST_RUN = 32, 128
"""Characters of ASCII in a token: letters, of nearly all; and runs of blanks or of one sign."""

_SCRIPTS = (
    ("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", 0.35),  # Chinese, Japanese
    ("[\uac00-\ud7af\u1100-\u11ff]", 0.3),  # Korean
    ("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]", 0.2),  # Thai and others without blanks
    ("[\U0001f000-\U0001faff]", 0.5),  # emoji
    ("[\u0370-\u1fff]", 0.15),  # the other alphabets
)
"""Tokens of a character, at least, in texts of these scripts; measured with o200k_base."""


_WINDOW = 32 * 1024
"""Characters that are looked at together: a pattern takes a hundred bytes of memory for each letter of a word."""

_MAX_PIECE = 256
"""Characters of a piece that is still looked at as one when more of it comes."""


def _tokens(piece: str) -> float:
    if piece.isascii():
        return max(1.0, len(piece) / (_LONGEST if piece[-1:].isalnum() else _LONGEST_RUN))
    return max(1.0, sum(len(script.findall(piece)) * weight for script, weight in _scripts()))


@cache
def _scripts() -> list[tuple[re.Pattern[str], float]]:
    # Not at start-up: it takes six milliseconds, and most daemons never count such a text.
    return [(re.compile(script), weight) for script, weight in _SCRIPTS]


class TokenCounter:
    """Counts the tokens of a text that comes in pieces, from below. ``limit``: None counts without an end."""

    def __init__(self, limit: int | None) -> None:
        self._limit = math.inf if limit is None else limit
        self._room = self._limit
        self._pending: list[str] = []
        self._waiting = 0
        self._before = 0.0
        self._last = ""

    def total(self) -> int:
        """Returns the tokens so far."""
        self._count_pending()
        return math.ceil(self._before + sum(map(_tokens, _PIECE.findall(self._last))))

    def take(self, text: str) -> str:
        """Adds a piece; returns the part of it that fits."""
        # A token has one character at least: most answers end before they have as many as they may have tokens.
        self._room -= len(text)
        if self._room >= 0:
            self._pending.append(text)
            self._waiting += len(text)
            if self._waiting > _WINDOW:
                self._count_pending()
            return text
        self._count_pending()
        for at in range(0, len(text), _WINDOW):
            whole = self._last + text[at : at + _WINDOW]
            total = self._before
            for found in _PIECE.finditer(whole):
                tokens = _tokens(found[0])
                if total + tokens > self._limit:
                    end = found.start() + _fitting(found[0], self._limit - total)
                    fits = text[: max(0, at + end - len(self._last))]
                    self._before, self._last = min(total + tokens, self._limit), ""
                    return fits
                total += tokens
            self._count(whole)
        return text

    def _count_pending(self) -> None:
        if self._pending:
            text, self._pending, self._waiting = "".join(self._pending), [], 0
            for at in range(0, len(text), _WINDOW):
                self._count(self._last + text[at : at + _WINDOW])

    def _count(self, whole: str) -> None:
        """Counts all pieces but the last two, which the next text may continue: ``it``, ``'`` and ``it's``."""
        pieces = _PIECE.findall(whole)
        kept = pieces[-2:]
        if sum(map(len, kept)) > _MAX_PIECE:
            kept = []
        self._before += sum(map(_tokens, pieces[: len(pieces) - len(kept)]))
        self._last = "".join(kept)


def _fitting(piece: str, tokens: float) -> int:
    """Returns how many characters of a piece of several tokens fit."""
    if tokens < 1:
        return 0
    low, high = 0, len(piece)
    while low < high:
        middle = (low + high + 1) // 2
        # What is cut off a piece may be several: 漢漢B漢 is one, and 漢漢B two.
        needed = sum(map(_tokens, _PIECE.findall(piece[:middle])))
        low, high = (middle, high) if needed <= tokens else (low, middle - 1)
    return low


def counted(request: UpstreamRequest, *, now: bool) -> Callable[[], int]:
    """Returns a function that counts the tokens of a request. ``now``: at once, and does not keep the request."""
    if not now:
        return partial(prompt_tokens, request)
    tokens = prompt_tokens(request)
    return lambda: tokens


def prompt_tokens(request: UpstreamRequest) -> int:
    size = 0 if request.instructions is msgspec.UNSET else len(request.instructions.encode())
    if request.tools is not msgspec.UNSET:
        size += len(msgspec.json.encode(request.tools))
    return tokens_of(size + sum(map(_size, request.input)))


def _size(item: InputItem) -> int:
    if isinstance(item, Message):
        return sum(len(part.text.encode()) for part in item.content if isinstance(part, InputText | OutputText))
    encoded = b"".join(bytes(value) for value in item.values()) if isinstance(item, dict) else msgspec.json.encode(item)
    return len(encoded) - sum(len(found[0]) for found in _DATA.finditer(encoded))

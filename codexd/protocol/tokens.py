"""Rough token counts for cases where the backend's count is unknown: 4 bytes of text per token.

Images and files count as 0, because their tokens do not depend on their size in bytes.
"""

import math
import re

import msgspec

from codexd.protocol.codex.events import Usage
from codexd.protocol.codex.request import InputItem, InputText, Message, OutputText, UpstreamRequest

BYTES_PER_TOKEN = 4

_DATA = re.compile(rb'"data:[a-z]+/[^"\\]*;base64,[^"\\]*"')
"""An image or a file inside JSON. A text cannot match, because its quotation marks are escaped."""


def tokens_of(size: int) -> int:
    """Returns the estimated tokens of ``size`` bytes of text."""
    return math.ceil(size / BYTES_PER_TOKEN)


def estimated_usage(tokens_in: int, spent: int) -> Usage:
    """Returns the usage of an answer that was cut after ``spent`` bytes, before the backend reported it."""
    tokens_out = tokens_of(spent)
    return Usage(input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out)


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

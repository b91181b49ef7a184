"""A rough count of a request's tokens, where the backend's own is not to be had: 4 bytes of text a token.

Images and files count nothing: their size in bytes says nothing of their tokens.
"""

import re

import msgspec

from codexd.protocol.cut import estimate
from codexd.protocol.responses import InputItem, InputText, Message, OutputText, UpstreamRequest

_DATA = re.compile(rb'"data:[a-z]+/[^"\\]*;base64,[^"\\]*"')
"""An image or a file, inside JSON: inside a text the quotation marks would be escaped."""


def prompt_tokens(request: UpstreamRequest) -> int:
    size = 0 if request.instructions is msgspec.UNSET else len(request.instructions.encode())
    if request.tools is not msgspec.UNSET:
        size += len(msgspec.json.encode(request.tools))
    return estimate(size + sum(map(_size, request.input)))


def _size(item: InputItem) -> int:
    if isinstance(item, Message):
        return sum(len(part.text.encode()) for part in item.content if isinstance(part, InputText | OutputText))
    encoded = b"".join(bytes(value) for value in item.values()) if isinstance(item, dict) else msgspec.json.encode(item)
    return len(encoded) - sum(len(found[0]) for found in _DATA.finditer(encoded))

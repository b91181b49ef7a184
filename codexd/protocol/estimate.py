"""A rough count of a request's tokens, where the backend's own is not to be had: 4 bytes of text a token.

Images and files count nothing: their size in bytes says nothing of their tokens.
"""

import msgspec
from msgspec import Raw

from codexd.protocol.cut import estimate
from codexd.protocol.responses import InputItem, InputText, Message, OutputText, UpstreamRequest


def prompt_tokens(request: UpstreamRequest) -> int:
    size = 0 if request.instructions is msgspec.UNSET else len(request.instructions.encode())
    if request.tools is not msgspec.UNSET:
        size += len(msgspec.json.encode(request.tools))
    return estimate(size + sum(map(_size, request.input)))


def _size(item: InputItem) -> int:
    if isinstance(item, Message):
        return sum(len(part.text.encode()) for part in item.content if isinstance(part, InputText | OutputText))
    if isinstance(item, dict):
        return sum(len(bytes(value)) for value in item.values() if not _is_data(value))
    encoded = msgspec.json.encode(item)
    return 0 if b'"data:' in encoded else len(encoded)


def _is_data(value: Raw) -> bool:
    return b'"data:' in bytes(value)

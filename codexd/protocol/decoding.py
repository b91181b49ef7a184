"""Decoding of JSON from outside: requests, the backend's and the issuer's answers, state files, control lines.

msgspec raises RecursionError for JSON that is nested too deeply, and UnicodeDecodeError for some text that is not
UTF-8. Neither is its DecodeError, and one that nobody expects ends a task and all that depends on it. Here all failures
are msgspec's DecodeError, of which ValidationError, for JSON of another shape, is one. Nothing else decodes JSON.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import msgspec
from msgspec import Raw

_T = TypeVar("_T")
_Data = bytes | bytearray | memoryview | str | Raw


class TooDeep(msgspec.DecodeError):
    """The JSON is nested more deeply than the interpreter allows, which is about a thousand levels."""

    def __init__(self) -> None:
        super().__init__("it is nested too deeply")


class NotUtf8(msgspec.DecodeError):
    """Text that is not UTF-8, from a byte on."""

    def __init__(self, start: int) -> None:
        super().__init__(f"it is not UTF-8 (byte {start})")


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What ``Decoder.raw`` raises."""


class Decoder(Generic[_T]):
    """A decoder for one type, as msgspec's own. ``raw`` is that one, for each event of a stream; see UNREADABLE."""

    __slots__ = ("_decode", "raw")

    raw: Callable[[_Data], _T]

    @overload
    def __init__(self, kind: type[_T]) -> None: ...
    @overload
    def __init__(self, kind: Any) -> None: ...

    def __init__(self, kind: Any) -> None:
        self.raw = self._decode = msgspec.json.Decoder(kind).decode

    def decode(self, data: _Data) -> _T:
        """Decodes a document. Raises msgspec.DecodeError."""
        try:
            found: _T = self._decode(data)
        except RecursionError:
            raise TooDeep from None
        except UnicodeDecodeError as error:
            raise NotUtf8(error.start) from error
        return found


@overload
def decode(data: _Data) -> Any: ...
@overload
def decode(data: _Data, *, type: type[_T]) -> _T: ...
@overload
def decode(data: _Data, *, type: Any) -> Any: ...


def decode(data: _Data, *, type: Any = Any) -> Any:  # noqa: A002 - msgspec's own word
    """Decodes a document, of that type. Raises msgspec.DecodeError."""
    try:
        return msgspec.json.decode(data, type=type)
    except RecursionError:
        raise TooDeep from None
    except UnicodeDecodeError as error:
        raise NotUtf8(error.start) from error

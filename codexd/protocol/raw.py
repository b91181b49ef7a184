"""JSON objects of which codexd reads one or two keys and carries the rest unchanged."""

import operator
import struct
from collections.abc import Sequence
from typing import TypeGuard

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd.protocol import decoding

RawObject = dict[str, Raw]
"""A JSON object whose values stay encoded until they are needed."""

_NULL = Raw(b"null")

_TEXT = decoding.Decoder(str)
_text = _TEXT.raw

_first = struct.Struct("c").unpack_from  # Raw has no slices, and a copy takes longer
_QUOTE = (b'"',)


def encoded(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))


def unchanged(new: Sequence[object], old: Sequence[object]) -> bool:
    """Returns whether both lists hold the same objects: nothing in one of them was replaced."""
    return len(new) == len(old) and all(map(operator.is_, new, old))


def given(raw: Raw | UnsetType) -> TypeGuard[Raw]:
    """Returns whether a value is neither missing nor null. Raw cannot be in a union with None."""
    return raw is not UNSET and raw != _NULL


def is_text(raw: Raw | UnsetType | None) -> TypeGuard[Raw]:
    """Returns whether a value is a string, by its first byte: msgspec has checked a value that it leaves encoded.

    For long values: ``plain`` decodes a text, and takes ten times as long for a list.
    """
    return isinstance(raw, Raw) and _first(raw) == _QUOTE


def plain(raw: Raw | None) -> str | None:
    """Returns the string in a raw value; None for any other type. Raises msgspec.DecodeError."""
    if raw is None:
        return None
    try:
        return _text(raw)
    except msgspec.ValidationError:
        return None
    except decoding.UNREADABLE:
        return _TEXT.decode(raw)


def type_of(value: Struct | RawObject) -> str | None:
    """Returns the ``type`` of an item, a tool or a part, whether it is a struct or a raw object."""
    if isinstance(value, dict):
        return None if (own := value.get("type")) is None else plain(own)
    tag = type(value).__struct_config__.tag
    return tag if isinstance(tag, str) else None


def role_of(item: Struct | RawObject) -> str | None:
    return plain(item.get("role")) if isinstance(item, dict) else getattr(item, "role", None)

"""JSON objects of which codexd touches a member or two and carries the rest as it came."""

from typing import TypeGuard

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

RawObject = dict[str, Raw]
"""A JSON object of which codexd touches a key or two and carries the rest as it is."""

_NULL = Raw(b"null")


def given(raw: Raw | UnsetType) -> TypeGuard[Raw]:
    """Neither missing nor null: Raw cannot stand in a union with None."""
    return raw is not UNSET and raw != _NULL


def plain(raw: Raw | None) -> str | None:
    """The string in a raw value; None for anything else."""
    try:
        return None if raw is None else msgspec.json.decode(raw, type=str)
    except msgspec.ValidationError:
        return None


def type_of(value: Struct | RawObject) -> str | None:
    """The ``type`` of an item, a tool or a part, in whichever form it is held."""
    if isinstance(value, dict):
        return plain(value.get("type"))
    tag = type(value).__struct_config__.tag
    return tag if isinstance(tag, str) else None

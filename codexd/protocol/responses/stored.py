"""Queries about a stored response: its input items in pages, each with an id, and its compaction. Pure functions."""

import hashlib
import sys
from collections.abc import Callable

import msgspec
from msgspec import Raw, Struct

from codexd import errors
from codexd.protocol import decoding
from codexd.protocol.raw import RawObject, plain
from codexd.reasons import quoted

MAX_PAGE = 100

_REFERENCE = Raw(b'"item_reference"')

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


class ItemList(Struct, frozen=True, kw_only=True):
    data: list[RawObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


def input_items(items: list[RawObject], *, limit: int = 20, order: str = "desc", after: str | None = None) -> ItemList:
    """Returns a page of the input. Raises ApiError 400 for an invalid page."""
    if not 1 <= limit <= MAX_PAGE:
        raise errors.bad_request(f"limit must be between 1 and {MAX_PAGE}.", param="limit")
    if order not in ("asc", "desc"):
        raise errors.bad_request("order must be asc or desc.", param="order")
    found = [_with_id(item, number) for number, item in enumerate(items)]
    if order == "desc":
        found.reverse()
    ids = [decoding.decode(item["id"], type=str) for item in found]
    if after is not None and after not in ids:
        raise errors.bad_request(f"This response has no input item {quoted(after)}.", param="after")
    start = 0 if after is None else ids.index(after) + 1
    page, names = found[start : start + limit], ids[start : start + limit]
    return ItemList(
        data=page,
        first_id=names[0] if names else None,
        last_id=names[-1] if names else None,
        has_more=start + limit < len(found),
    )


def _with_id(item: RawObject, number: int) -> RawObject:
    kind = bytes(item.get("type", Raw(b'"message"'))).decode().strip('"')
    if "id" not in item:
        digest = hashlib.sha256(msgspec.json.encode((number, item))).hexdigest()[:32]
        item = {"id": Raw(msgspec.json.encode(f"{_PREFIXES.get(kind, 'item')}_{digest}")), **item}
    return {"type": Raw(msgspec.json.encode(kind)), **item}


COMPACTION_TRIGGER: RawObject = {"type": Raw(b'"compaction_trigger"')}
"""The last input item of a request for compaction instead of an answer (section F of the protocol notes)."""


class Compaction(Struct, frozen=True, kw_only=True):
    """A compacted conversation. ``output`` starts the next request: the user's messages and one item for the rest."""

    id: str
    created_at: int
    output: list[RawObject]
    usage: Raw
    object: str = "response.compaction"


class _Document(Struct):
    id: str
    created_at: float
    output: list[RawObject]
    usage: Raw


def compacted(document: bytes, input: list[RawObject]) -> Compaction:  # noqa: A002 - the API's own word
    """Returns the compaction in an answer. Raises ApiError 502 when it holds none."""
    whole = decoding.decode(document, type=_Document)
    found = [item for item in whole.output if item.get("type") == Raw(b'"compaction"')]
    if not found:
        raise errors.not_compacted()
    kept = [item for item in input if bytes(item.get("role", b"")) in (b'"user"', b'"developer"', b'"system"')]
    output = [_as_message(_with_id(item, number)) for number, item in enumerate(kept)]
    output += [_with_id(item, len(kept)) for item in found]
    return Compaction(id=whole.id, created_at=int(whole.created_at), output=output, usage=whole.usage)


def _as_message(item: RawObject) -> RawObject:
    """Returns a message with every member that the schema of an output item requires."""
    item = {"status": Raw(b'"completed"'), **item}
    if (text := plain(item.get("content"))) is not None:
        item["content"] = Raw(msgspec.json.encode([{"type": "input_text", "text": text}]))
    return item


def references(items: list[RawObject]) -> list[str]:
    """Returns the ids that items name, each once."""
    return list(dict.fromkeys(plain(item.get("id")) or "" for item in items if _is_reference(item)))


def resolved(
    items: list[RawObject], lookup: Callable[[str], RawObject | None], limit: int = sys.maxsize
) -> list[RawObject]:
    """Returns the items with each ``item_reference`` replaced by what it names.

    Raises ApiError 404 if unknown, and 413 if all that are named have more bytes than ``limit``: one item may be named
    any number of times.
    """
    if not any(map(_is_reference, items)):
        return items
    found: list[RawObject] = []
    room = limit
    for index, item in enumerate(items):
        if _is_reference(item):
            name = plain(item.get("id")) or ""
            if (stored := lookup(name)) is None:
                raise errors.no_such_item(name, f"input[{index}]")
            item = stored
            room -= sum(len(memoryview(value)) for value in item.values())
            if room < 0:
                raise errors.too_large_together(limit)
        found.append(item)
    return found


def _is_reference(item: RawObject) -> bool:
    """Returns whether an item names another one; clients may leave out the type."""
    kind = item.get("type", Raw(b"null"))
    return kind == _REFERENCE or (kind == Raw(b"null") and item.keys() <= {"id", "type"} and "id" in item)


def as_items(input: str | list[RawObject]) -> list[RawObject]:  # noqa: A002 - the API's own word
    """Returns a request's input as items, whether it is a string or a list."""
    if not isinstance(input, str):
        return input
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": input}]}
    return [{key: Raw(msgspec.json.encode(value)) for key, value in message.items()}]

"""Ids of tool calls that the backend accepts: unique in a request, and at most 64 characters. Pure functions.

Clients send longer ones, none at all, and the same one in several turns (``shell:0``). Such an id is replaced by a
digest of itself and of how many times it occurred before, in the call and in its result, so each turn gets the same.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Sequence

import msgspec
from msgspec import Raw

from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.codex.request import FunctionCall, FunctionCallOutput, InputItem
from codexd.protocol.raw import plain, role_of, type_of

MAX_ID = 64


Link = tuple[str | None, str | None]
"""An item's type and call id."""


def links_of(items: Sequence[InputItem]) -> list[Link]:
    return [(type_of(item), call_id_of(item)) for item in items]


def unique(items: Sequence[InputItem], links: Sequence[Link] | None = None) -> tuple[Sequence[InputItem], Adjustments]:
    """Returns the items with accepted call ids; the identical sequence if all are. Each result follows its call.

    ``links`` are those of ``links_of``, where they are known.
    """
    links = links_of(items) if links is None else links
    if _are_good(links):
        return items, NONE
    calls = [own for kind, own in links if own is not None and not _is_result(kind)]
    made: list[InputItem] = []
    taken = set(calls)
    count: defaultdict[str, int] = defaultdict(int)
    waiting: defaultdict[str, deque[str]] = defaultdict(deque)
    last: dict[str, str] = {}
    turn, turns = 0, dict[str, int]()
    for item, (kind, own) in zip(items, links, strict=True):
        if own is None:
            turn += role_of(item) == "user"
            made.append(item)
        elif _is_result(kind):
            if waiting[own]:
                new = waiting[own].popleft()
            else:
                # Its call is not there, or comes later and is another one.
                new = last.get(own) or _fitting(own, -1 if own in taken else 0, taken)
            made.append(_with(item, own, new))
        else:
            if turns.get(own) != turn:
                waiting[own].clear()  # calls of an earlier turn are not answered any more
            turns[own] = turn
            new = _fitting(own, count[own], taken)
            count[own] += 1
            waiting[own].append(new)
            last[own] = new
            made.append(_with(item, own, new))
    return made, (Adjustment("call_ids", "replaced"),)


def _are_good(links: Sequence[Link]) -> bool:
    """Returns whether all ids are short, each call has its own, and no result comes before its call."""
    calls, results = set[str](), set[str]()
    for kind, own in links:
        if own is None:
            continue
        if not 0 < len(own) <= MAX_ID:
            return False
        if _is_result(kind):
            results.add(own)
        elif own in calls or own in results:
            return False
        else:
            calls.add(own)
    return True


def call_id_of(item: InputItem) -> str | None:
    """Returns the id that joins a call and its result; None for any other item."""
    if isinstance(item, dict):
        return None if (own := item.get("call_id")) is None else plain(own)
    return item.call_id if isinstance(item, FunctionCall | FunctionCallOutput) else None


def _is_result(kind: str | None) -> bool:
    return kind is not None and kind.endswith("_output")


def _fitting(own: str, before: int, taken: set[str]) -> str:
    if before == 0 and 0 < len(own) <= MAX_ID:
        return own
    new, salt = "", 0
    while not new or new in taken:
        digest = hashlib.sha256(msgspec.json.encode((own, before, salt))).hexdigest()
        new, salt = f"call_{digest[:32]}", salt + 1
    return new


def _with(item: InputItem, own: str, new: str) -> InputItem:
    if new == own:
        return item
    if isinstance(item, dict):
        return {**item, "call_id": Raw(msgspec.json.encode(new))}
    return msgspec.structs.replace(item, call_id=new)

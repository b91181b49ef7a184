"""Pairs of tool calls and results. The backend refuses a request with a call or a result that has no counterpart.

Clients that trim a conversation break such pairs. codexd refuses the request and names the place, as OpenAI does. With
``codex.repair_history`` it repairs the pairs and reports that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw

from codexd import errors
from codexd.protocol.adjustments import Adjustment, Adjustments
from codexd.protocol.codex import ids
from codexd.protocol.codex.request import InputItem
from codexd.reasons import quoted

NO_OUTPUT = "[no output]"
"""Placeholder for the result of a call that the client no longer has."""

_OUTPUTS = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
_KINDS = frozenset(_OUTPUTS) | frozenset(_OUTPUTS.values())
_NO_LINK: ids.Link = (None, None)


class Placed(NamedTuple):
    """An input item and its place in the client's request, such as ``messages[3]``."""

    item: InputItem
    where: str


def pair(items: Sequence[Placed], *, repair: bool) -> tuple[list[InputItem], Adjustments]:
    """Returns the items with calls and results in pairs, with ids that the backend accepts.

    With ``repair``, adds missing results and drops orphaned ones. Otherwise raises ApiError 400 naming the first.
    """
    own_items = [placed.item for placed in items]
    links = ids.links_of(own_items)
    found, renamed = ids.unique(own_items, links)
    if found is not own_items:
        links = ids.links_of(found)
    links = [link if link[0] in _KINDS and link[1] is not None else _NO_LINK for link in links]
    if not any(kind for kind, _ in links):
        return list(found), renamed
    calls = {call_id for kind, call_id in links if kind in _OUTPUTS}
    results = {call_id for kind, call_id in links if kind is not None and kind not in _OUTPUTS}
    paired: list[InputItem] = []
    adjusted = renamed
    for item, (own, where), (kind, call_id) in zip(found, items, links, strict=True):
        if kind is None or call_id is None or call_id in (results if kind in _OUTPUTS else calls):
            paired.append(item)
        elif not repair:
            raise _alone(kind, ids.call_id_of(own) or call_id, where)
        elif kind in _OUTPUTS:
            adjusted += (Adjustment("tool_result", "added"),)
            paired += [item, _no_output(_OUTPUTS[kind], call_id)]
        else:
            adjusted += (Adjustment("tool_result", "dropped"),)
    return paired, adjusted


def _no_output(kind: str, call_id: str) -> InputItem:
    output = {"type": kind, "call_id": call_id, "output": NO_OUTPUT}
    return {key: Raw(msgspec.json.encode(value)) for key, value in output.items()}


def _alone(kind: str, call_id: str, where: str) -> errors.ApiError:
    what = (
        f"{where} calls a tool (id {quoted(call_id)}), but its result is missing"
        if kind in _OUTPUTS
        else f"{where} is the result of a tool call (id {quoted(call_id)}) that is not in the request"
    )
    return errors.bad_request(
        f"{what}. Send calls and results together, or set codex.repair_history = true to have codexd repair them.",
        param=where,
    )

"""Calls of tools and their results: every call needs its result and every result its call, or the backend refuses all.

Clients that trim a conversation cut such pairs apart. OpenAI refuses that, and so does codexd, naming the place; with
``codex.repair_history`` it mends it and says so.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw

from codexd import errors
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.codex.request import InputItem
from codexd.protocol.raw import plain, type_of

NO_OUTPUT = "[no output]"
"""What stands in for the result of a call that the client no longer has."""

_OUTPUTS = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
_KINDS = frozenset(_OUTPUTS) | frozenset(_OUTPUTS.values())


class Placed(NamedTuple):
    """An input item, and where it stands in the client's request: ``messages[3]``."""

    item: InputItem
    where: str


def pair(items: Sequence[Placed], *, repair: bool) -> tuple[list[InputItem], Adjustments]:
    """Returns the items with calls and results in pairs.

    Raises ApiError 400 naming the first without a counterpart, unless ``repair`` adds or drops what is missing.
    """
    links = [_link(placed.item) for placed in items]
    if not any(links):
        return [placed.item for placed in items], NONE
    calls = {link[1] for link in links if link and link[0] in _OUTPUTS}
    results = {link[1] for link in links if link and link[0] not in _OUTPUTS}
    paired: list[InputItem] = []
    adjusted = NONE
    for (item, where), link in zip(items, links, strict=True):
        kind, call_id = link or (None, "")
        if kind is None or call_id in (results if kind in _OUTPUTS else calls):
            paired.append(item)
        elif not repair:
            raise _alone(kind, call_id, where)
        elif kind in _OUTPUTS:
            adjusted += (Adjustment("tool_result", "added"),)
            paired += [item, _no_output(_OUTPUTS[kind], call_id)]
        else:
            adjusted += (Adjustment("tool_result", "dropped"),)
    return paired, adjusted


def _link(item: InputItem) -> tuple[str, str] | None:
    """Type and call id of a call or a result; None for anything else."""
    kind = type_of(item)
    if kind not in _KINDS:
        return None
    call_id = plain(item.get("call_id")) if isinstance(item, dict) else getattr(item, "call_id", None)
    return None if call_id is None else (str(kind), call_id)


def _no_output(kind: str, call_id: str) -> InputItem:
    output = {"type": kind, "call_id": call_id, "output": NO_OUTPUT}
    return {key: Raw(msgspec.json.encode(value)) for key, value in output.items()}


def _alone(kind: str, call_id: str, where: str) -> errors.ApiError:
    what = (
        f"{where} calls a tool (id {call_id!r}), and no result of it follows"
        if kind in _OUTPUTS
        else f"{where} is the result of a tool call (id {call_id!r}) that is nowhere in the request"
    )
    return errors.bad_request(
        f"{what}. Send calls and results together, or set codex.repair_history = true to have codexd mend it.",
        param=where,
    )

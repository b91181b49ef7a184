"""Tool names that the backend accepts, and forced choices as instructions. Pure functions."""

import hashlib
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec
from msgspec import Raw

from codexd.protocol.codex.request import InputItem, NamedTool, Tool
from codexd.protocol.raw import RawObject, plain, type_of

MAX_NAME = 64

_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}")

Choice = Literal["none", "auto", "required"] | NamedTool | Raw

_OBJECT = msgspec.json.Decoder(RawObject)


def name_of(tool: Tool | InputItem) -> str | None:
    if isinstance(tool, dict):
        return plain(tool.get("name"))
    return getattr(tool, "name", None)


def wire_name(name: str) -> str:
    """Returns a name that the backend accepts: the same name, or a cleaned prefix with a hash. Deterministic."""
    if _NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[: MAX_NAME - 9]}_{digest}"


class Named(NamedTuple):
    """Tools, items and choice with accepted names. ``names`` maps these back to the client's own."""

    tools: list[Tool]
    items: list[InputItem]
    choice: Choice
    names: dict[str, str]


_CALLS = frozenset({"function_call", "custom_tool_call"})


def name(tools: Iterable[Tool], items: Iterable[InputItem], choice: Choice) -> Named:
    """Renames every tool whose name the backend refuses, in tools, items and choice."""
    names: dict[str, str] = {}

    def renamed(thing: Tool | InputItem, own: str | None) -> Tool | InputItem:
        wire = own if own is None else wire_name(own)
        if own is None or wire == own:
            return thing
        names[str(wire)] = own
        if isinstance(thing, dict):
            return {**thing, "name": Raw(msgspec.json.encode(wire))}
        return msgspec.structs.replace(thing, name=wire)

    new_tools = [renamed(tool, name_of(tool)) for tool in tools]
    new_items = [renamed(item, name_of(item)) if type_of(item) in _CALLS else item for item in items]
    if isinstance(choice, NamedTool):
        choice = NamedTool(name=wire_name(choice.name))
    elif isinstance(choice, Raw) and bytes(choice).startswith(b"{"):
        raw = _OBJECT.decode(choice)
        if (own := plain(raw.get("name"))) is not None:
            choice = Raw(msgspec.json.encode({**raw, "name": wire_name(own)}))
    return Named(new_tools, new_items, choice, names)  # type: ignore[arg-type]  # a tool stays a tool


def instruction(choice: Choice) -> str | None:
    """Returns a forced choice as an instruction for responses-lite models, which accept only ``auto``."""
    if isinstance(choice, NamedTool):
        return f"Call the tool {choice.name} now; do not answer in any other way."
    if choice == "required" or choice == Raw(b'"required"'):
        return "Call at least one of the tools now; do not answer in any other way."
    if isinstance(choice, Raw) and bytes(choice).startswith(b"{"):
        named = plain(_OBJECT.decode(choice).get("name"))
        return None if named is None else f"Call the tool {named} now; do not answer in any other way."
    return None

"""Tools in a form that the backend accepts, and forced choices as instructions. Pure functions."""

import hashlib
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec
from msgspec import Raw

from codexd import errors
from codexd.protocol import decoding
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.codex import schemas
from codexd.protocol.codex.request import InputItem, NamedTool, Tool
from codexd.protocol.raw import RawObject, encoded, given, plain, type_of, unchanged

MAX_NAME = 64

_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}")

Choice = Literal["none", "auto", "required"] | NamedTool | Raw

_OBJECT = decoding.Decoder(RawObject)


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
    """Renames every tool and namespace whose name the backend refuses, in tools, items and choice."""
    names: dict[str, str] = {}

    def accepted(own: str) -> str:
        wire = wire_name(own)
        if wire != own:
            names[wire] = own
        return wire

    def renamed(thing: Tool | InputItem) -> Tool | InputItem:
        own = name_of(thing)
        wire = own if own is None else accepted(own)
        if not isinstance(thing, dict):
            return thing if wire == own else msgspec.structs.replace(thing, name=wire)
        changes: RawObject = {} if wire == own else {"name": encoded(wire)}
        if (space := plain(thing.get("namespace"))) is not None and accepted(space) != space:
            changes["namespace"] = encoded(accepted(space))
        if type_of(thing) == "namespace" and (inside := _tools_in(thing)):
            new = [renamed(tool) for tool in inside]
            if not unchanged(new, inside):
                changes["tools"] = encoded(new)
        return {**thing, **changes} if changes else thing

    new_tools = [renamed(tool) for tool in tools]
    new_items = [renamed(item) if type_of(item) in _CALLS else item for item in items]
    if isinstance(choice, NamedTool):
        choice = NamedTool(name=wire_name(choice.name))
    elif isinstance(choice, Raw) and bytes(choice).startswith(b"{"):
        raw = _OBJECT.decode(choice)
        if (own := plain(raw.get("name"))) is not None:
            choice = encoded({**raw, "name": wire_name(own)})
    return Named(new_tools, new_items, choice, names)  # type: ignore[arg-type]  # a tool stays a tool


def _tools_in(namespace: RawObject) -> list[RawObject]:
    try:
        return decoding.decode(namespace.get("tools", b"[]"), type=list[RawObject])
    except msgspec.ValidationError:
        return []


# --- schemas

_NO_PARAMETERS = {
    False: Raw(b'{"type":"object","properties":{}}'),
    True: Raw(b'{"type":"object","properties":{},"additionalProperties":false}'),
}
SEARCH = "web_search"
_EARLIER_SEARCHES = ("web_search_preview", "web_search_20")
"""Beginnings of the names of earlier versions, which this backend does not know."""

_TRUE, _FALSE = Raw(b"true"), Raw(b"false")


def no_parameters(*, strict: bool) -> Raw:
    """Returns the schema of a tool without parameters."""
    return _NO_PARAMETERS[strict]


def kind_of(tool: Tool) -> str:
    """Returns a tool's type as the backend knows it."""
    kind = type_of(tool) or ""
    return SEARCH if kind.startswith(_EARLIER_SEARCHES) else kind


def fit(tools: Iterable[Tool]) -> tuple[list[Tool], Adjustments]:
    """Returns the tools with schemas that the backend accepts; good ones stay as they are.

    ``strict`` becomes false where the schema does not keep its rules. Raises ApiError 400 if it is not a schema.
    """
    adjusted: dict[Adjustment, None] = {}

    def fitted(tool: Tool, where: str) -> Tool:
        if not isinstance(tool, dict):
            schema, strict = _fit(tool.parameters, tool.strict, where, adjusted)
            if schema is tool.parameters and strict is tool.strict:
                return tool
            return msgspec.structs.replace(tool, parameters=schema, strict=strict)
        kind = type_of(tool)
        if kind_of(tool) == SEARCH != kind:
            adjusted[Adjustment("tools", "repaired")] = None
            return {**tool, "type": encoded(SEARCH)}
        if kind == "namespace":
            inside = _tools_in(tool)
            new = [fitted(each, f"{where}.tools[{index}]") for index, each in enumerate(inside)]
            return tool if unchanged(new, inside) else {**tool, "tools": encoded(new)}
        if kind != "function":
            return tool
        own = tool.get("parameters", msgspec.UNSET)
        asked = tool.get("strict") == _TRUE
        schema, strict = _fit(own if given(own) else no_parameters(strict=asked), asked, where, adjusted)
        changes: RawObject = {} if schema is own else {"parameters": schema}
        if strict is not asked:
            changes["strict"] = _FALSE
        return {**tool, **changes} if changes else tool

    return [fitted(tool, f"tools[{index}]") for index, tool in enumerate(tools)], tuple(adjusted)


def _fit(schema: Raw, strict: bool, where: str, adjusted: dict[Adjustment, None]) -> tuple[Raw, bool]:
    checked = _checked(schema, f"{where}.parameters")
    if checked.parameters is not None:
        adjusted[Adjustment("tool_schemas", "fitted")] = None
    if strict and not checked.strict:
        adjusted[Adjustment("strict", "false")] = None
    return schema if checked.parameters is None else checked.parameters, strict and checked.strict


def fit_format(form: object) -> tuple[object, Adjustments]:
    """Returns a text format with a name and a schema that the backend accepts, and ``strict`` only where it can be.

    Raises ApiError 400 for a schema that is too deep.
    """
    raw = form
    if isinstance(form, Raw):
        raw = _OBJECT.decode(form) if bytes(form).startswith(b"{") else None  # otherwise the backend refuses it
    if not isinstance(raw, dict) or _plain(raw.get("type")) != "json_schema":
        return form, NONE
    changes: dict[str, object] = {}
    own = _plain(raw.get("name"))
    if isinstance(own, str) and wire_name(own) != own:
        changes["name"] = wire_name(own)
    adjusted = NONE
    if isinstance(schema := raw.get("schema"), Raw) and given(schema):
        checked = _checked(schema, "text.format.schema")
        if checked.format is not None:
            changes["schema"] = checked.format
            adjusted += (Adjustment("format_schema", "fitted"),)
        if raw.get("strict") in (True, _TRUE) and not checked.strict:
            changes["strict"] = False
            adjusted += (Adjustment("strict", "false"),)
    return ({**raw, **changes} if changes else form), adjusted


def _plain(value: object) -> object:
    return plain(value) if isinstance(value, Raw) else value


def _checked(schema: Raw, where: str) -> schemas.Checked:
    if bytes(schema)[:1] not in (b"{", b"t", b"f", b"n"):
        raise errors.bad_request(f"{where} must be a JSON schema, an object.", param=where)
    try:
        return schemas.check(schema)
    except (RecursionError, decoding.TooDeep) as error:
        raise errors.bad_request(f"{where} is nested too deeply.", param=where) from error


_HOSTED = {SEARCH: "Search the web before you answer.", "image_generation": "Draw an image as the answer."}


def instruction(choice: Choice) -> str | None:
    """Returns a forced choice as an instruction for responses-lite models, which accept only ``auto``."""
    if isinstance(choice, NamedTool):
        return f"Call the tool {choice.name} now; do not answer in any other way."
    if choice == "required" or choice == Raw(b'"required"'):
        return "Call at least one of the tools now; do not answer in any other way."
    if isinstance(choice, Raw) and bytes(choice).startswith(b"{"):
        raw = _OBJECT.decode(choice)
        if (hosted := _HOSTED.get(kind_of(raw))) is not None:
            return hosted
        named = plain(raw.get("name"))
        return None if named is None else f"Call the tool {named} now; do not answer in any other way."
    return None

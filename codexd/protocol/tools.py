"""Tools in the shapes that clients send them, in the one shape that the backend takes. Pure functions.

Chat Completions nests a function in ``function`` and a custom tool in ``custom``; many clients send the flat shape of
the Responses API there as well, and some the ``functions`` of earlier days. Whatever type codexd does not know passes
as it is.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, cast

import msgspec
from msgspec import Raw, Struct

from codexd import errors
from codexd.protocol.chat import Function, NamedChoice
from codexd.protocol.responses import FunctionTool, InputItem, NamedTool, RawObject, Tool, given, plain, type_of

MAX_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}")
_NO_PARAMETERS = Raw(b'{"type":"object","properties":{}}')

Choice = Literal["none", "auto", "required"] | NamedTool | Raw


class _Grammar(Struct):
    definition: str
    syntax: str


class _Format(Struct):
    type: str
    grammar: _Grammar | None = None


class _Custom(Struct):
    name: str
    description: str | None = None
    format: Raw = Raw(b"null")


class _Tool(Struct):
    """Nested or flat: ``name`` at the top is the flat shape."""

    type: str = "function"
    function: Function | None = None
    custom: _Custom | None = None
    name: str | None = None


_TOOL = msgspec.json.Decoder(_Tool)
_FLAT_FUNCTION = msgspec.json.Decoder(Function)
_FLAT_CUSTOM = msgspec.json.Decoder(_Custom)
_OBJECT = msgspec.json.Decoder(RawObject)
_FORMAT = msgspec.json.Decoder(_Format)


def from_chat(raw: Raw, where: str) -> Tool:
    """One entry of a chat request's ``tools``. Raises ApiError 400 that names it."""
    try:
        tool = _TOOL.decode(raw)
        match tool.type:
            case "function":
                return function(tool.function or _FLAT_FUNCTION.decode(raw))
            case "custom":
                return _custom(tool.custom or _FLAT_CUSTOM.decode(raw))
            case _:
                return _OBJECT.decode(raw)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        raise errors.bad_request(f"{said} at {where}{place.rstrip('`')}.", param=where) from error


def function(asked: Function) -> FunctionTool:
    return FunctionTool(
        name=asked.name,
        description=asked.description if asked.description is not None else msgspec.UNSET,
        strict=asked.strict or False,
        parameters=asked.parameters if given(asked.parameters) else _NO_PARAMETERS,
    )


def _custom(asked: _Custom) -> RawObject:
    tool: dict[str, object] = {"type": "custom", "name": asked.name}
    if asked.description is not None:
        tool["description"] = asked.description
    if given(asked.format):
        form = _FORMAT.decode(asked.format)
        # Chat nests the grammar, Responses does not.
        nested = form.grammar and {"type": form.type} | msgspec.structs.asdict(form.grammar)
        tool["format"] = nested or asked.format
    return {key: Raw(msgspec.json.encode(value)) for key, value in tool.items()}


def choose(asked: str | NamedChoice | None, tools: Sequence[Tool], where: str) -> tuple[Choice, list[Tool]]:
    """A chat request's ``tool_choice``, and the tools that are left to choose from. Raises ApiError 400."""
    if not isinstance(asked, NamedChoice):
        if asked not in (None, "none", "auto", "required"):
            raise errors.bad_request(f"{where} must be none, auto, required or name a tool.", param=where)
        return cast("Choice", asked or "auto"), list(tools)
    if asked.allowed_tools is not None:
        wanted = {name for each in asked.allowed_tools.tools if (name := each.named()) is not None}
        return asked.allowed_tools.mode, [tool for tool in tools if name_of(tool) in wanted]
    name = asked.named()
    if name is None:
        raise errors.bad_request(f"{where} names no tool.", param=where)
    if name not in map(name_of, tools):
        raise errors.bad_request(f"{where} names {name!r}, which is not among the tools.", param=where)
    if asked.type == "custom":
        return Raw(msgspec.json.encode({"type": "custom", "name": name})), list(tools)
    return NamedTool(name=name), list(tools)


def name_of(tool: Tool | InputItem) -> str | None:
    if isinstance(tool, dict):
        return plain(tool.get("name"))
    return getattr(tool, "name", None)


# --- names


def wire_name(name: str) -> str:
    """A name that the backend takes: itself, or what can be kept of it and a hash, the same every time."""
    if _NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[: MAX_NAME - 9]}_{digest}"


class Named(NamedTuple):
    """Tools, items and choice with names that the backend takes, and ``names`` to find the client's own by."""

    tools: list[Tool]
    items: list[InputItem]
    choice: Choice
    names: dict[str, str]


_CALLS = frozenset({"function_call", "custom_tool_call"})


def name(tools: Iterable[Tool], items: Iterable[InputItem], choice: Choice) -> Named:
    """Give every tool a name that the backend takes, wherever it stands."""
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


# --- what a model is told when the backend does not take the choice


def instruction(choice: Choice) -> str | None:
    """A forced choice in words, for responses-lite models: there the backend takes none but auto."""
    if isinstance(choice, NamedTool):
        return f"Call the tool {choice.name} now; do not answer in any other way."
    if choice == "required" or choice == Raw(b'"required"'):
        return "Call at least one of the tools now; do not answer in any other way."
    if isinstance(choice, Raw) and bytes(choice).startswith(b"{"):
        named = plain(_OBJECT.decode(choice).get("name"))
        return None if named is None else f"Call the tool {named} now; do not answer in any other way."
    return None

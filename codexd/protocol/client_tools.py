"""Tools and choices of OpenAI's clients, and their conversion to the shape that the backend accepts. Pure functions.

Chat Completions nests a function in ``function`` and a custom tool in ``custom``. Many clients send the flat shape of
the Responses API instead, and some send the older ``functions``. A tool of an unknown type is passed on unchanged.
"""

from collections.abc import Sequence
from typing import Literal, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd import errors
from codexd.protocol import decoding
from codexd.protocol.codex.request import FunctionTool, NamedTool, Tool
from codexd.protocol.codex.tools import Choice, kind_of, name_of, no_parameters
from codexd.protocol.raw import RawObject, given
from codexd.reasons import quoted

_OBJECT = decoding.Decoder(RawObject)


class Function(Struct, frozen=True, kw_only=True):
    """A function tool. ``parameters`` is a JSON schema that is passed on byte for byte."""

    name: str
    description: str | None = None
    parameters: Raw | UnsetType = UNSET
    strict: bool | None = None


class Name(Struct, frozen=True, kw_only=True):
    name: str


class AllowedTools(Struct, frozen=True, kw_only=True):
    tools: "list[NamedChoice]"
    mode: Literal["auto", "required"] = "auto"


class NamedChoice(Struct, frozen=True, kw_only=True):
    """A choice of one tool or several, nested or flat."""

    type: str = "function"
    function: Name | None = None
    custom: Name | None = None
    name: str | None = None
    allowed_tools: AllowedTools | None = None

    def named(self) -> str | None:
        nested = self.function or self.custom
        return nested.name if nested else self.name


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
    """A nested or a flat tool; only the flat shape has ``name`` at the top."""

    type: str = "function"
    function: Function | None = None
    custom: _Custom | None = None
    name: str | None = None
    input_schema: Raw | UnsetType = UNSET


class _Anthropics(Struct):
    """A tool in Anthropic's shape."""

    name: str
    description: str | None = None
    input_schema: Raw | UnsetType = UNSET
    strict: bool | None = None


_TOOL = decoding.Decoder(_Tool)

_ANTHROPICS = decoding.Decoder(_Anthropics)

_FLAT_FUNCTION = decoding.Decoder(Function)

_FLAT_CUSTOM = decoding.Decoder(_Custom)

_FORMAT = decoding.Decoder(_Format)


def from_chat(raw: Raw, where: str) -> Tool:
    """Converts one entry of a chat request's ``tools``. Raises ApiError 400 that names it."""
    try:
        tool = _TOOL.decode(raw)
        match tool.type:
            case "function" | "custom" if given(tool.input_schema) and tool.function is None and tool.custom is None:
                own = _ANTHROPICS.decode(raw)
                return function(Function(
                    name=own.name, description=own.description, parameters=own.input_schema, strict=own.strict
                ))  # fmt: skip
            case "function":
                return function(tool.function or _FLAT_FUNCTION.decode(raw))
            case "custom":
                return _custom(tool.custom or _FLAT_CUSTOM.decode(raw), f"{where}.custom" if tool.custom else where)
            case _:
                return _OBJECT.decode(raw)
    except msgspec.ValidationError as error:
        raise errors.wrong_shape(error, where) from error


def function(asked: Function) -> FunctionTool:
    return FunctionTool(
        name=asked.name,
        description=asked.description if asked.description is not None else msgspec.UNSET,
        strict=asked.strict or False,
        parameters=asked.parameters if given(asked.parameters) else no_parameters(strict=asked.strict or False),
    )


def _custom(asked: _Custom, where: str) -> RawObject:
    tool: dict[str, object] = {"type": "custom", "name": asked.name}
    if asked.description is not None:
        tool["description"] = asked.description
    if given(asked.format):
        try:
            form = _FORMAT.decode(asked.format)
        except msgspec.ValidationError as error:
            raise errors.wrong_shape(error, f"{where}.format") from error
        # Chat nests the grammar; Responses does not.
        nested = form.grammar and {"type": form.type} | msgspec.structs.asdict(form.grammar)
        tool["format"] = nested or asked.format
    return {key: Raw(msgspec.json.encode(value)) for key, value in tool.items()}


WORDS = frozenset({"auto", "none", "any", "required"})
"""Choices that name no tool; Anthropic's API has them as objects."""


def choose(asked: str | NamedChoice | None, tools: Sequence[Tool], where: str) -> tuple[Choice, list[Tool]]:
    """Returns the converted ``tool_choice`` and the tools that may be chosen. Raises ApiError 400."""
    if isinstance(asked, NamedChoice) and asked.type in WORDS and asked.named() is None:
        asked = asked.type
    if not isinstance(asked, NamedChoice):
        asked = "required" if asked == "any" else asked
        if asked not in (None, "none", "auto", "required"):
            raise errors.bad_request(f"{where} must be none, auto, required or name a tool.", param=where)
        return cast("Choice", asked or "auto"), list(tools)
    if asked.allowed_tools is not None:
        wanted = {name for each in asked.allowed_tools.tools if (name := each.named()) is not None}
        return asked.allowed_tools.mode, [tool for tool in tools if name_of(tool) in wanted]
    name = asked.named()
    if name is None and asked.type not in ("function", "custom") and asked.type in map(kind_of, tools):
        return Raw(msgspec.json.encode({"type": asked.type})), list(tools)
    if name is None:
        raise errors.bad_request(f"{where} does not name a tool.", param=where)
    if name not in map(name_of, tools):
        raise errors.bad_request(f"{where} names {quoted(name)}, which is not among the tools.", param=where)
    if asked.type == "custom":
        return Raw(msgspec.json.encode({"type": "custom", "name": name})), list(tools)
    return NamedTool(name=name), list(tools)

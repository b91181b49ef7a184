"""A client's request, in either dialect, into the one that the Codex backend accepts. Pure functions.

Both dialects become an ``UpstreamRequest`` in the classic shape; ``to_lite`` turns that into the shape of the
responses-lite models. Source of both shapes: requests captured from the official client.
"""

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd import errors
from codexd.protocol import chat, history, messages, tools
from codexd.protocol.history import Placed
from codexd.protocol.memory import Recall, nothing
from codexd.protocol.models import Resolved, check_effort
from codexd.protocol.responses import (
    INCLUDE,
    AdditionalTools,
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    InputItem,
    InputPart,
    InputText,
    Message,
    Namespace,
    OutputText,
    RawObject,
    Reasoning,
    ResponsesRequest,
    Text,
    Tool,
    UpstreamRequest,
    given,
    plain,
    type_of,
)

NAMESPACE = "functions"
"""The namespace that codexd wraps a client's flat tools into for responses-lite models, and takes off again."""

NEUTRAL = "You are a helpful assistant."
"""Instructions for a request that has none: the backend refuses a classic request without."""


class Settings(Struct, frozen=True, kw_only=True):
    """What the configuration adds to a request. ``prompt`` is None when ``codex.mode`` is off."""

    prompt: str | None = None
    effort: str | None = None
    verbosity: str | None = None
    repair_history: bool = False


class Converted(Struct, frozen=True):
    """``names`` finds the client's own name of a tool by the one that went up, where the two differ. ``legacy``: the
    client speaks of functions, and is answered so.
    """

    request: UpstreamRequest
    lite: bool
    adjusted: list[str]
    names: dict[str, str] = {}
    legacy: bool = False


def from_chat(
    asked: chat.ChatRequest,
    resolved: Resolved,
    settings: Settings,
    recall: Recall = nothing,
    places: Sequence[str] | None = None,
) -> Converted:
    """Convert a Chat Completions request; ``recall`` gives back what its client could not carry.

    Raises ApiError 400 naming what cannot be converted; ``places`` are other names of the messages.
    """
    if not asked.messages:
        raise errors.bad_request("messages must hold at least one message.", param="messages")
    adjusted: list[str] = []
    instructions, rest = settings.prompt, asked.messages
    if instructions is None:
        instructions, rest = messages.leading_instructions(asked.messages)
        instructions = instructions or NEUTRAL
    if any(isinstance(message, chat.SystemMessage) for message in asked.messages):
        adjusted.append("system=developer" if rest is asked.messages else "system=instructions")
    converter = messages.Converter(recall)
    placed = [
        Placed(item, where)
        for index, message in enumerate(rest, len(asked.messages) - len(rest))
        for where in (f"messages[{index}]" if places is None else places[index],)
        for item in converter.items(message, where)
    ]
    if converter.recalled:
        adjusted.append("reasoning=recalled")
    items = history.pair(placed, adjusted, repair=settings.repair_history)
    if not items:
        raise errors.bad_request("messages must hold some content.", param="messages")
    legacy = bool(asked.functions) and not asked.tools
    found: list[Tool] = [tools.from_chat(raw, f"tools[{index}]") for index, raw in enumerate(asked.tools or ())]
    found += [tools.function(function) for function in asked.functions or ()] if legacy else []
    choice, found = _chat_choice(asked, found, legacy=legacy)
    model = resolved.model
    form = messages.text_format(asked)
    request = UpstreamRequest(
        model=model.slug,
        instructions=instructions,
        service_tier=_tier(asked.service_tier, adjusted),
        input=_ensure_json(items, form, adjusted),
        tools=found or UNSET,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls is not False and not legacy,
        reasoning=Reasoning(effort=_effort(asked.reasoning_effort, resolved, settings, adjusted), summary="auto"),
        prompt_cache_key=asked.prompt_cache_key or _cache_key(instructions, found, items),
        text=Text(verbosity=asked.verbosity or settings.verbosity or model.verbosity, format=form),
    )
    return _shaped(request, instructions, model.lite, adjusted, forced=asked.parallel_tool_calls, legacy=legacy)


def _chat_choice(asked: chat.ChatRequest, found: list[Tool], *, legacy: bool) -> tuple[tools.Choice, list[Tool]]:
    if not legacy:
        return tools.choose(asked.tool_choice, found, "tool_choice")
    call = asked.function_call
    wanted = chat.NamedChoice(name=call.name) if isinstance(call, chat.Name) else call
    return tools.choose(wanted, found, "function_call")


def _ensure_json(items: list[InputItem], form: Any, adjusted: list[str]) -> list[InputItem]:
    """The backend takes json_object only when the input speaks of JSON; clients say so elsewhere, or nowhere."""
    if not isinstance(form, dict) or form.get("type") != "json_object" or b"json" in msgspec.json.encode(items).lower():
        return items
    adjusted.append("response_format=instruction")
    return [*items, Message(role="developer", content=[InputText(text="Answer with one JSON object.")])]


def from_responses(asked: ResponsesRequest, resolved: Resolved, settings: Settings, *, earlier: int = 0) -> Converted:
    """Convert a Responses request: the same protocol, made fit for a backend that stores nothing.

    So many of its first items are ``earlier`` turns, which the client named and did not send. Raises ApiError 400.
    """
    adjusted: list[str] = []
    if isinstance(asked.input, str):
        items: list[InputItem] = [Message(role="user", content=[InputText(text=asked.input)])]
    else:
        placed = [
            Placed(fit, f"input[{index}]" if index >= 0 else "previous_response_id")
            for index, item in enumerate(asked.input, -earlier)
            if (fit := _fit_item(item, adjusted)) is not None
        ]
        items = history.pair(placed, adjusted, repair=settings.repair_history)
    if not items:
        raise errors.bad_request("input must hold at least one item that can be sent.", param="input")
    if set(asked.include or ()) - set(INCLUDE):
        adjusted.append(f"include={INCLUDE[0]}")
    own = asked.instructions or None
    instructions = "\n\n".join(filter(None, (settings.prompt, own)))
    if not instructions:
        instructions, items = _leading_texts(items)
    found: list[Tool] = list(asked.tools or ())
    reasoning, model = asked.reasoning, resolved.model
    summary = (reasoning and (reasoning.summary or reasoning.generate_summary)) or "auto"
    request = UpstreamRequest(
        model=model.slug,
        instructions=instructions,
        service_tier=_tier(asked.service_tier, adjusted),
        input=items,
        tools=found or UNSET,
        tool_choice=asked.tool_choice if given(asked.tool_choice) else "auto",
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        reasoning=Reasoning(
            effort=_effort(reasoning.effort if reasoning else None, resolved, settings, adjusted),
            summary=UNSET if summary == "none" else summary,
        ),
        prompt_cache_key=asked.prompt_cache_key or _cache_key(instructions, found, items),
        text=Text(
            verbosity=(asked.text and asked.text.verbosity) or settings.verbosity or model.verbosity,
            format=asked.text.format if asked.text is not None and given(asked.text.format) else UNSET,
        ),
        client_metadata=asked.client_metadata if given(asked.client_metadata) else UNSET,
    )
    return _shaped(request, instructions, model.lite, adjusted, forced=asked.parallel_tool_calls)


def _shaped(
    request: UpstreamRequest,
    instructions: str,
    lite: bool,
    adjusted: list[str],
    *,
    forced: bool | None,
    legacy: bool = False,
) -> Converted:
    own_tools = [] if request.tools is UNSET else request.tools
    named = tools.name(own_tools, request.input, request.tool_choice)
    if named.names:
        adjusted.append("tool_names=shortened")
        request = msgspec.structs.replace(
            request, tools=named.tools or UNSET, input=named.items, tool_choice=named.choice
        )
    if lite:
        if forced:
            adjusted.append("parallel_tool_calls=false")
        request = to_lite(request, instructions, adjusted)
    return Converted(request, lite, list(dict.fromkeys(adjusted)), named.names, legacy)


def without_reasoning(request: UpstreamRequest) -> UpstreamRequest | None:
    """The same request without encrypted reasoning; None when there is none in it."""
    items = [item for item in request.input if type_of(item) != "reasoning"]
    return None if len(items) == len(request.input) else msgspec.structs.replace(request, input=items)


# --- responses-lite


def to_lite(request: UpstreamRequest, instructions: str, adjusted: list[str]) -> UpstreamRequest:
    """The same request in the shape of responses-lite models.

    Four conditions are coupled there, and each one missed is a 400: the marker header (codexd.upstream), the tools in
    an ``additional_tools`` item, ``parallel_tool_calls: false``, and ``reasoning.context: all_turns``.
    """
    choice = request.tool_choice
    own = [] if request.tools is UNSET else list(request.tools)
    said: list[InputItem] = []
    if choice == "none" or choice == Raw(b'"none"'):
        # The only choice here is auto; leaving the tools out is what none means.
        adjusted.append("tools=dropped")
        own = []
    elif choice not in ("auto", Raw(b'"auto"')):
        words = tools.instruction(choice)
        adjusted.append("tool_choice=auto" if words is None else "tool_choice=instruction")
        # At the end, where it does not change what the backend has cached of the conversation.
        said = [] if words is None else [Message(role="developer", content=[InputText(text=words)])]
    items = [_lite_item(item, adjusted) for item in request.input]
    head: list[InputItem] = []
    if items and type_of(items[0]) == "additional_tools":
        # The official client as our client: its tools come first, and stay there.
        head.append(items.pop(0))
    if own:
        head.append(_wrapped(own))
    head.append(Message(role="developer", content=[InputText(text=instructions)]))
    return msgspec.structs.replace(
        request,
        instructions=UNSET,
        input=[*head, *items, *said],
        tools=UNSET,
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning=msgspec.structs.replace(request.reasoning, context="all_turns"),
    )


def _wrapped(found: Sequence[Tool]) -> AdditionalTools:
    own = [tool for tool in found if type_of(tool) in ("function", "custom")]
    rest = [tool for tool in found if isinstance(tool, dict) and type_of(tool) not in ("function", "custom")]
    wrapped: list[Namespace | RawObject] = [Namespace(name=NAMESPACE, tools=own)] if own else []
    return AdditionalTools(tools=[*wrapped, *rest])


def _lite_item(item: InputItem, adjusted: list[str]) -> InputItem:
    match item:
        case Message():
            return msgspec.structs.replace(item, content=[_without_detail(part, adjusted) for part in item.content])
        case FunctionCall():
            return msgspec.structs.replace(item, namespace=NAMESPACE)
        case FunctionCallOutput(output=list() as parts):
            return msgspec.structs.replace(item, output=[_without_detail(part, adjusted) for part in parts])
        case dict():
            if type_of(item) in ("function_call", "custom_tool_call"):
                return {"namespace": Raw(msgspec.json.encode(NAMESPACE)), **item}
            for key in ("content", "output"):
                if key in item and b'"detail"' in bytes(item[key]):
                    adjusted.append("image_detail=dropped")
                    item = {**item, key: _raw_without_detail(item[key])}
            return item
        case _:
            return item


def _without_detail(part: InputPart, adjusted: list[str]) -> InputPart:
    if isinstance(part, InputImage) and part.detail is not UNSET:
        adjusted.append("image_detail=dropped")
        return msgspec.structs.replace(part, detail=UNSET)
    return part


def _raw_without_detail(content: Raw) -> Raw:
    try:
        parts = msgspec.json.decode(content, type=list[RawObject])
    except msgspec.ValidationError:
        return content
    return _raw(
        [
            {key: value for key, value in part.items() if key != "detail" or type_of(part) != "input_image"}
            for part in parts
        ]
    )


# --- what both dialects share


def _effort(asked: str | None, resolved: Resolved, settings: Settings, adjusted: list[str]) -> str | UnsetType:
    model = resolved.model
    if asked is not None:
        check_effort(model, asked)
    if resolved.effort is not None and asked not in (None, resolved.effort):
        adjusted.append(f"reasoning_effort={resolved.effort}")
    configured = settings.effort if settings.effort in model.efforts else None
    effort = resolved.effort or asked or configured or model.default_effort
    # "ultra" is a mode of the official client; on the wire it is "max".
    return UNSET if effort is None else "max" if effort == "ultra" else effort


def _tier(asked: str | None, adjusted: list[str]) -> Literal["priority"] | UnsetType:
    if asked in ("fast", "priority"):
        if asked == "fast":
            adjusted.append("service_tier=priority")
        return "priority"
    if asked not in (None, "auto", "default"):
        adjusted.append("service_tier=dropped")
    return UNSET


def _cache_key(instructions: str, found: Sequence[Tool], items: Sequence[InputItem]) -> str:
    """A key that stays the same for all turns of a conversation, in the shape of the official client's thread id."""
    first_turn = next((item for item in items if _role_of(item) == "user"), None)
    digest = hashlib.sha256(msgspec.json.encode((instructions, found, first_turn))).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def _raw(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))


def _role_of(item: InputItem) -> str | None:
    return plain(item.get("role")) if isinstance(item, dict) else getattr(item, "role", None)


# --- the Responses dialect


def _fit_item(item: RawObject, adjusted: list[str]) -> InputItem | None:
    """An input item without what refers to things stored at OpenAI; None for one that is nothing else."""
    kind = type_of(item)
    if kind == "item_reference":
        adjusted.append("item_reference=dropped")
        return None
    if kind == "reasoning" and not plain(item.get("encrypted_content")):
        # Its id alone means nothing to a backend that stores nothing: "Item with id 'rs_...' not found".
        adjusted.append("reasoning=dropped")
        return None
    item = {key: value for key, value in item.items() if key != "id"}
    if kind not in (None, "message"):
        return item
    role = _role_of(item)
    if role == "system":
        adjusted.append("system=developer")
        item["role"] = Raw(b'"developer"')
    text = plain(item.get("content"))
    if text is not None:
        part = OutputText(text=text) if role == "assistant" else InputText(text=text)
        item["content"] = _raw([part])
    return {"type": Raw(b'"message"'), **item}


def _leading_texts(items: list[InputItem]) -> tuple[str, list[InputItem]]:
    """The client's own developer texts at the start as instructions, as in the other dialect."""
    texts: list[str] = []
    for item in items:
        if not isinstance(item, dict) or _role_of(item) != "developer":
            break
        try:
            parts = msgspec.json.decode(item.get("content", b"[]"), type=list[_TextPart])
        except msgspec.ValidationError:
            break
        texts.append("\n".join(part.text for part in parts))
    rest = items[len(texts) :]
    text = "\n\n".join(filter(None, texts))
    return (text, rest) if text and rest else (NEUTRAL, items)


class _TextPart(Struct):
    text: str

"""Conversion of a Chat Completions request to the backend's request. Pure functions."""

import re
from collections.abc import Sequence
from typing import Any, assert_never

import msgspec
from msgspec import UNSET, Raw

from codexd import errors
from codexd.protocol import client_tools, tool_pairs
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.chat import wire as chat
from codexd.protocol.client_tools import Name, NamedChoice
from codexd.protocol.codex.models import Resolved
from codexd.protocol.codex.request import (
    FunctionCall,
    FunctionCallOutput,
    InputFile,
    InputImage,
    InputItem,
    InputPart,
    InputText,
    Message,
    OutputText,
    Reasoning,
    Text,
    Tool,
    UpstreamRequest,
)
from codexd.protocol.codex.tools import SEARCH, Choice, kind_of
from codexd.protocol.convert import (
    NEUTRAL,
    Converted,
    Settings,
    Thinking,
    effort_for,
    effort_of_budget,
    prompt_key,
    service_tier,
    shaped,
)
from codexd.protocol.raw import encoded, role_of
from codexd.protocol.reasoning import Recall, nothing, of_call, of_text
from codexd.protocol.tool_pairs import Placed


def from_chat(
    asked: chat.ChatRequest,
    resolved: Resolved,
    settings: Settings,
    recall: Recall = nothing,
    places: Sequence[str] | None = None,
    thinking: Thinking | None = None,
) -> Converted:
    """Converts a request; ``recall`` returns the reasoning that its client could not carry.

    ``places`` names the messages in errors; without it they are ``messages[N]``. ``thinking`` is how much to think;
    without it the request says so. Raises ApiError 400 naming the part
    that cannot be converted.
    """
    instructions, rest = settings.prompt, asked.messages
    if instructions is None:
        instructions, rest = _leading_instructions(asked.messages)
        instructions = instructions or NEUTRAL
    adjusted = asked.adjusted
    if any(isinstance(message, chat.SystemMessage) for message in asked.messages):
        adjusted += (Adjustment("system", "developer" if rest is asked.messages else "instructions"),)
    converter = _MessageConverter(recall, think_tags=settings.think_tags)
    placed = [
        Placed(item, where)
        for index, message in enumerate(rest, len(asked.messages) - len(rest))
        for where in (f"messages[{index}]" if places is None else places[index],)
        for item in converter.items(message, where)
    ]
    paired, repaired = tool_pairs.pair(placed, repair=settings.repair_history)
    if not paired:
        raise errors.bad_request("messages must contain some content.", param="messages")
    legacy = bool(asked.functions) and not asked.tools
    found: list[Tool] = [client_tools.from_chat(raw, f"tools[{index}]") for index, raw in enumerate(asked.tools or ())]
    found += [client_tools.function(function) for function in asked.functions or ()] if legacy else []
    found += _searches(asked, found)
    choice, found = _choice(asked, found, legacy=legacy)
    model, form = resolved.model, _text_format(asked)
    tier, tiered = service_tier(asked.service_tier)
    items, instructed = _ensure_json(paired, form)
    effort, named = effort_for(thinking or thinking_of(asked), resolved, settings)
    key, keyed = prompt_key(asked.prompt_cache_key, instructions, paired)
    request = UpstreamRequest(
        model=model.slug,
        instructions=instructions,
        service_tier=tier,
        input=items,
        tools=found or UNSET,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls is not False and not legacy,
        reasoning=Reasoning(effort=effort, summary="auto"),
        prompt_cache_key=key,
        text=Text(verbosity=asked.verbosity or settings.verbosity or model.verbosity, format=form),
    )
    adjusted += (*repaired, *tiered, *instructed, *named, *keyed)
    return shaped(
        request,
        instructions,
        model.lite,
        adjusted,
        forced=asked.parallel_tool_calls,
        settings=settings,
        legacy=legacy,
        max_calls=asked.max_tool_calls,
    )


def thinking_of(asked: chat.ChatRequest) -> Thinking:
    """Reads ``reasoning_effort``, OpenRouter's ``reasoning`` and the ``enable_thinking`` of others, in this order."""
    if asked.reasoning_effort is not None:
        return Thinking(asked.reasoning_effort, "reasoning_effort")
    own = asked.reasoning
    if own is not None and (own.effort is not None or own.max_tokens is not None or own.enabled is not None):
        effort = own.effort
        if effort is None and own.max_tokens:
            effort = effort_of_budget(own.max_tokens)
        return Thinking(effort, "reasoning", own.enabled if effort is None else None)
    if asked.enable_thinking is not None:
        return Thinking(None, "enable_thinking", asked.enable_thinking)
    return Thinking(None, "reasoning_effort")


def _searches(asked: chat.ChatRequest, found: Sequence[Tool]) -> list[Tool]:
    """Returns the search tool that ``web_search_options`` asks for, or OpenRouter's plugin ``web``."""
    options = asked.web_search_options
    if options is None and not any(plugin.id == "web" for plugin in asked.plugins or ()):
        return []
    if SEARCH in map(kind_of, found):
        return []
    tool: dict[str, object] = {"type": SEARCH}
    if options is not None and options.search_context_size is not None:
        tool["search_context_size"] = options.search_context_size
    if options is not None and options.user_location is not None:
        place = options.user_location.approximate
        tool["user_location"] = {"type": "approximate", **msgspec.to_builtins(place)}
    return [{key: encoded(value) for key, value in tool.items()}]


def _choice(asked: chat.ChatRequest, found: list[Tool], *, legacy: bool) -> tuple[Choice, list[Tool]]:
    if not legacy:
        return client_tools.choose(asked.tool_choice, found, "tool_choice")
    call = asked.function_call
    wanted = NamedChoice(name=call.name) if isinstance(call, Name) else call
    return client_tools.choose(wanted, found, "function_call")


def _ensure_json(items: list[InputItem], form: Any) -> tuple[list[InputItem], Adjustments]:
    """Adds an instruction where needed: the backend accepts ``json_object`` only if the input contains "json".

    It stands first, and only the conversation's beginning decides, so that it stays where it is in every turn.
    """
    if not isinstance(form, dict) or form.get("type") != "json_object":
        return items, NONE
    first_turn = next((index for index, item in enumerate(items) if role_of(item) == "user"), len(items))
    if b"json" in msgspec.json.encode(items[: first_turn + 1]).lower():
        return items, NONE
    instruction = Message(role="developer", content=[InputText(text="Answer with one JSON object.")])
    return [instruction, *items], (Adjustment("response_format", "instruction"),)


def _leading_instructions(messages: list[chat.Message]) -> tuple[str, list[chat.Message]]:
    """Returns the leading system texts as instructions, and the other messages; or an empty text and all messages."""
    texts: list[str] = []
    for message in messages:
        if not isinstance(message, chat.SystemMessage | chat.DeveloperMessage):
            break
        texts.append(_all_text(message.content))
    rest = messages[len(texts) :]
    text = "\n\n".join(filter(None, texts))
    # The backend needs at least one input item: with no other message the texts stay in the input.
    return (text, rest) if text and rest else ("", messages)


def _all_text(content: chat.Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or () if isinstance(part, chat.TextPart))


_THOUGHT = re.compile(r"<think>.*?</think>\n\n", re.DOTALL)
"""Reasoning in the text of an answer, as ``codexd.protocol.chat.stream`` writes it."""


class _MessageConverter:
    """Converts the messages of one request in order; the result of a call depends on the call before it.

    ``recall`` returns the encrypted reasoning that led to a turn.
    """

    def __init__(self, recall: Recall = nothing, *, think_tags: bool = False) -> None:
        self._recall = recall
        self._think_tags = think_tags
        self._custom: set[str] = set()
        self._unanswered: dict[str, list[str]] = {}
        self._legacy = 0

    def items(self, message: chat.Message, where: str) -> list[InputItem]:
        """Returns a message's input items. Raises ApiError 400 naming the part that cannot be converted."""
        match message:
            case chat.SystemMessage() | chat.DeveloperMessage():
                parts = _parts(message.content, where)
                return [Message(role="developer", content=parts)] if parts else []
            case chat.UserMessage():
                parts = _parts(message.content, where)
                return [Message(role="user", content=parts)] if parts else []
            case chat.AssistantMessage():
                return self._assistant_items(message, where)
            case chat.ToolMessage():
                return [self._result(message.tool_call_id, message.content, where)]
            case chat.FunctionMessage():
                waiting = self._unanswered.get(message.name)
                # Without a matching call it keeps an id that no call has, and is refused because of that.
                call_id = waiting.pop(0) if waiting else f"function:{message.name}"
                return [self._result(call_id, message.content, where)]
            case _:  # pragma: no cover
                assert_never(message)

    def _assistant_items(self, message: chat.AssistantMessage, where: str) -> list[InputItem]:
        text = _all_text(message.content)
        if not isinstance(message.content, str):
            text += "\n".join(part.refusal for part in message.content or () if isinstance(part, chat.RefusalPart))
        text = text or message.refusal or ""
        if self._think_tags:
            # The model never said it so: the backend holds the answer without it.
            text = _THOUGHT.sub("", text)
        items: list[InputItem] = []
        if text:
            items += [*self._recall(of_text(text)), Message(role="assistant", content=[OutputText(text=text)])]
        for index, call in enumerate(message.tool_calls or ()):
            items += self._recall(of_call(call.id))
            items.append(self._call(call, f"{where}.tool_calls[{index}]"))
        if message.function_call is not None:
            self._legacy += 1
            call_id = f"call_function_{self._legacy}"
            self._unanswered.setdefault(message.function_call.name, []).append(call_id)
            items.append(
                FunctionCall(
                    call_id=call_id, name=message.function_call.name, arguments=message.function_call.arguments or "{}"
                )
            )
        return items

    def _call(self, call: chat.ToolCall, where: str) -> InputItem:
        if call.function is not None:
            self._custom.discard(call.id)
            return FunctionCall(call_id=call.id, name=call.function.name, arguments=call.function.arguments or "{}")
        if call.custom is None:
            raise errors.bad_request(f"{where} contains neither function nor custom.", param=where)
        self._custom.add(call.id)
        item = {"type": "custom_tool_call", "call_id": call.id, "name": call.custom.name, "input": call.custom.input}
        return {key: Raw(msgspec.json.encode(value)) for key, value in item.items()}

    def _result(self, call_id: str, content: chat.Content, where: str) -> InputItem:
        output = (content if isinstance(content, str) else _parts(content, where)) or ""
        if call_id not in self._custom:
            return FunctionCallOutput(call_id=call_id, output=output)
        item = {"type": "custom_tool_call_output", "call_id": call_id, "output": output}
        return {key: Raw(msgspec.json.encode(value)) for key, value in item.items()}


def _parts(content: chat.Content, where: str) -> list[InputPart]:
    if isinstance(content, str):
        return [InputText(text=content)]
    return [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content or ())]


def _part(part: chat.Part, where: str) -> InputPart:
    match part:
        case chat.TextPart(text=text) | chat.RefusalPart(refusal=text):
            return InputText(text=text)
        case chat.ImagePart(image_url=image):
            if isinstance(image, str):
                return InputImage(image_url=image)
            return InputImage(image_url=image.url, detail=image.detail or UNSET)
        case chat.FilePart(file=file):
            if file.file_data is None:
                raise errors.unsupported(
                    where,
                    "Send files with the request, as file.file_data (a data URL): codexd has no files API.",
                )
            return InputFile(filename=file.filename or "file", file_data=_data_url(file.file_data, file.filename))
        case chat.AudioPart():
            raise errors.unsupported(where, "Audio input is not supported: the backend takes text, images and files.")
        case _:  # pragma: no cover
            assert_never(part)


def _data_url(data: str, filename: str | None) -> str:
    """Returns a data URL. Some clients send only the base64, and the backend needs the media type."""
    if data.startswith("data:"):
        return data
    kind = "application/pdf" if (filename or "").lower().endswith(".pdf") else "text/plain"
    return f"data:{kind};base64,{data}"


def _text_format(asked: chat.ChatRequest) -> Any:
    match asked.response_format:
        case chat.FormatJsonSchema(json_schema=schema):
            wanted: dict[str, Any] = {"type": "json_schema", "name": schema.name}
            given = {"description": schema.description, "schema": schema.schema, "strict": schema.strict}
            return wanted | {key: value for key, value in given.items() if value is not None and value is not UNSET}
        case chat.FormatJsonObject():
            return {"type": "json_object"}
        case _:
            return UNSET

"""Conversion of Ollama's requests to Chat Completions requests. Pure functions."""

import base64
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw, UnsetType

from codexd import errors
from codexd.protocol import images
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.chat import wire as chat
from codexd.protocol.codex.models import EFFORTS
from codexd.protocol.convert import Thinking
from codexd.protocol.ollama.wire import Message, OllamaChat, OllamaPrompt, Options, Think
from codexd.protocol.raw import RawObject, encoded, given

_SAMPLING = frozenset(
    {"temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "repeat_penalty", "presence_penalty",
     "frequency_penalty", "repeat_last_n", "mirostat", "mirostat_eta", "mirostat_tau", "tfs_z", "penalize_newline"}
)  # fmt: skip
"""Options that would change an answer; all others are about a local machine."""


class AsChat(NamedTuple):
    """``thinks``: the client asked to see the thinking."""

    request: chat.ChatRequest
    thinking: Thinking
    thinks: bool
    adjusted: Adjustments


def from_chat(asked: OllamaChat) -> AsChat:
    """Converts a request of ``/api/chat``. Raises ApiError 400."""
    return _request(asked, _messages(asked.messages), asked.tools)


def from_generate(asked: OllamaPrompt) -> AsChat:
    """Converts a request of ``/api/generate``: its prompt becomes one message. Raises ApiError 400."""
    messages: list[chat.Message] = [chat.SystemMessage(content=asked.system)] if asked.system else []
    messages.append(chat.UserMessage(content=_content(asked.prompt, asked.images, "images")))
    return _request(asked, messages, None)


def _request(asked: OllamaChat | OllamaPrompt, messages: list[chat.Message], tools: list[Raw] | None) -> AsChat:
    options, adjusted = _options(asked.options)
    limit = options.num_predict
    request = chat.ChatRequest(
        model=asked.model,
        messages=messages,
        stream=asked.stream is not False,
        tools=tools or None,
        stop=options.stop or None,
        max_tokens=limit if limit is not None and limit > 0 else None,
        response_format=_format(asked.format),
    )
    return AsChat(request, _thinking(asked.think), asked.think not in (None, False), adjusted)


def _options(raw: Raw | UnsetType) -> tuple[Options, Adjustments]:
    if not given(raw):
        return Options(), NONE
    try:
        names = msgspec.json.decode(raw, type=RawObject)
        options = msgspec.json.decode(raw, type=Options)
    except msgspec.ValidationError as error:
        raise errors.bad_request(f"options cannot be read: {error}.", param="options") from error
    rest = sorted(names.keys() - {"num_predict", "stop"})
    return options, tuple(
        Adjustment(
            f"options.{name}" if name.isidentifier() else "options", "dropped" if name in _SAMPLING else "ignored"
        )
        for name in rest
    )


def _thinking(think: Think) -> Thinking:
    if isinstance(think, str):
        known = think.strip().lower()
        if known not in EFFORTS:
            raise errors.bad_request("think must be true, false, low, medium or high.", param="think")
        return Thinking(known, "think", known != "none" or None)
    return Thinking(None, "think", think)


def _format(raw: Raw | UnsetType) -> chat.FormatJsonObject | chat.FormatJsonSchema | None:
    """Returns the format of an answer: ``"json"``, or a JSON schema."""
    if not given(raw) or bytes(raw) == b'""':
        return None
    if bytes(raw) == b'"json"':
        return chat.FormatJsonObject()
    if bytes(raw)[:1] != b"{":
        raise errors.bad_request('format must be "json" or a JSON schema.', param="format")
    return chat.FormatJsonSchema(json_schema=chat.JsonSchema(name="answer", schema=raw))


# --- messages


def _messages(messages: Sequence[Message]) -> list[chat.Message]:
    """Converts the messages. Calls get ids, by which the results after them are found: by id, name or order."""
    found: list[chat.Message] = []
    waiting: list[tuple[str, str]] = []  # id and name of calls without a result
    number = 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        match message.role:
            case "system":
                found.append(chat.SystemMessage(content=message.content))
            case "user":
                found.append(chat.UserMessage(content=_content(message.content, message.images, f"{where}.images")))
            case "tool":
                found.append(chat.ToolMessage(tool_call_id=_answered(message, waiting, where), content=message.content))
            case _:
                calls = []
                for call in message.tool_calls or ():
                    number += 1
                    name = call.id or f"call_{number}"
                    waiting.append((name, call.function.name))
                    arguments = msgspec.json.format(bytes(call.function.arguments), indent=-1).decode()
                    function = chat.FunctionOfCall(name=call.function.name, arguments=arguments)
                    calls.append(chat.ToolCall(id=name, function=function))
                found.append(chat.AssistantMessage(content=message.content or None, tool_calls=calls or None))
    return found


def _answered(message: Message, waiting: list[tuple[str, str]], where: str) -> str:
    """Returns the id of the call that a result belongs to, and takes it from those that wait. Raises ApiError 400."""
    for position, wanted in ((0, message.tool_call_id), (1, message.tool_name)):
        for call in waiting if wanted else ():
            if call[position] == wanted:
                waiting.remove(call)
                return call[0]
    if not waiting:
        raise errors.bad_request(f"{where} is the result of a tool that was not called.", param=where)
    return waiting.pop(0)[0]


def _content(text: str | None, pictures: Sequence[str] | None, where: str) -> chat.Content:
    if not pictures:
        return text or ""
    parts: list[chat.Part] = [chat.TextPart(text=text)] if text else []
    for index, picture in enumerate(pictures):
        here = f"{where}[{index}]"
        try:
            url = picture if picture.startswith("data:") else images.data_url(base64.b64decode(picture), here)
        except ValueError as error:
            raise errors.bad_request(f"{here} must be an image as base64.", param=here) from error
        parts.append(chat.ImagePart(image_url=url))
    return parts


def tools_of(calls: Sequence[chat.MessageToolCall]) -> list[dict[str, object]]:
    """Returns calls in Ollama's shape: the arguments as an object, an empty one if they cannot be read."""
    found: list[dict[str, object]] = []
    for call in calls:
        function = call.function or chat.FunctionCall("", "{}")
        try:
            arguments: object = encoded(msgspec.json.decode(function.arguments, type=RawObject))
        except msgspec.DecodeError:
            arguments = {}
        found.append({"id": call.id, "function": {"name": function.name, "arguments": arguments}})
    return found

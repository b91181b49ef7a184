"""Conversion of Ollama's requests to Chat Completions requests. Pure functions."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw, UnsetType

from codexd import errors
from codexd.protocol import decoding, images
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.chat import wire as chat
from codexd.protocol.codex.models import EFFORTS
from codexd.protocol.convert import Thinking
from codexd.protocol.ollama.wire import Message, OllamaChat, OllamaPrompt, Options, Think
from codexd.protocol.parameters import sane
from codexd.protocol.raw import RawObject, encoded, given, plain

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
        names = decoding.decode(raw, type=RawObject)
        options = decoding.decode(raw, type=Options)
    except msgspec.ValidationError as error:
        raise errors.wrong_shape(error, "options") from error
    rest = sorted(names.keys() - {"num_predict", "stop"})
    return options, tuple(
        Adjustment(f"options.{sane(name)}", "dropped" if name in _SAMPLING else "ignored") for name in rest
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


class _Waiting:
    """The calls without a result, by id, by name, and in order."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._named: dict[str, deque[str]] = {}

    def add(self, name: str, function: str) -> None:
        self._ids[name] = None
        self._named.setdefault(function, deque()).append(name)

    def take(self, message: Message) -> str | None:
        """Returns the id of the call that a result belongs to: by its id, else its name, else the next one."""
        found = message.tool_call_id if message.tool_call_id in self._ids else None
        named = self._named.get(message.tool_name or "", deque())
        while found is None and named:
            name = named.popleft()
            found = name if name in self._ids else None
        found = found or next(iter(self._ids), None)
        if found is not None:
            del self._ids[found]
        return found


def _messages(messages: Sequence[Message]) -> list[chat.Message]:
    """Converts the messages. Calls get ids, by which the results after them are found."""
    found: list[chat.Message] = []
    waiting, number = _Waiting(), 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        match message.role:
            case "system":
                found.append(chat.SystemMessage(content=message.content))
            case "user":
                found.append(chat.UserMessage(content=_content(message.content, message.images, f"{where}.images")))
            case "tool":
                if (name := waiting.take(message)) is None:
                    raise errors.bad_request(f"{where} is the result of a tool that was not called.", param=where)
                found.append(chat.ToolMessage(tool_call_id=name, content=message.content))
            case _:
                calls = []
                for call in message.tool_calls or ():
                    number += 1
                    name = call.id or f"call_{number}"
                    waiting.add(name, call.function.name)
                    function = chat.FunctionOfCall(
                        name=call.function.name, arguments=_arguments(call.function.arguments)
                    )
                    calls.append(chat.ToolCall(id=name, function=function))
                found.append(chat.AssistantMessage(content=message.content or None, tool_calls=calls or None))
    return found


def _arguments(raw: Raw) -> str:
    """Returns the arguments of a call as text; some clients send it so."""
    if (text := plain(raw)) is not None:
        return text
    return msgspec.json.format(bytes(raw), indent=-1).decode() if given(raw) else "{}"


def _content(text: str | None, pictures: Sequence[str] | None, where: str) -> chat.Content:
    if not pictures:
        return text or ""
    parts: list[chat.Part] = [chat.TextPart(text=text)] if text else []
    for index, picture in enumerate(pictures):
        url = picture if picture.startswith("data:") else images.from_base64(picture, f"{where}[{index}]")
        parts.append(chat.ImagePart(image_url=url))
    return parts


def tools_of(calls: Sequence[chat.MessageToolCall]) -> list[dict[str, object]]:
    """Returns calls in Ollama's shape: the arguments as an object, an empty one if they cannot be read."""
    found: list[dict[str, object]] = []
    for call in calls:
        function = call.function or chat.FunctionCall("", "{}")
        try:
            arguments: object = encoded(decoding.decode(function.arguments, type=RawObject))
        except msgspec.DecodeError:
            arguments = {}
        found.append({"id": call.id, "function": {"name": function.name, "arguments": arguments}})
    return found

"""Wire records of Ollama's API: requests. Source: Ollama's API reference."""

from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct, UnsetType

from codexd.protocol.adjustments import NONE, Adjustments
from codexd.protocol.members import RequestDecoder


class FunctionOfCall(Struct, frozen=True, kw_only=True):
    """``arguments`` is an object."""

    name: str
    arguments: Raw = msgspec.field(default_factory=lambda: Raw(b"{}"))


class ToolCall(Struct, frozen=True, kw_only=True):
    """Only newer clients send ids back."""

    function: FunctionOfCall
    id: str | None = None


class Message(Struct, frozen=True, kw_only=True):
    """``images`` are base64. ``tool_name`` and ``tool_call_id`` say whose result it is, if they are there."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = ""
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Options(Struct, frozen=True, kw_only=True):
    """The options that codexd emulates. A ``num_predict`` below 0 means: unlimited."""

    num_predict: int | None = None
    stop: str | list[str] | None = None


Think = bool | str | None


class OllamaChat(Struct, frozen=True, kw_only=True):
    model: str
    messages: list[Message] = []
    stream: bool | None = True
    tools: list[Raw] | None = None
    format: Raw | UnsetType = msgspec.UNSET
    options: Raw | UnsetType = msgspec.UNSET
    think: Think = None
    adjusted: Adjustments = NONE


class OllamaPrompt(Struct, frozen=True, kw_only=True):
    model: str
    prompt: str | None = ""
    system: str | None = None
    images: list[str] | None = None
    stream: bool | None = True
    format: Raw | UnsetType = msgspec.UNSET
    options: Raw | UnsetType = msgspec.UNSET
    think: Think = None
    adjusted: Adjustments = NONE


CHAT = RequestDecoder(OllamaChat)
GENERATE = RequestDecoder(OllamaPrompt)


class OllamaAnswer(Struct, frozen=True, kw_only=True):
    """The last line of an answer, or all of it. Durations are nanoseconds."""

    model: str
    created_at: str
    message: dict[str, Any] | UnsetType = msgspec.UNSET
    response: str | UnsetType = msgspec.UNSET
    thinking: str | UnsetType = msgspec.UNSET
    done: bool
    done_reason: str | UnsetType = msgspec.UNSET
    total_duration: int | UnsetType = msgspec.UNSET
    load_duration: int | UnsetType = msgspec.UNSET
    prompt_eval_count: int | UnsetType = msgspec.UNSET
    prompt_eval_duration: int | UnsetType = msgspec.UNSET
    eval_count: int | UnsetType = msgspec.UNSET
    eval_duration: int | UnsetType = msgspec.UNSET

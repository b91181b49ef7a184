"""The body of ``POST /codex/responses``, as captured from the official client."""

from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from codexd.protocol.raw import RawObject

INCLUDE = ("reasoning.encrypted_content",)
"""The only accepted value, always requested: reasoning that can be sent back, because the backend stores nothing."""


class InputText(Struct, frozen=True, kw_only=True, tag="input_text"):
    text: str


class OutputText(Struct, frozen=True, kw_only=True, tag="output_text"):
    text: str


class InputImage(Struct, frozen=True, kw_only=True, tag="input_image"):
    image_url: str
    detail: str | UnsetType = UNSET


class InputFile(Struct, frozen=True, kw_only=True, tag="input_file"):
    filename: str
    file_data: str


InputPart = InputText | OutputText | InputImage | InputFile


class Message(Struct, frozen=True, kw_only=True, tag="message"):
    role: Literal["developer", "user", "assistant"]
    content: list[InputPart]


class FunctionCall(Struct, frozen=True, kw_only=True, tag="function_call"):
    call_id: str
    name: str
    arguments: str
    namespace: str | UnsetType = UNSET


class FunctionCallOutput(Struct, frozen=True, kw_only=True, tag="function_call_output"):
    call_id: str
    output: str | list[InputPart]


class FunctionTool(Struct, frozen=True, kw_only=True, tag="function"):
    name: str
    description: str | UnsetType = UNSET
    strict: bool = False
    parameters: Raw


class Namespace(Struct, frozen=True, kw_only=True, tag="namespace"):
    name: str
    description: str = ""
    tools: list[FunctionTool | RawObject]


class AdditionalTools(Struct, frozen=True, kw_only=True, tag="additional_tools"):
    role: Literal["developer"] = "developer"
    tools: list[Namespace | RawObject]


InputItem = Message | FunctionCall | FunctionCallOutput | AdditionalTools | RawObject

Tool = FunctionTool | RawObject


class Reasoning(Struct, frozen=True, kw_only=True):
    effort: str | UnsetType = UNSET
    summary: str | UnsetType = UNSET
    context: Literal["all_turns"] | UnsetType = UNSET


class Text(Struct, frozen=True, kw_only=True):
    verbosity: str
    format: Any = UNSET


class NamedTool(Struct, frozen=True, kw_only=True, tag="function"):
    name: str


class UpstreamRequest(Struct, frozen=True, kw_only=True):
    """The body of ``POST /codex/responses``. It is an allow-list: the backend refuses any unknown key.

    The key order is the official client's. The prefix must not change between turns, or prompt caching fails.
    """

    model: str
    instructions: str | UnsetType = UNSET
    stream: Literal[True] = True
    service_tier: Literal["priority"] | UnsetType = UNSET
    input: list[InputItem]
    tools: list[Tool] | UnsetType = UNSET
    tool_choice: Literal["none", "auto", "required"] | NamedTool | Raw = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning
    store: Literal[False] = False
    include: tuple[str, ...] = INCLUDE
    prompt_cache_key: str
    text: Text
    client_metadata: Raw | UnsetType = UNSET


class ResponseCreate(Struct, frozen=True, kw_only=True, tag="response.create"):
    """The same as a message on a websocket. ``input`` is encoded; with ``previous_response_id`` it has what is new."""

    model: str
    instructions: str | UnsetType = UNSET
    stream: Literal[True] = True
    service_tier: Literal["priority"] | UnsetType = UNSET
    previous_response_id: str | UnsetType = UNSET
    input: list[Raw]
    tools: list[Tool] | UnsetType = UNSET
    tool_choice: Literal["none", "auto", "required"] | NamedTool | Raw = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning
    store: Literal[False] = False
    include: tuple[str, ...] = INCLUDE
    prompt_cache_key: str
    text: Text
    client_metadata: dict[str, Any]

"""Wire records of the Chat Completions API: what clients send, and what they get.

Decoding is validation: a wrong shape raises msgspec.ValidationError with the place (``$.messages[0].content``).
Keys that these structs do not know are codexd.protocol.parameters' business.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

# --- the request


class TextPart(Struct, frozen=True, kw_only=True, tag="text"):
    text: str


class RefusalPart(Struct, frozen=True, kw_only=True, tag="refusal"):
    refusal: str


class ImageUrl(Struct, frozen=True, kw_only=True):
    url: str
    detail: str | None = None


class ImagePart(Struct, frozen=True, kw_only=True, tag="image_url"):
    image_url: ImageUrl | str


class File(Struct, frozen=True, kw_only=True):
    """``file_data`` is a data URL; ``file_id`` would name a file of OpenAI's files API, which is not here."""

    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None


class FilePart(Struct, frozen=True, kw_only=True, tag="file"):
    file: File


class AudioPart(Struct, frozen=True, kw_only=True, tag="input_audio"):
    input_audio: Raw


Part = TextPart | RefusalPart | ImagePart | FilePart | AudioPart
Content = str | list[Part] | None


class FunctionOfCall(Struct, frozen=True, kw_only=True):
    name: str
    arguments: str = ""


class ToolCall(Struct, frozen=True, kw_only=True):
    id: str
    function: FunctionOfCall
    type: Literal["function"] = "function"


class SystemMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="system"):
    content: Content = None
    name: str | None = None


class DeveloperMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="developer"):
    content: Content = None
    name: str | None = None


class UserMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="user"):
    content: Content = None
    name: str | None = None


class AssistantMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    content: Content = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None


class ToolMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    tool_call_id: str
    content: Content = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(Struct, frozen=True, kw_only=True):
    """``parameters`` is a JSON schema that is only carried: it stays as it is to the byte."""

    name: str
    description: str | None = None
    parameters: Raw | UnsetType = UNSET
    strict: bool | None = None


class Tool(Struct, frozen=True, kw_only=True):
    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct, frozen=True, kw_only=True):
    name: str


class NamedToolChoice(Struct, frozen=True, kw_only=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class FormatText(Struct, frozen=True, kw_only=True, tag="text"):
    pass


class FormatJsonObject(Struct, frozen=True, kw_only=True, tag="json_object"):
    pass


class JsonSchema(Struct, frozen=True, kw_only=True):
    name: str
    schema: Raw | UnsetType = UNSET
    description: str | None = None
    strict: bool | None = None


class FormatJsonSchema(Struct, frozen=True, kw_only=True, tag="json_schema"):
    json_schema: JsonSchema


class StreamOptions(Struct, frozen=True, kw_only=True):
    include_usage: bool | None = None


class ChatRequest(Struct, frozen=True, kw_only=True):
    model: str
    messages: list[Message]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: FormatText | FormatJsonObject | FormatJsonSchema | None = None
    reasoning_effort: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None


REQUEST = msgspec.json.Decoder(ChatRequest)


# --- the answer


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(Struct, frozen=True):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class CompletionUsage(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class FunctionDelta(Struct, frozen=True):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(Struct, frozen=True):
    """``id``, ``type`` and the function's name come once, in the first delta of a call; the arguments in pieces."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class Chunk(Struct, frozen=True):
    """One streamed chunk. ``usage`` is absent unless the client asked for it; then it is null but in the last one."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | UnsetType | None = UNSET


class FunctionCall(Struct, frozen=True):
    name: str
    arguments: str


class MessageToolCall(Struct, frozen=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ResponseMessage(Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None
    annotations: list[Raw]
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class Choice(Struct, frozen=True):
    index: int
    message: ResponseMessage
    finish_reason: FinishReason
    logprobs: None = None


class Completion(Struct, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage | UnsetType = UNSET

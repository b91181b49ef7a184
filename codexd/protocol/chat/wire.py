"""Wire records of the Chat Completions API: requests and answers.

Decoding validates: a wrong shape raises msgspec.ValidationError with the place (``$.messages[0].content``).
``codexd.protocol.parameters`` handles the keys that these structs do not have.
"""

from typing import Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from codexd import errors
from codexd.protocol.adjustments import NONE, Adjustments
from codexd.protocol.chat.repair import repaired
from codexd.protocol.client_tools import Function, Name, NamedChoice
from codexd.protocol.hosted.tools import Location
from codexd.protocol.members import RequestDecoder

# --- the request


class TextPart(Struct, frozen=True, kw_only=True, tag="text"):
    text: str


class RefusalPart(Struct, frozen=True, kw_only=True, tag="refusal"):
    refusal: str


class ImageUrl(Struct, frozen=True, omit_defaults=True):
    url: str
    detail: str | None = None


class ImagePart(Struct, frozen=True, kw_only=True, tag="image_url"):
    image_url: ImageUrl | str


class File(Struct, frozen=True, kw_only=True):
    """A file. ``file_data`` is a data URL; ``file_id`` refers to OpenAI's files API, which codexd does not have."""

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


class CustomOfCall(Struct, frozen=True, kw_only=True):
    name: str
    input: str = ""


class ToolCall(Struct, frozen=True, kw_only=True):
    """A call of a ``function`` or a ``custom`` tool. Clients omit the type or set it wrong, so it is not used."""

    id: str
    function: FunctionOfCall | None = None
    custom: CustomOfCall | None = None
    type: str | None = "function"


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
    function_call: FunctionOfCall | None = None
    name: str | None = None


class ToolMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    tool_call_id: str
    content: Content = None


class FunctionMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="function"):
    """The result of a call in the API's first version, in which calls had names but no ids."""

    name: str
    content: Content = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


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


class ReasoningOptions(Struct, frozen=True, kw_only=True):
    """OpenRouter's way to ask for reasoning."""

    effort: str | None = None
    max_tokens: int | None = None
    enabled: bool | None = None


class UserLocation(Struct, frozen=True, kw_only=True):
    approximate: Location = Location()


class WebSearchOptions(Struct, frozen=True, kw_only=True):
    search_context_size: Literal["low", "medium", "high"] | None = None
    user_location: UserLocation | None = None


class Plugin(Struct, frozen=True, kw_only=True):
    """OpenRouter's way to ask for a search."""

    id: str | None = None


class ChatRequest(Struct, frozen=True, kw_only=True):
    model: str
    messages: list[Message]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    tools: list[Raw] | None = None
    tool_choice: str | NamedChoice | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    functions: list[Function] | None = None
    function_call: str | Name | None = None
    parallel_tool_calls: bool | None = None
    response_format: FormatText | FormatJsonObject | FormatJsonSchema | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningOptions | None = None
    enable_thinking: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    web_search_options: WebSearchOptions | None = None
    plugins: list[Plugin] | None = None
    max_tool_calls: int | None = None
    adjusted: Adjustments = NONE

    def __post_init__(self) -> None:
        if not self.messages:
            raise errors.bad_request("messages must contain at least one message.", param="messages")


REQUEST = RequestDecoder(ChatRequest, repaired)


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


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class FunctionDelta(Struct, frozen=True):
    arguments: str
    name: str | UnsetType = UNSET


class CustomDelta(Struct, frozen=True):
    input: str
    name: str | UnsetType = UNSET


class ToolCallDelta(Struct, frozen=True):
    """A piece of a call. ``id``, ``type`` and name are only in the first one; arguments or input come in pieces.

    A custom call has no ``type``: the published schema of a chunk allows only ``function``.
    """

    index: int
    function: FunctionDelta | UnsetType = UNSET
    custom: CustomDelta | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class UrlCitation(Struct, frozen=True):
    url: str
    title: str
    start_index: int
    end_index: int


class Citation(Struct, frozen=True):
    """A web page that the text between two characters rests on."""

    url_citation: UrlCitation
    type: Literal["url_citation"] = "url_citation"


class Image(Struct, frozen=True):
    """A generated image, as a data URL; OpenAI's API has no place for one, and routers use this shape."""

    image_url: ImageUrl
    type: Literal["image_url"] = "image_url"


class Delta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET
    annotations: list[Citation] | UnsetType = UNSET
    images: list[Image] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class Chunk(Struct, frozen=True):
    """One streamed chunk. ``usage`` is absent unless the client requested it; then only the last one has a value."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | UnsetType | None = UNSET


class FunctionCall(Struct, frozen=True):
    name: str
    arguments: str


class CustomCall(Struct, frozen=True):
    name: str
    input: str


class MessageToolCall(Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function", "custom"] = "function"
    function: FunctionCall | UnsetType = UNSET
    custom: CustomCall | UnsetType = UNSET


class ResponseMessage(Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None
    annotations: list[Citation]
    images: list[Image] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


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

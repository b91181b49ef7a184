"""Wire records of the Responses API, as the Codex backend speaks it: the request that goes up, the events that come.

Strict towards our own clients, lenient towards the upstream: an event that cannot be read becomes ``Other``.
"""

from typing import Any, Literal, TypeGuard

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

INCLUDE = ("reasoning.encrypted_content",)
"""What is always asked for, and all that there is: reasoning that can be sent back, since nothing is stored."""

RawObject = dict[str, Raw]
"""A JSON object of which codexd touches a key or two and carries the rest as it is."""


_NULL = Raw(b"null")


def given(raw: Raw | UnsetType) -> TypeGuard[Raw]:
    """Neither missing nor null: Raw cannot stand in a union with None."""
    return raw is not UNSET and raw != _NULL


# --- the request that goes up


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
    """The body of ``POST /codex/responses``: an allow-list, because the backend refuses any key that it does not know.

    The order of the keys is the official client's; the prefix must not change between turns, or prompt caching fails.
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


def plain(raw: Raw | None) -> str | None:
    """The string in a raw value; None for anything else."""
    try:
        return None if raw is None else msgspec.json.decode(raw, type=str)
    except msgspec.ValidationError:
        return None


def type_of(value: InputItem | Tool | RawObject) -> str | None:
    """The ``type`` of an item, a tool or a part, in whichever form it is held."""
    if isinstance(value, dict):
        return plain(value.get("type"))
    tag = type(value).__struct_config__.tag
    return tag if isinstance(tag, str) else None


# --- what a client sends to /v1/responses


class ReasoningIn(Struct, frozen=True):
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextIn(Struct, frozen=True):
    format: Raw | UnsetType = UNSET
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(Struct, frozen=True, kw_only=True):
    model: str
    input: str | list[RawObject]
    instructions: str | None = None
    stream: bool | None = False
    tools: list[RawObject] | None = None
    tool_choice: Raw | UnsetType = UNSET
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningIn | None = None
    text: TextIn | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    client_metadata: Raw | UnsetType = UNSET
    include: list[str] | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    store: bool | None = None


REQUEST = msgspec.json.Decoder(ResponsesRequest)


# --- the events that come


class Part(Struct, frozen=True):
    type: str = ""
    text: str = ""
    refusal: str = ""


class Item(Struct, frozen=True, kw_only=True):
    """An output item, of whatever type: the keys that the chat conversion uses."""

    type: str = ""
    phase: str | None = None
    name: str = ""
    call_id: str = ""
    arguments: str = ""
    input: str = ""
    encrypted_content: str | None = None
    content: list[Part] | None = None
    summary: list[Part] | None = None


class InputTokensDetails(Struct, frozen=True):
    cached_tokens: int | None = 0


class OutputTokensDetails(Struct, frozen=True):
    reasoning_tokens: int | None = 0


class Usage(Struct, frozen=True, kw_only=True):
    """Token counts; any of them may be null or missing."""

    input_tokens: int | None = 0
    output_tokens: int | None = 0
    total_tokens: int | None = 0
    input_tokens_details: InputTokensDetails | None = None
    output_tokens_details: OutputTokensDetails | None = None


class ResponseError(Struct, frozen=True):
    code: str | int | None = None
    message: str | None = None
    type: str | None = None
    resets_in_seconds: float | None = None


class IncompleteDetails(Struct, frozen=True):
    reason: str | None = None


class Response(Struct, frozen=True, kw_only=True):
    """The response object inside an event: the keys that codexd reads."""

    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[Item] | None = None
    usage: Usage | None = None


class OutputItemAdded(Struct, frozen=True, kw_only=True, tag="response.output_item.added"):
    output_index: int = 0
    item: Item


class OutputItemDone(Struct, frozen=True, kw_only=True, tag="response.output_item.done"):
    output_index: int = 0
    item: Item


class TextDelta(Struct, frozen=True, kw_only=True, tag="response.output_text.delta"):
    output_index: int = 0
    delta: str


class RefusalDelta(Struct, frozen=True, kw_only=True, tag="response.refusal.delta"):
    output_index: int = 0
    delta: str


class SummaryDelta(Struct, frozen=True, kw_only=True, tag="response.reasoning_summary_text.delta"):
    output_index: int = 0
    summary_index: int = 0
    delta: str


class ReasoningDelta(Struct, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    output_index: int = 0
    delta: str


class ArgumentsDelta(Struct, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    output_index: int = 0
    delta: str


class ArgumentsDone(Struct, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    output_index: int = 0
    arguments: str


class CustomInputDelta(Struct, frozen=True, kw_only=True, tag="response.custom_tool_call_input.delta"):
    output_index: int = 0
    delta: str


class CustomInputDone(Struct, frozen=True, kw_only=True, tag="response.custom_tool_call_input.done"):
    output_index: int = 0
    input: str


class Completed(Struct, frozen=True, kw_only=True, tag="response.completed"):
    response: Response


class Incomplete(Struct, frozen=True, kw_only=True, tag="response.incomplete"):
    response: Response


class Failed(Struct, frozen=True, kw_only=True, tag="response.failed"):
    response: Response


class Cancelled(Struct, frozen=True, kw_only=True, tag="response.cancelled"):
    pass


class ErrorEvent(Struct, frozen=True, kw_only=True, tag="error"):
    """Either flat or with the error inside; both were seen."""

    code: str | int | None = None
    message: str | None = None
    error: ResponseError | None = None


class Other(Struct, frozen=True, kw_only=True):
    """An event that codexd does not read, or cannot."""

    type: str = ""


Known = (
    OutputItemAdded
    | OutputItemDone
    | TextDelta
    | RefusalDelta
    | SummaryDelta
    | ReasoningDelta
    | ArgumentsDelta
    | ArgumentsDone
    | CustomInputDelta
    | CustomInputDone
    | Completed
    | Incomplete
    | Failed
    | Cancelled
    | ErrorEvent
)
Event = Known | Other

FAILURES = frozenset({"response.failed", "response.cancelled", "error"})

_KNOWN: msgspec.json.Decoder[Known] = msgspec.json.Decoder(Known)
_OTHER = msgspec.json.Decoder(Other)


def decode_event(data: bytes) -> Event:
    """The event in one ``data:`` field. The ``type`` inside decides, not the ``event:`` line, which may be missing.

    Bad JSON, unknown types and known types in an unknown shape are ``Other``: the official client skips them too.
    """
    try:
        return _KNOWN.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            other = _OTHER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Other()
        # A failure in a shape that nobody has seen yet is still a failure.
        return ErrorEvent() if other.type in FAILURES else other

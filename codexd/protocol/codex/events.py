"""Events of the backend's stream, read leniently. An event that cannot be read becomes ``Other``."""

import msgspec
from msgspec import Struct


class Part(Struct, frozen=True):
    type: str = ""
    text: str = ""
    refusal: str = ""


class Item(Struct, frozen=True, kw_only=True):
    """An output item of any type, with the keys that the chat conversion uses."""

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
    """Token counts; each may be null or missing."""

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
    """The response object inside an event, with the keys that codexd reads."""

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
    """A failure event, flat or with a nested error object; both forms were observed."""

    code: str | int | None = None
    message: str | None = None
    error: ResponseError | None = None


class Other(Struct, frozen=True, kw_only=True):
    """An event that codexd does not read or cannot decode."""

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
    """Decodes one ``data:`` field. Its ``type`` decides, not the ``event:`` line, which may be missing.

    Bad JSON, unknown types and known types in an unknown shape become ``Other``; the official client skips them too.
    """
    try:
        return _KNOWN.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            other = _OTHER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Other()
        # A failure in an unknown shape is still a failure.
        return ErrorEvent() if other.type in FAILURES else other

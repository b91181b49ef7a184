"""Events of the backend's stream, read leniently. An event that cannot be read becomes ``Other``."""

import json  # noqa: TID251 - msgspec refuses halves of surrogate pairs
import re
from collections.abc import Iterable
from typing import Any, Union, get_args

import msgspec
from msgspec import Raw, Struct

from codexd.protocol import decoding


class Annotation(Struct, frozen=True, kw_only=True):
    """A mark on a text; the keys are those of a ``url_citation``. Indexes count the characters of the part.

    Its shape is not checked, so that a malformed annotation does not lose the text.
    """

    type: Any = ""
    url: Any = ""
    title: Any = None
    start_index: Any = 0
    end_index: Any = 0


class Part(Struct, frozen=True):
    type: str = ""
    text: str = ""
    refusal: str = ""
    annotations: list[Annotation] | None = None


class Item(Struct, frozen=True, kw_only=True):
    """An output item of any type, with the keys that the chat conversion uses.

    The last three are those of a ``web_search_call``, of no certain shape.
    """

    type: str = ""
    phase: str | None = None
    name: str = ""
    call_id: str = ""
    arguments: str = ""
    input: str = ""
    encrypted_content: str | None = None
    content: list[Part] | None = None
    summary: list[Part] | None = None
    result: str | None = None
    output_format: str | None = None
    action: Any = None
    results: Any = None
    error: Any = None


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
    plan_type: Any = None
    resets_at: Any = None
    resets_in_seconds: Any = None


class IncompleteDetails(Struct, frozen=True):
    reason: str | None = None


class Response(Struct, frozen=True, kw_only=True):
    """The response object inside an event, with the keys that codexd reads."""

    status: str | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[Item] | None = None
    usage: Usage | None = None


def total_usage(usages: Iterable[Usage | None]) -> Usage | None:
    """Returns the usage of several answers together; None if none is known."""
    found = [usage for usage in usages if usage is not None]
    if len(found) <= 1:
        return found[0] if found else None
    cached = sum((each.input_tokens_details or InputTokensDetails()).cached_tokens or 0 for each in found)
    reasoning = sum((each.output_tokens_details or OutputTokensDetails()).reasoning_tokens or 0 for each in found)
    return Usage(
        input_tokens=sum(each.input_tokens or 0 for each in found),
        output_tokens=sum(each.output_tokens or 0 for each in found),
        total_tokens=sum(each.total_tokens or 0 for each in found),
        input_tokens_details=InputTokensDetails(cached),
        output_tokens_details=OutputTokensDetails(reasoning),
    )


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

    status: int | None = None
    status_code: int | None = None
    code: str | int | None = None
    message: str | None = None
    error: ResponseError | None = None


class Silent(Struct, frozen=True):
    """An event of every answer that says nothing that others do not: it is known so that it need not be decoded."""


_SILENT = [
    msgspec.defstruct("Silent", [], bases=(Silent,), frozen=True, tag=f"response.{name}")
    for name in (
        "created",
        "in_progress",
        "content_part.added",
        "content_part.done",
        "output_text.done",
        "reasoning_summary_part.added",
        "reasoning_summary_part.done",
        "reasoning_summary_text.done",
    )
]


class HalfDelta(Struct, frozen=True, kw_only=True):
    """A delta with half of a character, which the next delta of its kind and item completes."""

    kind: "type[Delta]"
    output_index: int
    delta: str


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

Delta = TextDelta | RefusalDelta | SummaryDelta | ReasoningDelta | ArgumentsDelta | CustomInputDelta

Event = Known | Silent | HalfDelta | Other

FAILURES = frozenset({"response.failed", "response.cancelled", "error"})

_KNOWN: decoding.Decoder[Known | Silent] = decoding.Decoder(Union[(Known, *_SILENT)])

decode_known = _KNOWN.raw
"""Decodes what ``decode_event`` does not have to look at twice; raises decoding.UNREADABLE for the rest."""

_OTHER = decoding.Decoder(Other)


def decode_event(data: bytes) -> Event:
    """Decodes one ``data:`` field. Its ``type`` decides, not the ``event:`` line, which may be missing.

    Bad JSON, unknown types and known types in an unknown shape become ``Other``; the official client skips them too.
    """
    try:
        return decode_known(data)
    except decoding.UNREADABLE:
        return _decode_other(data)


def _decode_other(data: bytes) -> Event:
    try:
        other = _OTHER.decode(data)
        if other.type in ODD:
            return _KNOWN.decode(standard(other.type, data))
    except msgspec.DecodeError:
        return _half(data) if b"\\u" in data else Other()
    # A failure in an unknown shape is still a failure.
    return ErrorEvent() if other.type in FAILURES else other


# --- halves of characters

_DELTAS: dict[str, type[Delta]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Delta)}


def _half(data: bytes) -> HalfDelta | Other:
    """Decodes a delta with half of a surrogate pair, which msgspec refuses."""
    try:
        found = json.loads(data)
        kind, text, index = _DELTAS.get(found["type"]), found["delta"], found.get("output_index", 0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Other()
    if kind is None or not isinstance(text, str) or not isinstance(index, int):
        return Other()
    return HalfDelta(kind=kind, output_index=index, delta=text)


def whole_event(data: bytes, halves: dict[tuple[str, int], str]) -> bytes:
    """Returns a delta with half of a character joined with the half before it; empty for a half alone.

    It is also empty for other data. ``halves`` has what waits for its other half.
    """
    event = _half(data)
    if isinstance(event, Other):
        return b""
    kind = str(event.kind.__struct_config__.tag)
    place = (kind, event.output_index)
    text, halves[place] = join_halves(halves.get(place, "") + event.delta)
    return msgspec.json.encode(json.loads(data) | {"delta": text}) if text else b""


def join_halves(text: str) -> tuple[str, str]:
    """Returns a text with surrogate pairs as characters, and the half at its end, or nothing, apart."""
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    rest = joined[-1:] if "\ud800" <= joined[-1:] <= "\udbff" else ""
    whole = joined[: len(joined) - len(rest)]
    return whole.encode("utf-8", "replace").decode() if _HALVES.search(whole) else whole, rest


_HALVES = re.compile("[\ud800-\udfff]")


# --- events in other words

_DONE, _ADDED = "response.done", "response.output_item.add.delta"

ODD = frozenset({_DONE, _ADDED})
"""Types that codexd's specification has, and OpenAI's API has not: the end of an answer, and a delta of its text."""


class _Status(Struct, frozen=True):
    status: str | None = None


class _Done(Struct, frozen=True):
    response: _Status = _Status()


class _Content(Struct, frozen=True):
    content: list[Part] = []


class _Added(Struct, frozen=True, kw_only=True):
    output_index: int = 0
    item_id: str = ""
    delta: _Content | str = ""
    item: _Content = _Content()
    content: list[Part] = []


_ENDS = frozenset({"incomplete", "failed", "cancelled"})


def standard(kind: str, data: bytes) -> bytes:
    """Returns an event of a type in ODD in the API's own words. Raises msgspec.DecodeError for an unknown shape."""
    whole = decoding.decode(data, type=dict[str, Raw])
    if kind == _DONE:
        status = decoding.decode(data, type=_Done).response.status
        end = status if status in _ENDS else "completed"
        return msgspec.json.encode({**whole, "type": f"response.{end}"})
    added = decoding.decode(data, type=_Added)
    if isinstance(added.delta, str):
        text = added.delta or "".join(part.text for part in (*added.content, *added.item.content))
    else:
        text = "".join(part.text for part in added.delta.content)
    place = {"item_id": added.item_id, "output_index": added.output_index, "content_index": 0}
    number = {"sequence_number": whole["sequence_number"]} if "sequence_number" in whole else {}
    return msgspec.json.encode({"type": "response.output_text.delta", **place, **number, "delta": text, "logprobs": []})

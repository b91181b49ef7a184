"""Ends a Responses stream at ``max_output_tokens``, which the backend does not support.

Only requests with a limit use this. Open parts are closed as in OpenAI's API: ``done`` for the text and the part, the
item as ``incomplete``, and ``response.incomplete`` with the reason.
"""

import msgspec
from msgspec import Raw, Struct

from codexd.protocol import decoding
from codexd.protocol.raw import RawObject
from codexd.protocol.stops import Cutoff

Event = dict[str, object]

_COUNTED = {
    "response.output_text.delta": "text",
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}


class _Delta(Struct):
    delta: str
    output_index: int = 0
    content_index: int = 0
    item_id: str = ""


_DELTA = decoding.Decoder(_Delta)


class Truncation:
    """Token limit of one answer."""

    def __init__(self, cut: Cutoff) -> None:
        self._cut = cut
        self._so_far: dict[int, str] = {}

    @property
    def spent(self) -> int:
        return self._cut.spent

    def push(self, kind: str, data: bytes) -> list[Event] | None:
        """Returns the events that replace this one and end its item at the limit; None while everything fits."""
        key = _COUNTED.get(kind)
        if key is None:
            return None
        delta = _DELTA.decode(data)
        fits = self._cut.spend(delta.delta)
        whole = self._so_far[delta.output_index] = self._so_far.get(delta.output_index, "") + fits
        if self._cut.reason is None:
            return None
        place: Event = {"item_id": delta.item_id, "output_index": delta.output_index}
        if key == "text":
            place["content_index"] = delta.content_index
        events: list[Event] = []
        if fits:
            extra: Event = {"logprobs": []} if key == "text" else {}
            events.append({"type": kind, **place, "delta": fits, **extra})
        return events + _closing(kind, key, place, whole)

    def closed(self, item: RawObject, index: int) -> RawObject:
        """Returns the item as it is when it is cut off."""
        whole = self._so_far.get(index, "")
        changes: Event = {"status": "incomplete"}
        if item.get("type") == Raw(b'"message"'):
            changes["content"] = [text_part(whole)]
        else:
            changes["input" if item.get("type") == Raw(b'"custom_tool_call"') else "arguments"] = whole
        return item | {key: Raw(msgspec.json.encode(value)) for key, value in changes.items()}


def text_part(text: str) -> Event:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _closing(kind: str, key: str, place: Event, whole: str) -> list[Event]:
    done: Event = {"type": kind.removesuffix("delta") + "done", **place, key: whole}
    if key != "text":
        return [done]
    return [done | {"logprobs": []}, {"type": "response.content_part.done", **place, "part": text_part(whole)}]

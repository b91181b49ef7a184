"""The automaton of an answer in which codexd runs the hosted tools: several answers of the backend become one.

    state    | left by                                                            | to
    ---------|--------------------------------------------------------------------|------
    reading  | completed, after calls of hosted tools and of no other tool        | over
    reading  | any other terminal event                                           | ended
    over     | ``next_request``, after each call was started and finished         | reading
    ended    | –                                                                  | –

The events of the calls themselves are held back. The client gets those of the items that OpenAI's own tools would
make. Events of later rounds are renumbered, and the last one carries the first one's id and the usage of all.

A call of a hosted tool beside a call of a client's tool is left out: the answer must end for the client's call, and the
model can make the other one again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from codexd.protocol import decoding
from codexd.protocol.codex.events import ODD, standard
from codexd.protocol.codex.request import (
    AdditionalTools,
    FunctionCallOutput,
    InputImage,
    InputItem,
    Message,
    UpstreamRequest,
)
from codexd.protocol.codex.tools import SEARCH
from codexd.protocol.hosted import pages
from codexd.protocol.hosted.pages import Page
from codexd.protocol.hosted.tools import IMAGES, Hosted, without
from codexd.protocol.raw import RawObject, encoded, plain, type_of

_CALLS = frozenset({"function_call", "custom_tool_call"})

_SPENT = "No more calls are possible in this answer. Answer with what is known, and say what is missing."

_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
_OPENING = frozenset({"response.created", "response.in_progress", "response.queued"})
_TEXT_ENDS = frozenset({"response.output_text.done", "response.content_part.done", "response.output_item.done"})
"""Events with the whole text of a part, the first of which is preceded by its citations."""

_HIDDEN = ("id", "status")
"""Members of an output item that an input item has not."""

_OBJECT = decoding.Decoder(RawObject)


class Call(NamedTuple):
    """One call of a hosted tool. ``place`` is its item's index in the client's answer."""

    place: int
    id: str
    call_id: str
    name: str
    arguments: str


class Outcome(NamedTuple):
    """What a call returned: ``text`` for the model, and pages or an image (base64) for the client.

    ``query`` is what was searched or drawn. ``failed`` is why the call failed, in one word of Anthropic's API.
    """

    text: str
    query: str = ""
    pages: Sequence[Page] = ()
    image: Mapping[str, Any] | None = None
    failed: str | None = None


class _ItemHead(Struct):
    type: str = ""
    namespace: str | None = None


class _Head(Struct):
    type: str = ""
    output_index: int | None = None
    item: _ItemHead | None = None


_HEAD = decoding.Decoder(_Head)


class Rounds:
    """One answer. ``calls`` are those of the round that is ``over``.

    ``progressed``: something of the current round was passed on, so it cannot be tried again.
    """

    def __init__(self, hosted: Hosted, request: UpstreamRequest) -> None:
        self._hosted = hosted
        self._request = request
        self._round = 0
        self._left = hosted.rounds
        self._first: RawObject = {}
        self._usage: dict[str, Any] = {}
        self._pages: dict[str, str] = {}
        self._drawn: str | None = None
        self._offset = self._next_index = 0
        self._begin()

    def _begin(self) -> None:
        self._held: set[int] = set()
        self._done: dict[int, RawObject] = {}
        self._cited: set[tuple[int, int]] = set()
        self.progressed = self.over = False
        self.calls: list[Call] = []

    def restart(self) -> None:
        """Forgets the events of the round, which is tried again. Only while it has not ``progressed``."""
        self._begin()

    # --- the events of a round

    def feed(self, events: Sequence[bytes]) -> list[bytes]:
        """Takes events of the backend; returns those for the client. An unknown event is passed on unchanged."""
        out: list[bytes] = []
        for event in events:
            try:
                out += self._push(event)
            except (ValueError, LookupError, TypeError, AttributeError):
                out.append(event)
        return out

    def _push(self, data: bytes) -> list[bytes]:
        head = _HEAD.decode(data)
        kind, index = head.type, head.output_index
        if kind in ODD:
            return self._push(standard(kind, data))
        if kind in _OPENING:
            return self._opening(data)
        if kind in _TERMINAL:
            return self._terminal(kind, data)
        if index is None:
            return [data]
        item = head.item
        if item is not None and item.type in _CALLS and item.namespace == self._hosted.space:
            self._held.add(index)
        if kind == "response.output_item.done":
            self._done[index] = _OBJECT.decode(_OBJECT.decode(data)["item"])
        if index in self._held:
            return []
        self.progressed = True
        place = self._offset + index
        self._next_index = max(self._next_index, place + 1)
        before: list[bytes] = []
        if self._pages and kind in _TEXT_ENDS:
            before, data = self._cite(kind, place, data)
        if self._offset:
            data = msgspec.json.encode(_OBJECT.decode(data) | {"output_index": encoded(place)})
        return [*before, data]

    def _opening(self, data: bytes) -> list[bytes]:
        if self._round:
            return []
        self._first = _response_in(data)
        return [data]

    def _terminal(self, kind: str, data: bytes) -> list[bytes]:
        response = _response_in(data)
        # Usually empty; items may come only here.
        items = [] if self._done else _items_in(response.get("output"))
        late = [
            event
            for index, item in enumerate(items)
            for event in self._push(_event("response.output_item.done", output_index=index, item=item))
        ]
        usage = _sum(self._usage, _members(response.get("usage")))
        hosted = {index: item for index, item in self._done.items() if index in self._held}
        others = any(type_of(item) in _CALLS for index, item in self._done.items() if index not in self._held)
        if kind == "response.completed" and hosted and not others and self._left > 0:
            self._usage, self.over = usage, True
            self.calls = [self._call(index, hosted[index]) for index in sorted(hosted)]
            return late
        if not self._round and not self._held:
            return [*late, data]
        response |= {key: self._first[key] for key in ("id", "created_at") if key in self._first}
        response["output"] = Raw(b"[]")
        if usage:
            response["usage"] = encoded(usage)
        return [*late, msgspec.json.encode(_OBJECT.decode(data) | {"response": encoded(response)})]

    def _call(self, index: int, item: RawObject) -> Call:
        call_id, name = plain(item.get("call_id")) or "", plain(item.get("name")) or ""
        place = self._offset + index
        self._next_index = max(self._next_index, place + 1)
        own = f"{'ig' if name == IMAGES else 'ws'}_{self._round}_{index}_{call_id.removeprefix('call_')}"
        return Call(place, own, call_id, name, plain(item.get("arguments")) or "")

    # --- between two rounds

    @property
    def spent(self) -> bool:
        """Whether the next call is over the limit."""
        return self._left <= 0

    def started(self, call: Call) -> list[bytes]:
        """Returns the client's events for a call that begins. Counts it."""
        self._left -= 1
        kind, fields, doing = _shape(call, Outcome("", query_of(call)))
        place = {"output_index": call.place, "item_id": call.id}
        item = {"id": call.id, "type": kind, "status": "in_progress", **fields}
        return [
            _event("response.output_item.added", output_index=call.place, item=item),
            _event(f"response.{kind}.in_progress", **place),
            _event(f"response.{kind}.{doing}", **place),
        ]

    def finished(self, call: Call, outcome: Outcome) -> list[bytes]:
        """Returns the client's events for the end of a call that was started."""
        self._pages |= {page.url: page.title for page in outcome.pages if page.url not in self._pages}
        if outcome.image is not None:
            self._drawn = f"data:image/{outcome.image.get('output_format', 'png')};base64,{outcome.image['result']}"
        kind, fields, _ = _shape(call, outcome)
        status = "completed" if outcome.failed is None else "failed"
        item = {"id": call.id, "type": kind, "status": status, **fields}
        done = _event("response.output_item.done", output_index=call.place, item=item)
        if outcome.failed is not None:
            return [done]
        return [_event(f"response.{kind}.completed", output_index=call.place, item_id=call.id), done]

    def last_image(self) -> str | None:
        """Returns the conversation's last image, as its address; None if it has none."""
        if self._drawn is not None:
            return self._drawn
        return next((url for item in reversed(self._request.input) if (url := _image_in(item)) is not None), None)

    def next_request(self, outcomes: Mapping[str, Outcome]) -> UpstreamRequest:
        """Returns the request of the next round. ``outcomes`` are by the id of the call's item.

        A call without one was over the limit.
        """
        items: list[InputItem] = []
        for _, item in sorted(self._done.items()):
            if type_of(item) != "reasoning" or plain(item.get("encrypted_content")):
                items.append({key: value for key, value in item.items() if key not in _HIDDEN})
        for call in self.calls:
            text = outcomes[call.id].text if call.id in outcomes else _SPENT
            items.append(FunctionCallOutput(call_id=call.call_id, output=text))
        own = self._request.input
        if self._left <= 0:
            own = [self._without_hosted(item) for item in own]
        self._request = msgspec.structs.replace(self._request, input=[*own, *items])
        self._round += 1
        self._offset = self._next_index
        self._begin()
        return self._request

    def _without_hosted(self, item: InputItem) -> InputItem:
        if not isinstance(item, AdditionalTools):
            return item
        return msgspec.structs.replace(item, tools=without(item.tools, self._hosted.space))

    # --- citations

    def _cite(self, kind: str, place: int, data: bytes) -> tuple[list[bytes], bytes]:
        """Returns the events of a text's citations, and the event with them, if it has a place for them."""
        event = decoding.decode(data)
        if kind == "response.output_text.done":
            here = (place, event.get("content_index", 0))
            return self._annotations(event.get("item_id"), here, event.get("text")), data
        if kind == "response.content_part.done":
            parts = {event.get("content_index", 0): event.get("part")}
        else:
            event_item = event["item"]
            content = event_item.get("content")
            if event_item.get("type") != "message" or not isinstance(content, list):
                return [], data
            parts = dict(enumerate(content))
        before: list[bytes] = []
        changed = False
        for index, part in parts.items():
            if isinstance(part, dict) and isinstance(text := part.get("text"), str) and not part.get("annotations"):
                name = event.get("item_id") or event.get("item", {}).get("id")
                before += self._annotations(name, (place, index), text)
                part["annotations"] = [pages.annotation(each) for each in pages.citations(text, self._pages)]
                changed = True
        return before, msgspec.json.encode(event) if changed else data

    def _annotations(self, item_id: object, here: tuple[int, int], text: object) -> list[bytes]:
        if here in self._cited or not isinstance(text, str):
            return []
        self._cited.add(here)
        return [
            _event(
                "response.output_text.annotation.added",
                item_id=item_id,
                output_index=here[0],
                content_index=here[1],
                annotation_index=number,
                annotation=pages.annotation(each),
            )
            for number, each in enumerate(pages.citations(text, self._pages))
        ]


def _image_in(item: InputItem) -> str | None:
    if isinstance(item, Message):
        return next((part.image_url for part in reversed(item.content) if isinstance(part, InputImage)), None)
    if not isinstance(item, dict) or not bytes(item.get("content", b"")).startswith(b"["):
        return None
    parts = decoding.decode(item["content"], type=list[RawObject])
    return next((plain(part.get("image_url")) for part in reversed(parts) if type_of(part) == "input_image"), None)


def _shape(call: Call, outcome: Outcome) -> tuple[str, dict[str, Any], str]:
    """Returns the type of a call's item, its members, and the word for its work in the names of events."""
    if call.name == IMAGES:
        image = outcome.image or {}
        return "image_generation_call", {"result": None, **image, "revised_prompt": outcome.query}, "generating"
    action: dict[str, Any] = {"type": "search", "query": outcome.query, "queries": [outcome.query]}
    if outcome.pages:
        action["sources"] = [{"type": "url", "url": page.url} for page in outcome.pages]
    fields: dict[str, Any] = {"action": action}
    if outcome.pages:
        fields["results"] = [{"url": page.url, "title": page.title} for page in outcome.pages]
    if outcome.failed is not None:
        fields["error"] = outcome.failed
    return f"{SEARCH}_call", fields, "searching"


class _Arguments(Struct):
    query: str | None = None
    prompt: str | None = None
    change_last_image: bool | None = None
    recency: int | None = None
    domains: list[str] | None = None

    @property
    def wanted(self) -> str:
        """What to search or draw."""
        return (self.query or self.prompt or "").strip()


def arguments_of(call: Call) -> _Arguments:
    """Decodes a call's arguments. Raises ValueError for those that cannot be used."""
    found = decoding.decode(call.arguments or "{}", type=_Arguments)
    if not found.wanted:
        raise ValueError("query and prompt are empty")
    return found


def query_of(call: Call) -> str:
    """Returns what a call searches or draws; empty if its arguments cannot be read."""
    try:
        found = decoding.decode(call.arguments or "{}", type=_Arguments)
    except msgspec.DecodeError:
        return ""
    return found.wanted


# --- JSON


def _event(kind: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"type": kind, **fields})


def _response_in(data: bytes) -> RawObject:
    return _members_raw(_OBJECT.decode(data).get("response"))


def _members_raw(value: Raw | None) -> RawObject:
    return _OBJECT.decode(value) if value is not None and bytes(value).startswith(b"{") else {}


def _members(value: Raw | None) -> dict[str, Any]:
    return decoding.decode(value) if value is not None and bytes(value).startswith(b"{") else {}


def _items_in(value: Raw | None) -> list[RawObject]:
    try:
        return decoding.decode(value or b"[]", type=list[RawObject])
    except msgspec.ValidationError:
        return []


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sums of all numbers in two objects of the same shape."""
    whole: dict[str, Any] = dict(one)
    for key, value in other.items():
        mine = whole.get(key)
        if isinstance(value, dict):
            whole[key] = _sum(mine if isinstance(mine, dict) else {}, value)
        elif isinstance(value, int) and isinstance(mine, int):
            whole[key] = mine + value
        elif mine is None:
            whole[key] = value
    return whole

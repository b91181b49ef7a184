"""The automaton of the Responses API: events pass through, and are corrected where this backend differs from OpenAI's.

    state    | left by                                                               | to
    ---------|-----------------------------------------------------------------------|--------
    waiting  | the first event of the answer, except start and end of reasoning      | begun
    any      | completed, incomplete, ``max_output_tokens`` reached (``cut_short``)  | done
    any      | completed without any output item                                     | failed
    any      | failed, cancelled, error, an unreadable terminal event, early end     | failed

Corrections: the terminal event's ``output``, empty on this backend, is rebuilt from ``output_item.done``. The response
object gets every key of OpenAI's schema and repeats the client's values, not codexd's. Tool calls lose the namespace
that codexd added. ``sequence_number`` never repeats, even after a keepalive.
"""

from collections.abc import Callable, Mapping
from typing import Self

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd import errors
from codexd.errors import ApiError, ErrorObject
from codexd.protocol import decoding, sse
from codexd.protocol.codex.events import FAILURES, ODD, Failed, Usage, decode_event, standard, whole_event
from codexd.protocol.codex.failures import from_event
from codexd.protocol.lite import NAMESPACE
from codexd.protocol.raw import RawObject
from codexd.protocol.responses.truncation import Truncation, text_part

_SILENT = frozenset({"response.created", "response.in_progress", "response.queued"})
"""Events before any part of the answer."""

_DELTAS = {
    f"response.{name}.delta": f"event: response.{name}.delta\ndata: ".encode()
    for name in (
        "output_text", "refusal", "reasoning_summary_text", "reasoning_text", "function_call_arguments",
        "custom_tool_call_input",
    )
}  # fmt: skip
"""Events that are passed on unchanged, and their first bytes on the wire."""

_TERMINAL = {"response.completed": "completed", "response.incomplete": "incomplete"}
_WITH_RESPONSE = _SILENT | set(_TERMINAL)

ECHOED = ("instructions", "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls",
          "previous_response_id", "prompt_cache_key", "safety_identifier",
          "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user")  # fmt: skip
"""Keys of the response object that repeat the request: the client's own value is used."""

_DEFAULTS: RawObject = {
    key: Raw(value)
    for key, value in {
        "object": b'"response"',
        "background": b"false",
        "completed_at": b"null",
        "error": b"null",
        "frequency_penalty": b"0.0",
        "incomplete_details": b"null",
        "instructions": b"null",
        "max_output_tokens": b"null",
        "max_tool_calls": b"null",
        "metadata": b"{}",
        "parallel_tool_calls": b"true",
        "presence_penalty": b"0.0",
        "previous_response_id": b"null",
        "prompt_cache_key": b"null",
        "reasoning": b'{"effort":null,"summary":null}',
        "safety_identifier": b"null",
        "service_tier": b'"default"',
        "store": b"false",
        "temperature": b"1.0",
        "text": b'{"format":{"type":"text"}}',
        "tool_choice": b'"auto"',
        "tools": b"[]",
        "top_logprobs": b"0",
        "top_p": b"1.0",
        "truncation": b'"disabled"',
        "usage": b"null",
    }.items()
}
_HIDDEN: RawObject = {"instructions": Raw(b"null"), "tools": Raw(b"[]"), "tool_choice": Raw(b'"auto"')}
"""Replacements for values that codexd added to the request."""


class _Head(Struct):
    type: str
    sequence_number: int | None = None


class _StreamError(Struct, frozen=True):
    """OpenAI's ``error`` event. ``error`` repeats it as the object of the Chat API; SDKs raise on that key."""

    type: str
    sequence_number: int
    code: str | None
    message: str
    param: str | None
    error: ErrorObject
    status: int | UnsetType = UNSET
    headers: dict[str, str] | UnsetType = UNSET


class _Keepalive(Struct, frozen=True):
    type: str
    sequence_number: int


_HEAD = decoding.Decoder(_Head)
_RAW_HEAD = _HEAD.raw
_OBJECT = decoding.Decoder(RawObject)
_NAMESPACE_KEY = b'"namespace"'


class ResponsesStream:
    """Automaton of one answer. ``echo`` holds the client's values of ECHOED keys, ``own_names`` its own tool names.

    ``truncation`` ends the answer at a limit; usage is then estimated, with ``prompt_tokens`` for the request.
    ``on_done`` gets the final response object. ``websocket``: the client sees no HTTP status or headers.
    """

    def __init__(
        self,
        echo: RawObject,
        own_names: Mapping[str, str] | None = None,
        truncation: Truncation | None = None,
        prompt_tokens: Callable[[], int] = lambda: 0,
        on_done: Callable[[bytes], None] = lambda _: None,
        *,
        websocket: bool = False,
    ) -> None:
        self._websocket = websocket
        self._on_done = on_done
        self._truncation = truncation
        self._prompt_tokens = prompt_tokens
        self._open: dict[int, RawObject] = {}
        self._head_of_response: RawObject = {}
        self._own_names = {
            msgspec.json.encode(wire): Raw(msgspec.json.encode(own)) for wire, own in (own_names or {}).items()
        }
        self._echo = _HIDDEN | echo | {key: _as_echoed(echo[key]) for key in ("tools",) if key in echo}
        self._announced: set[int] = set()
        self._halves: dict[tuple[str, int], str] = {}
        self._assembled: dict[int, list[str]] = {}
        self._items: dict[int, Raw] = {}
        self._names: dict[int, Raw] = {}
        self._sequence = -1
        self._failure: bytes | None = None
        self.begun = False
        self.done = False
        self.cut_short = False
        self.error: ApiError | None = None
        self.usage: Usage | None = None
        self._response_object: bytes | None = None

    @property
    def state(self) -> Self:
        return self

    def push(self, data: bytes) -> bytes:
        """Takes the ``data`` of one event; returns the client's event as bytes, or empty bytes."""
        if self.done or self.error is not None:
            return b""
        try:
            head = _RAW_HEAD(data)
        except decoding.UNREADABLE:
            return self._joined(data) if b"\\u" in data else b""
        number, before = head.sequence_number, _DELTAS.get(head.type)
        if before is not None and number is not None and number > self._sequence and self._passes(data):
            self._sequence, self.begun = number, True
            return before + data + b"\n\n"
        if head.type in ODD:
            return self._standard(head.type, data)
        if self._assembled and head.type in _TERMINAL:
            return b"".join(map(self._close, list(self._assembled))) + self.push(data)
        if not head.type.startswith("response.") and head.type != "error":
            # Not an event of OpenAI's API. Websocket clients use the rate limits, which other clients find in headers.
            passes = self._websocket and head.type == "codex.rate_limits"
            return sse.encode(head.type.encode(), data) if passes else b""
        try:
            return self._push(head, data)
        except msgspec.DecodeError:
            # An unknown shape. Other events can be skipped, but the terminal event is needed.
            if head.type in _TERMINAL:
                self.error = errors.stream_ended()
            return b""

    def _passes(self, data: bytes) -> bool:
        """Returns whether a delta needs no change, as nearly all events."""
        return self._truncation is None and b"\n" not in data

    def _push(self, head: _Head, data: bytes) -> bytes:
        kind = head.type
        if kind in FAILURES:
            return self._fail(data)
        if kind == "response.metadata":
            return b""
        changes: RawObject = {}
        if kind in _WITH_RESPONSE:
            changes["response"] = self._response(kind, _OBJECT.decode(data).get("response", Raw(b"{}")))
            if self.error is not None:
                return b""
        elif kind.startswith("response.output_item."):
            changes = self._item(kind, data)
        else:
            self.begun = True
            if kind == "response.function_call_arguments.done":
                changes = self._named(data) | _without_nothing(_OBJECT.decode(data))
            if self._truncation is not None and (events := self._truncation.push(kind, data)) is not None:
                return self._cut_off(self._truncation, data, events)
        return self._event(kind, head.sequence_number, data, changes)

    def eof(self) -> None:
        """Handles the end of the upstream's stream; without a terminal event before, it is a failure."""
        if not self.done and self.error is None:
            self.error = errors.stream_ended()

    def failure(self, error: ApiError) -> bytes:
        """Returns the frame that ends a stream which fails after its first byte: the upstream's own, if it sent one."""
        if self._failure is not None:
            return self._event("response.failed", None, self._failure, {})
        it = own_error(error)
        frame = _StreamError("error", self._next(), it.code, it.message, it.param, it)
        if self._websocket:
            # The official client ignores an error without a status and continues to wait.
            frame = msgspec.structs.replace(frame, status=error.status, headers=error.all_headers())
        return sse.encode(b"error", msgspec.json.encode(frame))

    def keepalive(self) -> bytes:
        if self._sequence < 0:
            return b": keepalive\n\n"  # OpenAI's SDK requires response.created as the first event
        # An event, not a comment: clients of this API, such as the official one, reset their idle timer only on events.
        return sse.encode(b"keepalive", msgspec.json.encode(_Keepalive("keepalive", self._next())))

    def document(self) -> bytes:
        """Returns the final response object. Raises ValueError before the end."""
        if self._response_object is None:
            raise ValueError("an answer without an end has no document")
        return self._response_object

    def warm(self, head: bytes) -> bytes:
        """Returns the two events of an answer that is not generated. ``head`` has its id, model and creation time."""
        out = b""
        for kind, status in (("response.created", "in_progress"), ("response.completed", "completed")):
            response = self._complete(Raw(head), status=status)
            out += self._event(kind, None, msgspec.json.encode({"type": kind, "response": response}), {})
            self._response_object = bytes(response)
        self.begun = self.done = True
        self._on_done(self.document())
        return out

    # --- events

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _event(self, kind: str, number: int | None, data: bytes, changes: RawObject) -> bytes:
        if number is None or number <= self._sequence:
            changes["sequence_number"] = Raw(b"%d" % self._next())
        else:
            self._sequence = number
        if changes:
            data = msgspec.json.encode(_OBJECT.decode(data) | changes)
        return sse.encode(kind.encode(), data)

    def _joined(self, data: bytes) -> bytes:
        """Returns a delta with half of a character when its other half has come."""
        whole = whole_event(data, self._halves)
        return self.push(whole) if whole else b""

    def _standard(self, kind: str, data: bytes) -> bytes:
        """Returns an event in other words as the API's own ones, with those that its item lacks."""
        try:
            data = standard(kind, data)
        except msgspec.DecodeError:
            return b""
        event = decoding.decode(data)
        if event["type"] != "response.output_text.delta":
            return self.push(data)
        index = event["output_index"]
        out = b""
        if index not in self._announced:
            self._assembled[index] = []
            item = {
                "id": f"msg_{index}",
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            out += self._say("response.output_item.added", output_index=index, item=item)
            out += self._say("response.content_part.added", **_place(index), part=text_part(""))
        if index in self._assembled:
            self._assembled[index].append(event["delta"])
            event |= _place(index)
        return out + self.push(msgspec.json.encode(event))

    def _close(self, index: int) -> bytes:
        """Returns the last events of an item that came as deltas alone."""
        text = "".join(self._assembled.pop(index))
        if index in self._items:
            return b""
        content = [text_part(text)]
        item = {"id": f"msg_{index}", "type": "message", "status": "completed", "role": "assistant", "content": content}
        return (
            self._say("response.output_text.done", **_place(index), text=text, logprobs=[])
            + self._say("response.content_part.done", **_place(index), part=text_part(text))
            + self._say("response.output_item.done", output_index=index, item=item)
        )

    def _say(self, kind: str, **fields: object) -> bytes:
        return self.push(msgspec.json.encode({"type": kind, **fields}))

    def _fail(self, data: bytes) -> bytes:
        event = decode_event(data)
        if isinstance(event, Failed):
            raw = _OBJECT.decode(data)
            self._failure = msgspec.json.encode(raw | {"response": self._complete(raw["response"])})
        self.error = from_event(event)
        return b""

    def _cut_off(self, truncation: Truncation, data: bytes, events: list[dict[str, object]]) -> bytes:
        """Returns the events that end the answer early: they close the open part, its item, and the response."""
        index = _index(_OBJECT.decode(data))
        out = []
        for event in events:
            kind, encoded = str(event["type"]), msgspec.json.encode(event)
            changes = self._named(encoded) if kind == "response.function_call_arguments.done" else {}
            out.append(self._event(kind, None, encoded, changes))
        item = Raw(msgspec.json.encode(truncation.closed(self._open.get(index, {}), index)))
        self._items[index] = item
        done = {"type": "response.output_item.done", "output_index": index, "item": item}
        out.append(self._event("response.output_item.done", None, msgspec.json.encode(done), {}))
        tokens_in, tokens_out = self._prompt_tokens(), truncation.spent
        usage = {"input_tokens": tokens_in, "output_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
        end = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "usage": usage}
        ended = self._head_of_response | {key: Raw(msgspec.json.encode(value)) for key, value in end.items()}
        response = self._response("response.incomplete", Raw(msgspec.json.encode(ended)))
        last = {"type": "response.incomplete", "response": response}
        out.append(self._event("response.incomplete", None, msgspec.json.encode(last), {}))
        self.cut_short = True
        return b"".join(out)

    def _item(self, kind: str, data: bytes) -> RawObject:
        event = _OBJECT.decode(data)
        raw = event.get("item", Raw(b"{}"))
        item = _OBJECT.decode(raw)
        changes: RawObject = {}
        if self._own_names and (own := self._own_names.get(bytes(item.get("name", b"")))) is not None:
            item["name"] = own
            raw = changes["item"] = Raw(msgspec.json.encode(item))
        if _NAMESPACE_KEY in data and item.get("namespace") == Raw(msgspec.json.encode(NAMESPACE)):
            del item["namespace"]
            raw = changes["item"] = Raw(msgspec.json.encode(item))
        if item.get("type") == Raw(b'"function_call"') and kind == "response.output_item.done":
            changes_inside = _without_nothing(item)
            if changes_inside:
                item |= changes_inside
                raw = changes["item"] = Raw(msgspec.json.encode(item))
        if item.get("type") != Raw(b'"reasoning"'):
            self.begun = True
        index = _index(event)
        self._announced.add(index)
        if kind == "response.output_item.done":
            self._items[index] = raw
        elif "name" in item:
            self._names[index] = item["name"]
        if self._truncation is not None:
            self._open[index] = _OBJECT.decode(raw)
        return changes

    def _named(self, data: bytes) -> RawObject:
        """Returns the function's name, which OpenAI's schema requires in this event and the backend omits."""
        event = _OBJECT.decode(data)
        name = self._names.get(_index(event))
        return {} if name is None or "name" in event else {"name": name}

    # --- the response object

    def _response(self, kind: str, raw: Raw) -> Raw:
        if kind not in _TERMINAL:
            self._head_of_response = _OBJECT.decode(raw) if self._truncation is not None else {}
            return self._complete(raw)
        response = _OBJECT.decode(raw)
        if self._items:
            output = [item for _, item in sorted(self._items.items())]
            response["output"] = Raw(msgspec.json.encode(output))
        elif kind == "response.completed" and bytes(response.get("output", b"[]")) in (b"[]", b"null"):
            self.error = errors.empty_answer()
        complete = self._complete(Raw(msgspec.json.encode(response)), status=_TERMINAL[kind])
        self.begun = self.done = self.error is None
        self._response_object = bytes(complete)
        if self.done:
            self._on_done(self._response_object)
            self._on_done = lambda _: None  # releases the closure, which holds the whole request
        return complete

    def _complete(self, raw: Raw, status: str | None = None) -> Raw:
        given = {
            key: value for key, value in _OBJECT.decode(raw).items() if value != Raw(b"null") or key not in _DEFAULTS
        }
        response = {**_DEFAULTS, **given, **self._echo}
        if bytes(response["text"]).startswith(b"{") and b'"format"' not in bytes(response["text"]):
            response["text"] = Raw(msgspec.json.encode({**_TEXT, **_OBJECT.decode(response["text"])}))
        if response.get("user") == Raw(b"null"):
            del response["user"]  # the only key of the schema that may be missing but not null
        response.setdefault("output", Raw(b"[]"))
        if status is not None:
            response.setdefault("status", Raw(msgspec.json.encode(status)))
        if response["usage"] != Raw(b"null"):
            self.usage = decoding.decode(response["usage"], type=Usage)
            response["usage"] = _complete_usage(response["usage"])
        return Raw(msgspec.json.encode(response))


def own_error(error: ApiError) -> ErrorObject:
    """Returns the error object in this API's words: a usage limit's type is its code, which the Codex CLI reads."""
    it = error.error
    return msgspec.structs.replace(it, type=it.code) if it.code in _NAMED_BY_CODE else it


_NAMED_BY_CODE = frozenset({"usage_limit_reached", "usage_not_included"})


def failure_document(error: ApiError) -> bytes:
    """Returns the API's error document."""
    return msgspec.json.encode({"error": own_error(error)})


_TEXT: RawObject = {"format": Raw(b'{"type":"text"}')}
_EMPTY = Raw(b'""')


def _without_nothing(call: RawObject) -> RawObject:
    """Returns the arguments of a call without parameters: an empty object, because clients decode them."""
    return {"arguments": Raw(b'"{}"')} if call.get("arguments") == _EMPTY else {}


def _place(index: int) -> dict[str, object]:
    return {"item_id": f"msg_{index}", "output_index": index, "content_index": 0}


def _as_echoed(tools: Raw) -> Raw:
    """Returns the client's tools with the members that OpenAI's schema requires in an answer."""
    found = decoding.decode(tools, type=list[RawObject])
    return Raw(msgspec.json.encode([_as_echoed_tool(tool) for tool in found]))


def _as_echoed_tool(tool: RawObject) -> RawObject:
    if tool.get("type") == Raw(b'"namespace"'):
        return {**tool, "description": tool.get("name", _EMPTY), **tool}
    if tool.get("type") != Raw(b'"function"'):
        return tool
    if bytes(tool.get("function", b"")).startswith(b"{"):  # Chat Completions nests it
        tool = {"type": tool["type"], **_OBJECT.decode(tool["function"])}
    return {**tool, **_ECHOED_FUNCTION, **tool}


_ECHOED_FUNCTION: RawObject = {
    "description": Raw(b"null"), "parameters": Raw(b'{"type":"object","properties":{}}'), "strict": Raw(b"false"),
}  # fmt: skip


def _index(event: RawObject) -> int:
    return decoding.decode(event.get("output_index", Raw(b"0")), type=int)


def _complete_usage(raw: Raw) -> Raw:
    """Returns usage with all details; the backend omits some of them or sends null."""
    usage = _OBJECT.decode(raw)
    for key, defaults in _DETAILS.items():
        given = usage.get(key, Raw(b"null"))
        usage[key] = Raw(msgspec.json.encode(defaults | ({} if given == Raw(b"null") else _OBJECT.decode(given))))
    return Raw(msgspec.json.encode(usage))


_DETAILS: dict[str, RawObject] = {
    "input_tokens_details": {"cached_tokens": Raw(b"0"), "cache_write_tokens": Raw(b"0")},
    "output_tokens_details": {"reasoning_tokens": Raw(b"0")},
}

"""The websocket lane: one answer on one websocket, as the relay reads it.

    state    | left by                                                                     | to
    ---------|-----------------------------------------------------------------------------|---------
    asked    | ``response.created``                                                        | answering
    asked    | ``error``, ``response.failed``                                              | failed
    any      | an event of another response, or any event of an answer before its beginning | failed
    any      | ``response.completed`` with the same id                                     | complete
    any      | any other terminal event, the end of the connection                         | failed or cut

The backend matches answers to requests by order alone, so whatever is left unread would be taken for the next answer. A
connection is kept only after a complete answer whose last event was the last of its read.

A failure is raised by the call of ``push`` after the one that gave the events before it, so nothing depends on which
events came in one read.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import msgspec
import trio
from msgspec import UNSET, Raw, Struct

from codexd import errors
from codexd.errors import ApiError
from codexd.protocol import decoding
from codexd.protocol.codex import continuation, failures, rate_limits
from codexd.protocol.codex.events import ODD, standard
from codexd.protocol.codex.request import ResponseCreate
from codexd.protocol.raw import RawObject
from codexd.upstream.call import Call
from codexd.upstream.conversations import Entry, Head
from codexd.upstream.frames import Closed
from codexd.upstream.identity import LITE_METADATA, TURN_STATE

MAX_MESSAGE = 15_500_000
"""Bytes. The backend closes the connection for a message above 16 MiB, so larger requests are sent over HTTP."""

_DELTAS = tuple(
    f'{{"type":"response.{name}.delta"'.encode()
    for name in ("output_text", "function_call_arguments", "reasoning_summary_text", "custom_tool_call_input")
)
"""The usual beginning of nearly all events, which say nothing about the answer as a whole."""

_OF_THE_LANE = (401, 403, 404, 413)
"""Statuses that may be the websocket's fault. The next handshake, or HTTP, replaces the token, and HTTP takes larger
requests; the official client retries all of them and then takes HTTP."""

_LOST_CHAIN = ("previous_response_not_found", "websocket_connection_limit_reached")


class _Response(Struct, frozen=True):
    id: str | None = None
    error: "_Error | None" = None
    prompt_cache_key: str | None = None


class _Error(Struct, frozen=True):
    code: str | int | None = None
    message: str | None = None


class _Head(Struct, frozen=True):
    type: str = ""
    response: _Response | None = None
    status: int | None = None
    status_code: int | None = None
    error: _Error | None = None
    headers: dict[str, Any] | None = None


class _ItemDone(Struct, frozen=True):
    item: RawObject


_HEAD = decoding.Decoder(_Head)
_ITEM = decoding.Decoder(_ItemDone)


def message(call: Call, head: Head | None) -> bytes:
    """Returns the message that asks for an answer: with a head only what is new, and the head's key."""
    request, chain = call.request, call.chain
    own: dict[str, Any] = {}
    if call.lite:
        own[LITE_METADATA] = "true"
    if call.turn_state is not None:
        own[TURN_STATE] = call.turn_state
    metadata: Any
    if request.client_metadata is UNSET:
        metadata = {"session_id": call.key, "thread_id": call.key, "x-codex-window-id": f"{call.key}:0"} | own
    else:
        metadata = decoding.decode(request.client_metadata)
        if isinstance(metadata, dict):  # otherwise the backend refuses it, as over HTTP
            metadata |= own
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    if head is not None:
        fields |= {"previous_response_id": head.response_id, "prompt_cache_key": head.key}
    fields |= {
        "input": chain.items if head is None else chain.items[chain.tail :],
        "client_metadata": metadata,
    }
    return msgspec.json.encode(ResponseCreate(**fields))


class WebsocketStream:
    """The events of one answer. ``clock`` gives Unix seconds; ``on_limits`` gets each ``codex.rate_limits`` event.

    ``turn_state`` is the turn's first one: what was sent, or else what came.
    """

    def __init__(
        self,
        entry: Entry,
        call: Call,
        head: Head | None,
        headers: Callable[[], Mapping[str, str]],
        on_limits: Callable[[bytes], None],
        clock: Callable[[], float],
    ) -> None:
        self._entry = entry
        self._digest, self._timings = call.chain.digest, call.timings
        self._key = head.key if head is not None else call.request.prompt_cache_key
        self.turn_state = call.turn_state
        self._headers = headers
        self._on_limits = on_limits
        self._clock = clock
        self._id: str | None = None
        self._items: list[RawObject] = []
        self._over = False
        self._complete = False
        self._failure: ApiError | None = None
        self._unknown = False

    @property
    def headers(self) -> Mapping[str, str]:
        """The account's limits, as the headers of an answer over HTTP."""
        return self._headers()

    @property
    def pending(self) -> int:
        return self._entry.socket.pending

    async def push(self, step: Callable[[Sequence[bytes]], bool]) -> bool:
        """Calls ``step`` as the relay's ``UpstreamSource`` says. Raises ApiError."""

        def take(messages: Sequence[bytes]) -> bool:
            for number, each in enumerate(messages, 1):
                if self._id is None or not each.startswith(_DELTAS):
                    try:
                        self._note(each)
                    except ApiError as error:
                        self._failure = error
                        step(messages[: number - 1])
                        return False
                    if self._over:
                        self._complete = self._complete and number == len(messages)
                        step(messages[:number])
                        return False
            return step(messages)

        if self._failure is not None:
            raise self._failure
        if not self._over:
            try:
                await self._entry.socket.push(take)
            except (httpx.HTTPError, Closed) as error:
                raise errors.stream_ended() from error
        return self._over and self._failure is None

    def head(self) -> Head | None:
        """Returns what the next request can continue; None unless the answer is complete and was read to its end."""
        if not self._complete or not self._id or self._unknown:
            return None
        answer = continuation.answer_of(self._items)
        return Head(self._digest, self._id, answer, self._key)

    def _note(self, data: bytes) -> None:
        try:
            event = _HEAD.decode(data)
        except msgspec.DecodeError:
            return  # the conversion skips it too
        kind = event.type
        if kind in ODD:
            with contextlib.suppress(msgspec.DecodeError):
                kind = _HEAD.decode(standard(kind, data)).type
        if kind == "codex.rate_limits":
            self._on_limits(data)
        elif kind == "error":
            self._refused(event, data)
        elif kind == "response.metadata":
            self.turn_state = self.turn_state or _turn_state_in(data)
        elif kind.startswith("response."):
            self._progress(kind, event, data)

    def _progress(self, kind: str, event: _Head, data: bytes) -> None:
        name = event.response.id if event.response is not None else None
        if kind == "response.created":
            self._check(self._id is None)
            self._id = name or ""  # without an id nothing can continue it
            self._timings.status, self._timings.head = 200, trio.current_time()
            if event.response is not None and (key := event.response.prompt_cache_key) is not None:
                self._timings.key_kept = key == self._key
        elif kind == "response.failed":
            self._over = True
            if event.response is not None and _lost_chain(event.response.error):
                raise _chain_lost()
        else:
            self._check(self._id is not None and name in (None, self._id or name))
            if kind == "response.output_item.done":
                self._note_item(data)
            self._complete = kind == "response.completed"
            self._over = kind in ("response.completed", "response.incomplete", "response.cancelled")

    def _note_item(self, data: bytes) -> None:
        try:
            self._items.append(_ITEM.decode(data).item)
        except msgspec.DecodeError:
            self._unknown = True  # the conversion skips it, but the backend may hold it

    def _check(self, ours: bool) -> None:
        if not ours:
            raise errors.foreign_answer()

    def _refused(self, event: _Head, data: bytes) -> None:
        """Raises what an HTTP answer of that status would be; without a status the conversion reports the event."""
        self._over = True
        if _lost_chain(event.error):
            raise _chain_lost()
        status = event.status or event.status_code
        self._timings.status, self._timings.head = status, trio.current_time()
        if status is None:
            return
        headers = {name.lower(): str(value) for name, value in (event.headers or {}).items()}
        error = failures.from_http(status, headers, data, self._clock())
        error.headers += rate_limits.client_headers(headers, self._clock())
        if error.error.code == "server_is_overloaded":
            error.retryable = False  # the official client does not retry it here
        elif status in _OF_THE_LANE:
            error.retryable = True
        raise error


def _lost_chain(error: _Error | None) -> bool:
    """Returns whether the connection does not hold what was continued, or is too old: the whole input helps."""
    if error is None:
        return False
    return error.code in _LOST_CHAIN or "previous_response_id" in (error.message or "")


def _chain_lost() -> ApiError:
    error = errors.stream_ended()
    error.retryable = True
    return error


class _Metadata(Struct, frozen=True):
    headers: dict[str, Raw] = {}


def _turn_state_in(data: bytes) -> str | None:
    try:
        found = decoding.decode(data, type=_Metadata).headers.get(TURN_STATE)
        return None if found is None else decoding.decode(found, type=str)
    except msgspec.DecodeError:
        return None

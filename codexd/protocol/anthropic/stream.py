"""The automaton of the Messages API: chunks of the chat automaton in, content blocks out.

A block holds text, thinking or one tool use. Blocks are in a queue, in the order in which they began:

    state   | left when                                                                       | to
    --------|---------------------------------------------------------------------------------|-------
    queued  | it is the first block in the queue; until then it collects its pieces           | open
    open    | text, thinking: another block begins; tool use: its item is done; at the end    | closed

Pieces of the open block are sent at once. A queued block may be complete before it opens. The queue is needed because
the upstream may interleave calls, and this API does not allow that.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct

from codexd.errors import ApiError
from codexd.protocol import decoding, sse
from codexd.protocol.anthropic.failures import failure_document
from codexd.protocol.chat.converter import gather
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.chat.wire import Chunk, Citation, Delta, FinishReason, FunctionDelta
from codexd.protocol.codex.events import Item, OutputItemDone, Usage, decode_event
from codexd.protocol.reasoning import Turn
from codexd.protocol.stops import Cutoff

Kind = Literal["text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "web_search_tool_result"]

_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}

NO_IMAGES = (
    "[The model has generated an image ({kind}), which this API cannot carry. "
    "/v1/responses and /v1/chat/completions can.]"
)
"""Stands for an image in an answer."""

_encode = msgspec.json.encode
_PING = sse.encode(b"ping", b'{"type":"ping"}')


class _Usage(Struct, frozen=True):
    """Token counts. Unlike in the other APIs, ``input_tokens`` excludes cached tokens."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens_details: dict[str, int] | None = None
    cache_creation: None = None
    inference_geo: None = None
    server_tool_use: dict[str, int] | None = None
    service_tier: str = "standard"


class _Message(Struct, frozen=True, kw_only=True):
    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[dict[str, object]]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: None = None
    container: None = None
    usage: _Usage


class _Block:
    """A content block. ``sent`` counts the ``pieces`` that were sent, ``cited`` the citations; ``close`` is the
    signature.
    """

    __slots__ = ("citations", "cited", "close", "done", "head", "index", "key", "kind", "pieces", "sent")

    def __init__(self, kind: Kind, head: dict[str, object]) -> None:
        self.kind = kind
        self.head = head
        self.key = ""
        self.pieces: list[str] = []
        self.citations: list[dict[str, object]] = []
        self.sent = self.cited = 0
        self.done = False
        self.index = -1
        self.close = ""

    def content(self) -> dict[str, object]:
        """Returns the whole block as the API's content object."""
        whole = "".join(self.pieces)
        match self.kind:
            case "text":
                return self.head | {"text": whole, "citations": self.citations or None}
            case "thinking":
                return self.head | {"thinking": whole, "signature": self.close}
            case "redacted_thinking" | "web_search_tool_result":
                return self.head
            case _:
                return self.head | {"input": _arguments(whole)}


def _arguments(text: str) -> Raw:
    """Returns the arguments as JSON; an empty object if they were cut and are not valid JSON."""
    try:
        decoding.decode(text, type=dict[str, Raw])
    except msgspec.DecodeError:
        return Raw(b"{}")
    return Raw(text.encode())


_DELTAS: dict[Kind, tuple[str, str]] = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
    "server_tool_use": ("input_json_delta", "partial_json"),
}


_EMPTY: dict[Kind, dict[str, object]] = {
    "text": {"text": "", "citations": None},
    "thinking": {"thinking": "", "signature": ""},
    "redacted_thinking": {},
    "tool_use": {"input": {}},
    "server_tool_use": {"input": {}},
    "web_search_tool_result": {},
}


class MessagesConverter:
    """Converts one answer of the chat automaton. ``thinking``: thinking blocks were requested.

    ``searches``: web search was requested, so its calls are shown.

    ``cut`` is the automaton's. ``prompt_tokens`` estimates the request for ``message_start``, because the backend
    reports usage only at the end.
    """

    def __init__(
        self,
        stream: ChatStream,
        *,
        id: str,  # noqa: A002 - the API's own word
        model: str,
        streamed: bool,
        thinking: bool,
        cut: Cutoff,
        prompt_tokens: Callable[[], int],
        turn: Turn | None = None,
        searches: bool = False,
    ) -> None:
        self._searches = searches
        self._searched = 0
        self.state = stream
        self._id = id
        self._model = model
        self._streamed = streamed
        self._thinking = thinking
        self._cut = cut
        self._prompt_tokens = prompt_tokens
        self._turn = turn
        self._blocks: list[_Block] = []
        self._queue: list[_Block] = []
        self._tools: dict[int, _Block] = {}
        self._reason = "end_turn"
        self._refused = False
        self._out: list[bytes] = []
        self._started = self._ended = False

    def push(self, data: bytes) -> bytes:
        event = decode_event(data)
        item = event.item if isinstance(event, OutputItemDone) else None
        if item is not None:
            gather(self._turn, item, data)
        for chunk in self.state.push(event):
            self._chunk(chunk)
        if item is not None and not self.state.done:
            self._item_done(item)
        self._advance()
        if self.state.done and not self._ended:
            self._ended = True
            self._end()
        out, self._out = b"".join(self._out), []
        return out

    def failure(self, error: ApiError) -> bytes:
        return sse.encode(b"error", failure_document(error))

    def keepalive(self) -> bytes:
        return _PING

    def document(self) -> bytes:
        return _encode(self._message([block.content() for block in self._blocks], self._reason, self._usage()))

    # --- blocks

    def _chunk(self, chunk: Chunk) -> None:
        for choice in chunk.choices:
            self._delta(choice.delta)
            if choice.finish_reason is not None:
                self._reason = _REASONS[choice.finish_reason]

    def _delta(self, delta: Delta) -> None:
        if delta.reasoning_content is not UNSET:
            self._piece("thinking", delta.reasoning_content)
        if delta.content is not UNSET and delta.content:
            self._piece("text", delta.content)
        if delta.refusal is not UNSET:
            self._refused = True
            self._piece("text", delta.refusal)
        for image in delta.images or ():
            self._piece("text", NO_IMAGES.format(kind=image.image_url.url.partition(";")[0].removeprefix("data:")))
        if delta.annotations is not UNSET:
            self._cite(delta.annotations)
        for call in delta.tool_calls or ():
            function = call.function or FunctionDelta("")
            if call.index not in self._tools:
                head: dict[str, object] = {"type": "tool_use", "id": call.id or "", "name": function.name or ""}
                head["caller"] = {"type": "direct"}
                self._tools[call.index] = block = self._begin("tool_use", head)
                block.key = call.id or ""
            if function.arguments:
                self._tools[call.index].pieces.append(function.arguments)

    def _cite(self, citations: Sequence[Citation]) -> None:
        """Adds citations of web pages to the text that they belong to, the last one."""
        block = next((each for each in reversed(self._blocks) if each.kind == "text"), None)
        if block is None or (self._streamed and block not in self._queue):
            return
        for each in citations:
            it = each.url_citation
            place: dict[str, object] = {"type": "web_search_result_location", "url": it.url, "title": it.title or None}
            block.citations.append(place | {"cited_text": "", "encrypted_index": ""})

    def _piece(self, kind: Literal["text", "thinking"], text: str) -> None:
        last = self._queue[-1] if self._queue else None
        if last is None or last.kind != kind or last.done:
            last, text = self._begin(kind, {"type": kind}), text.lstrip("\n") if kind == "thinking" else text
        last.pieces.append(text)

    def _begin(self, kind: Kind, head: dict[str, object]) -> _Block:
        if self._queue and self._queue[-1].kind != "tool_use":
            self._queue[-1].done = True
        block = _Block(kind, head)
        self._queue.append(block)
        self._blocks.append(block)
        return block

    def _item_done(self, item: Item) -> None:
        """Closes blocks: encrypted reasoning ends its summary or stands alone, and a complete call ends its block."""
        last = self._queue[-1] if self._queue else None
        match item.type:
            case "reasoning" if self._thinking and item.encrypted_content:
                encrypted = item.encrypted_content
                if last is not None and last.kind == "thinking" and not last.done:
                    last.close, last.done = encrypted, True
                else:
                    self._begin("redacted_thinking", {"type": "redacted_thinking", "data": encrypted}).done = True
            case "message" if last is not None and last.kind == "thinking":
                last.done = True  # commentary: the next reasoning item must not sign it
            case "web_search_call" if self._searches:
                self._search(item)
            case "function_call":
                for block in self._queue:
                    block.done = block.done or block.key == item.call_id
            case _:
                pass

    def _search(self, item: Item) -> None:
        """Shows a search: its query, and the pages that it found or why it failed."""
        action = item.action if isinstance(item.action, dict) else {}
        if action.get("type", "search") != "search":
            return  # a page was opened, for which this API has no block
        self._searched += 1
        name = f"srvtoolu_{self._id.removeprefix('msg_')[:20]}{self._searched}"
        use = self._begin("server_tool_use", {"type": "server_tool_use", "id": name, "name": "web_search"})
        use.pieces.append(_encode({"query": str(action.get("query") or "")}).decode())
        use.done = True
        content: object = [
            _result(page) for page in (item.results if isinstance(item.results, list) else ()) if isinstance(page, dict)
        ]
        if item.error is not None:
            content = {"type": "web_search_tool_result_error", "error_code": str(item.error)}
        head = {"type": "web_search_tool_result", "tool_use_id": name, "content": content}
        self._begin("web_search_tool_result", head).done = True

    # --- events

    def _advance(self) -> None:
        """Sends the pieces of the open block, and opens the next one when it is done."""
        if not self._streamed:
            return
        while self._queue:
            block = self._queue[0]
            if block.index < 0:
                self._start(block)
            if block.sent < len(block.pieces):
                text, block.sent = "".join(block.pieces[block.sent :]), len(block.pieces)
                kind, key = _DELTAS[block.kind]
                self._delta_event(block, kind, key, text)
            for citation in block.citations[block.cited :]:
                self._event(
                    "content_block_delta", index=block.index, delta={"type": "citations_delta", "citation": citation}
                )
            block.cited = len(block.citations)
            if not block.done:
                return
            if block.close:
                self._delta_event(block, "signature_delta", "signature", block.close)
            self._event("content_block_stop", index=block.index)
            del self._queue[0]

    def _open(self) -> None:
        if not self._started:
            self._started = True
            self._event("message_start", message=self._message([], None, _Usage(self._prompt_tokens(), 0)))

    def _start(self, block: _Block) -> None:
        self._open()
        block.index = self._blocks.index(block)
        self._event("content_block_start", index=block.index, content_block=block.head | _EMPTY[block.kind])

    def _end(self) -> None:
        if self._turn is not None and not self.state.cut_short:
            self._turn.end()
        for block in self._queue:
            block.done = True
        self._advance()
        if self._refused and self._reason == "end_turn":
            self._reason = "refusal"
        if self._cut.reason == "stop":
            self._reason = "stop_sequence"
        if not self._streamed:
            return
        self._open()
        ended = {"stop_reason": self._reason, "stop_sequence": self._cut.matched}
        self._event("message_delta", delta=ended, usage=self._usage())
        self._event("message_stop")

    def _delta_event(self, block: _Block, kind: str, key: str, text: str) -> None:
        self._event("content_block_delta", index=block.index, delta={"type": kind, key: text})

    def _event(self, kind: str, **fields: object) -> None:
        self._out.append(sse.encode(kind.encode(), _encode({"type": kind, **fields})))

    def _message(self, content: list[dict[str, object]], reason: str | None, usage: _Usage) -> _Message:
        matched = None if reason is None else self._cut.matched
        return _Message(
            id=self._id, model=self._model, content=content, stop_reason=reason, stop_sequence=matched, usage=usage
        )

    def _usage(self) -> _Usage:
        usage = self.state.usage or Usage()
        details = usage.input_tokens_details
        cached = (details and details.cached_tokens) or 0
        thinking = (usage.output_tokens_details and usage.output_tokens_details.reasoning_tokens) or 0
        tokens_in, tokens_out = (usage.input_tokens or 0) - cached, usage.output_tokens or 0
        searched = {"web_search_requests": self._searched, "web_fetch_requests": 0} if self._searched else None
        return _Usage(tokens_in, tokens_out, 0, cached, {"thinking_tokens": thinking}, server_tool_use=searched)


def _result(page: dict[str, object]) -> dict[str, object]:
    """Returns a page in the API's shape; the text of pages stays with the model."""
    place = {"url": str(page.get("url") or ""), "title": str(page.get("title") or "")}
    return {"type": "web_search_result", **place, "encrypted_content": "", "page_age": None}

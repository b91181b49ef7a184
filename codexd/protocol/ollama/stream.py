"""Answers in Ollama's API: chunks of the chat automaton in, lines of JSON out.

    state    | left by                              | what is written
    ---------|--------------------------------------|-----------------------------------------------
    open     | a piece of text or thinking          | a line with it, ``done`` false
    open     | the end                              | a line with all calls, if any; then the last one
    open     | a failure                            | a line with ``error``

Calls are collected, because this API does not stream them in pieces.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET

from codexd.errors import ApiError
from codexd.protocol.chat.converter import gather
from codexd.protocol.chat.fold import fold
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.chat.wire import Chunk
from codexd.protocol.codex.events import OutputItemDone, Usage, decode_event
from codexd.protocol.ollama.convert import tools_of
from codexd.protocol.ollama.wire import OllamaAnswer
from codexd.protocol.reasoning import Turn

_encode = msgspec.json.encode


class OllamaConverter:
    """Converts one answer. ``generate``: for ``/api/generate``. ``elapsed`` gives the nanoseconds since its request."""

    def __init__(
        self,
        stream: ChatStream,
        *,
        model: str,
        created: int,
        generate: bool,
        streamed: bool,
        elapsed: Callable[[], int],
        turn: Turn | None = None,
    ) -> None:
        self.state = stream
        self._model = model
        self._created_at = f"{datetime.fromtimestamp(created, UTC):%Y-%m-%dT%H:%M:%S}Z"
        self._generate = generate
        self._streamed = streamed
        self._elapsed = elapsed
        self._turn = turn
        self._chunks: list[Chunk] = []
        self._first = 0
        self._ended = False

    def push(self, data: bytes) -> bytes:
        event = decode_event(data)
        if isinstance(event, OutputItemDone):
            gather(self._turn, event.item, data)
        chunks = self.state.push(event)
        if chunks and not self._first:
            self._first = self._elapsed()
        if not self._streamed:
            self._chunks += chunks
            return b""
        # Text is written and forgotten; calls and the end are kept for the last lines.
        self._chunks += [chunk for chunk in chunks if not self._chunks or _is_kept(chunk)]
        out = b"".join(map(self._line, chunks))
        if self.state.done and not self._ended:
            self._ended = True
            out += self._last_lines()
        return out

    def failure(self, error: ApiError) -> bytes:
        return failure_document(error) + b"\n"

    def keepalive(self) -> bytes:
        return self._said("", "")

    def document(self) -> bytes:
        return _encode(self._end(whole=True))

    def _line(self, chunk: Chunk) -> bytes:
        out = b""
        for choice in chunk.choices:
            delta = choice.delta
            text = delta.content or delta.refusal or ""
            thinking = delta.reasoning_content or ""
            if text or thinking:
                out += self._said(text, thinking)
        return out

    def _said(self, text: str, thinking: str) -> bytes:
        return _encode(OllamaAnswer(done=False, **self._head(text, thinking, []))) + b"\n"

    def _last_lines(self) -> bytes:
        end = self._end(whole=False)
        calls: Any = None if isinstance(end.message, msgspec.UnsetType) else end.message.pop("tool_calls", None)
        called = _encode(OllamaAnswer(done=False, **self._head("", "", calls))) + b"\n" if calls else b""
        return called + _encode(end) + b"\n"

    def _head(self, text: str, thinking: str, calls: list[dict[str, object]]) -> dict[str, Any]:
        head: dict[str, Any] = {"model": self._model, "created_at": self._created_at}
        if self._generate:
            return head | {"response": text} | ({"thinking": thinking} if thinking else {})
        message: dict[str, object] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return head | {"message": message}

    def _end(self, *, whole: bool) -> OllamaAnswer:
        if self._turn is not None and not self.state.cut_short:
            self._turn.end()
        choice = fold(self._chunks).choices[0]
        said = choice.message
        text = (said.content or said.refusal or "") if whole else ""
        thinking = (said.reasoning_content or "") if whole else ""
        calls = tools_of(said.tool_calls or [])
        usage, total = self.state.usage or Usage(), self._elapsed()
        return OllamaAnswer(
            done=True,
            done_reason="length" if choice.finish_reason == "length" else "stop",
            total_duration=total,
            load_duration=0,
            prompt_eval_count=usage.input_tokens or 0,
            prompt_eval_duration=self._first,
            eval_count=usage.output_tokens or 0,
            eval_duration=max(0, total - self._first),
            **self._head(text, thinking, calls),
        )


def _is_kept(chunk: Chunk) -> bool:
    return any(choice.finish_reason is not None or choice.delta.tool_calls is not UNSET for choice in chunk.choices)


def failure_document(error: ApiError) -> bytes:
    """Returns the API's error document, which is one text."""
    return _encode({"error": error.error.message})

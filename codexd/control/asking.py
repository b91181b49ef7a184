"""A question over the control socket, by the way that all requests take: ``codexctl try``."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from codexd.control import wire
from codexd.control.server import Say
from codexd.errors import ApiError, ErrorObject
from codexd.parts import Parts
from codexd.protocol import sse
from codexd.protocol.chat import CompletionUsage
from codexd.relay.relay import Direct, Header
from codexd.server.request import Address

PATH = "/v1/chat/completions"


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    model: str = ""
    usage: CompletionUsage | None = None
    error: ErrorObject | None = None


class _Failure(Struct):
    error: ErrorObject


_CHUNK = msgspec.json.Decoder(_Chunk)


class _Incoming:
    """A request that nobody sent, and the way to its answer."""

    method, path, query = "POST", PATH, b""
    client: Address | None = None
    server: Address | None = None
    direct: Direct | None = None

    def __init__(self, body: bytes, say: Say) -> None:
        self._body = body
        self._say = say
        self._decoder = sse.Decoder()
        self.headers: dict[str, str] = {}
        self.begun = False
        self.failure: ApiError | None = None
        self.ended = wire.TryEnded(model="", finish_reason=None)

    async def body(self) -> bytes:
        return self._body

    async def answer(self, status: int, fields: Sequence[Header], body: bytes) -> None:
        self.begun = True
        error = msgspec.json.decode(body, type=_Failure).error
        self.failure = ApiError(status, error.message, type=error.type, code=error.code, param=error.param)

    async def start(self, fields: Sequence[Header]) -> None:
        self.begun = True

    async def write(self, data: bytes) -> None:
        for event in self._decoder.feed(data):
            if event != b"[DONE]":
                await self._take(_CHUNK.decode(event))

    async def end(self) -> None:
        pass

    async def _take(self, chunk: _Chunk) -> None:
        if chunk.error is not None:
            self.failure = ApiError(502, chunk.error.message, type=chunk.error.type, code=chunk.error.code)
        if chunk.usage is not None:
            self.ended = msgspec.structs.replace(
                self.ended, tokens_in=chunk.usage.prompt_tokens, tokens_out=chunk.usage.completion_tokens
            )
        for choice in chunk.choices:
            reason = choice.finish_reason or self.ended.finish_reason
            self.ended = msgspec.structs.replace(self.ended, model=chunk.model, finish_reason=reason)
            if choice.delta.reasoning_content:
                await self._say(wire.TryText(text=choice.delta.reasoning_content, thinking=True))
            if choice.delta.content:
                await self._say(wire.TryText(text=choice.delta.content))


async def ask(parts: Parts, request: wire.Try, say: Say) -> None:
    """Raises ApiError."""
    content: list[dict[str, object]] = [{"type": "text", "text": request.question}]
    content += [{"type": "image_url", "image_url": {"url": image}} for image in request.images]
    document: dict[str, object] = {
        "model": request.model or next(iter(parts.catalog.models.listed), parts.catalog.models.own[0].slug),
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": content if request.images else request.question}],
    }
    if request.effort is not None:
        document["reasoning_effort"] = request.effort
    incoming = _Incoming(msgspec.json.encode(document), say)
    await parts.api.ask(incoming)
    if incoming.failure is not None:
        raise incoming.failure
    await say(incoming.ended)

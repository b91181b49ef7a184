"""A ChatGPT in memory, for ``support.asgi.client``: events and pauses of a jumping clock."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import msgspec
import trio

from codexd.protocol import sse
from support.upstream import ADDED, COMPLETED, CREATED, Json, done, text

WHOLE: Sequence["Json | float"] = [CREATED, ADDED, text("Hel"), text("lo"), done("Hello"), COMPLETED]
REASONED: Json = {
    "type": "response.output_item.done",
    "output_index": 0,
    "item": {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAAA-secret-thoughts"},
}
CALLED: Json = {
    "type": "response.output_item.done",
    "output_index": 1,
    "item": {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
}


class Body(httpx.AsyncByteStream):
    """Events and pauses in seconds; knows whether it was closed."""

    def __init__(self, steps: Sequence["Json | float"]) -> None:
        self._steps = iter(steps)
        self.closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for step in self._steps:
            if isinstance(step, int | float):
                await trio.sleep(step)
            else:
                return sse.encode(step["type"].encode(), msgspec.json.encode(step))
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


class Backend:
    """Answers every request with the same events, and keeps the requests."""

    def __init__(self, steps: Sequence["Json | float"] = WHOLE) -> None:
        self.steps = steps
        self.requests: list[httpx.Request] = []
        self.bodies: list[Body] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.bodies.append(Body(self.steps))
        return httpx.Response(200, stream=self.bodies[-1])

    @property
    def sent(self) -> Any:
        """The body of the newest request."""
        return msgspec.json.decode(self.requests[-1].content)


def completed(name: str) -> Json:
    return {"type": "response.completed", "response": {"id": name, "model": "gpt-5.5", "created_at": 1, "output": []}}


class Counting(Backend):
    """Every answer has an id of its own."""

    def __init__(self, *steps: Json) -> None:
        super().__init__()
        self.parts: Sequence[Json] = steps or (ADDED, text("Hi"), done("Hi"))

    def __call__(self, request: Any) -> Any:
        name = f"resp_{len(self.requests) + 1}"
        created = {"type": "response.created", "response": CREATED["response"] | {"id": name}}
        self.steps = [created, *self.parts, completed(name)]
        return super().__call__(request)


def texts(body: Any) -> list[str]:
    """The texts of a request's input, in order."""
    return [part["text"] for item in body["input"] for part in item.get("content", [])]

"""What clients of each dialect make of the backend's events."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from codexd.api.anthropic import MESSAGES
from codexd.api.chat import CHAT
from codexd.api.pipeline import Context
from codexd.api.responses import RESPONSES, understood
from codexd.errors import ApiError
from codexd.protocol import members, sse
from codexd.protocol.chat.stream import ImageFormat
from codexd.protocol.codex.models import Catalogue
from codexd.protocol.convert import Settings
from codexd.protocol.reasoning import nothing
from codexd.protocol.tokens import prompt_tokens

Json = dict[str, Any]

DIALECTS = ("chat", "messages", "responses")

BODIES: dict[str, Json] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10_000},
    "responses": {"input": "hi"},
}


class Answer(NamedTuple):
    """``text`` is what a client shows; ``events`` are the decoded events of a stream, ``document`` is the other form."""

    text: str
    error: ApiError | None
    events: list[Json]
    document: Json


def answer(
    events: Sequence[Json | bytes], dialect: str, *, streamed: bool, image_format: ImageFormat = "images", **fields: Any
) -> Answer:
    """The whole way of an answer, from the backend's events to the client's text."""
    kind = {"chat": CHAT, "messages": MESSAGES, "responses": RESPONSES}[dialect]
    found = members.split(msgspec.json.encode({"model": "gpt-5.5", **BODIES[dialect], **fields}))
    asked = kind.request.decode(found)
    context = Context(
        id="1" * 48, created=1, resolved=Catalogue({}).resolve("gpt-5.5"), settings=Settings(prompt="P"),
        streamed=streamed, recall=nothing, turn=lambda: None, reasoning_format="reasoning_content",
        image_format=image_format,
    )  # fmt: skip
    prepared = kind.prepare(understood(asked, found) if kind is RESPONSES else asked, context)
    ((converted, make),) = prepared.parts
    assert prompt_tokens(converted.request)
    conversion = make()
    out = b"".join(conversion.feed([each if isinstance(each, bytes) else msgspec.json.encode(each)]) for each in events)
    state = conversion.state
    if state.error is not None:
        return Answer("", state.error, [], {})
    if streamed:
        decoded = [msgspec.json.decode(data) for data in sse.EventDecoder().feed(out) if data != b"[DONE]"]
        return Answer(_streamed(dialect, decoded), None, decoded, {})
    document = msgspec.json.decode(conversion.document())
    return Answer(_whole(dialect, document), None, [], document)


def _streamed(dialect: str, events: list[Json]) -> str:
    match dialect:
        case "chat":
            deltas = [choice["delta"] for event in events for choice in event["choices"]]
            return "".join(delta.get("content") or "" for delta in deltas)
        case "messages":
            deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
            return "".join(delta.get("text", "") for delta in deltas)
        case _:
            return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def _whole(dialect: str, document: Json) -> str:
    match dialect:
        case "chat":
            return document["choices"][0]["message"]["content"] or ""
        case "messages":
            return "".join(block.get("text", "") for block in document["content"])
        case _:
            parts = [part for item in document["output"] for part in item.get("content") or ()]
            return "".join(part.get("text", "") for part in parts)

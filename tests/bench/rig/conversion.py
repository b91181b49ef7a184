"""What a long conversation costs before it is sent, as a multiple of one decode and one encode of it by msgspec."""

import gc
import time
from collections.abc import Callable
from typing import Any

import msgspec

from codexd.api.responses import understood
from codexd.protocol import bounds, members
from codexd.protocol.chat import convert as chat
from codexd.protocol.chat.wire import REQUEST as CHAT
from codexd.protocol.codex import continuation
from codexd.protocol.codex.models import Model, Resolved
from codexd.protocol.convert import Converted, Settings
from codexd.protocol.responses.convert import from_responses
from codexd.protocol.responses.wire import REQUEST as RESPONSES

MESSAGES, SIZE = 680, 1 << 20


def conversations() -> dict[str, dict[str, Any]]:
    """One MiB of a coding agent's conversation in each API: half of it are calls of tools and their results."""
    text = 'some words, and\n"a quote" of code: {x: [1]}; ' * 35
    text = text[: SIZE // MESSAGES]
    messages: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    for number in range(0, MESSAGES, 4):
        name, arguments = f"call_{number}", msgspec.json.encode({"path": text}).decode()
        messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "tool_calls": [
                {"id": name, "type": "function", "function": {"name": "read", "arguments": arguments}}]},
            {"role": "tool", "tool_call_id": name, "content": text},
            {"role": "assistant", "content": text},
        ]  # fmt: skip
        items += [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]},
            {"type": "function_call", "call_id": name, "name": "read", "arguments": arguments},
            {"type": "function_call_output", "call_id": name, "output": text},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
        ]
    last = {"role": "user", "content": "and on"}
    return {
        "chat": {"model": "m", "messages": [*messages, last]},
        "responses": {"model": "m", "input": [*items, last]},
    }


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, with the collector as the daemon has it."""
    gc.collect()
    gc.freeze()
    taken = []
    for _ in range(25):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _converted(api: str, body: bytes, resolved: Resolved) -> Converted:
    bounds.measure(body, 100_000, 100_000)
    found = members.split(body)
    if api == "chat":
        return chat.from_chat(CHAT.decode(found), resolved, Settings())
    return from_responses(understood(RESPONSES.decode(found), found).asked, resolved, Settings())


def report() -> None:
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.encode
    for api, asked in conversations().items():
        body = encode(asked)
        once = _best(lambda body=body: encode(decode(body)))  # type: ignore[misc]
        for lite in (False, True):
            resolved = Resolved(Model(slug="m", efforts=("medium",), default_effort="medium", lite=lite), None)

            def whole(
                send: Callable[[Any], object], api: str = api, body: bytes = body, to: Resolved = resolved
            ) -> float:
                return _best(lambda: send(_converted(api, body, to).request))

            http = whole(encode) / once
            websocket = whole(lambda request: continuation.chain_of(request, "key a")) / once
            print(f"{api:>9} {'lite' if lite else 'classic':>7}: HTTP {http:.1f}, websocket {websocket:.1f}")

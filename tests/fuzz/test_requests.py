"""Requests and event streams that were good once, and have been tampered with. ``make fuzz`` does it for longer.

What is random everywhere is refused at the door; what is nearly right gets further in.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from codexd.protocol import sse
from support.asgi import client
from support.backend import Backend
from support.transcripts import FOLDER, NAMES, conversion

PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 1e308, -0.5, 10**400]),
    st.sampled_from(["", "\x00", "\ud7ff", "\u2028", "a" * 70, "auto", "none", "user", "tool", "function", "text", "data:,", "https://x/"]),
    st.text(max_size=5),
    st.sampled_from([[], {}, [[]], [None], [{}], {"": None}, {"type": "text"}, {"type": "function", "function": {"name": "f"}}]),
)  # fmt: skip


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document that something can be put in."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*at, key)
        yield from places(value, (*at, key))


@st.composite
def tampered(draw: st.DrawFn, document: Any) -> Any:
    """The document with a few of its values replaced, taken away, doubled or moved."""
    tree = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 4))):
        where = list(places(tree))
        if not where:
            break
        *path, last = draw(st.sampled_from(where))
        holder = tree
        for key in path:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "double", "move"])):
            case "replace":
                holder[last] = copy.deepcopy(draw(STRANGE))
            case "remove":
                del holder[last]
            case "double" if isinstance(holder, list):
                holder.insert(last, copy.deepcopy(holder[last]))
            case "double":
                holder[f"{last}_"] = holder[last]
            case _:
                other = draw(st.sampled_from(where))
                value: Any = document
                try:
                    for key in other:
                        value = value[key]
                except (KeyError, IndexError, TypeError):
                    continue
                holder[last] = copy.deepcopy(value)
    return tree


REQUESTS = [
    (PATHS[name.partition("-")[0]], msgspec.json.decode((FOLDER / name / "request.json").read_bytes()))
    for name in NAMES
]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    path, document = draw(st.sampled_from(REQUESTS))
    tree = draw(tampered(document))
    try:
        body = msgspec.json.encode(tree)
    except (OverflowError, msgspec.MsgspecError):
        import json

        body = json.dumps(tree).encode()
    return path, body


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests())
def test_a_request_that_was_tampered_with_is_answered_or_refused(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, bytes]
) -> None:
    path, body = case

    async def ask() -> None:
        async with client(tmp_path_factory.mktemp("state"), Backend()) as app:
            answer = await app.request("POST", path, body)
        assert answer.ended
        assert answer.status < 500, answer.body
        if answer.status != 200:
            error = answer.json["error"]
            assert error["type"] == "invalid_request_error" or path == PATHS["messages"]
            assert len(error["message"]) > 10
        elif answer.headers["content-type"] == "application/json":
            assert msgspec.json.decode(answer.body)
        else:
            assert sse.EventDecoder().feed(answer.body)

    trio.run(ask, clock=MockClock(autojump_threshold=0))


@st.composite
def streams(draw: st.DrawFn) -> tuple[Path, bool, list[bytes]]:
    """A transcript, its upstream's events tampered with, cut into reads anywhere."""
    folder = FOLDER / draw(st.sampled_from(NAMES))
    events = [msgspec.json.decode(line) for line in (folder / "upstream.jsonl").read_bytes().splitlines()]
    tree = draw(tampered(events))
    data = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in tree)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return folder, draw(st.booleans()), pieces


@given(streams())
def test_events_that_were_tampered_with_end_in_an_answer_or_an_error(case: tuple[Path, bool, list[bytes]]) -> None:
    folder, streamed, pieces = case
    converter = conversion(folder, streamed=streamed)
    decoder, out = sse.EventDecoder(), b""
    for piece in pieces:
        out += converter.feed(decoder.feed(piece))
        if converter.state.error is not None or converter.state.done:
            break
    converter.state.eof()
    assert converter.state.done == (converter.state.error is None)
    if converter.state.error is not None:
        out += converter.failure(converter.state.error)
    elif not streamed:
        assert msgspec.json.decode(converter.document())
    for event in sse.EventDecoder().feed(out):
        assert event == b"[DONE]" or msgspec.json.decode(event)

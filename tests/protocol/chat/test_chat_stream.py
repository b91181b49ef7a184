"""The automaton, event by event, and its laws."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from codexd.protocol.chat.fold import fold
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.chat.wire import Chunk
from codexd.protocol.codex.events import Other, decode_event


def stream(*, include_usage: bool = False) -> ChatStream:
    return ChatStream(id="chatcmpl-1", model="m", created=1, include_usage=include_usage)


def push(automaton: ChatStream, *events: dict[str, Any]) -> list[Chunk]:
    return [chunk for event in events for chunk in automaton.push(decode_event(msgspec.json.encode(event)))]


def delta(kind: str, text: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "output_index": index, "delta": text, **fields}


def done(item: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def added(item: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


COMPLETED: dict[str, Any] = {"type": "response.completed", "response": {"output": []}}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": []}


def message(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text}], **fields}


def call(name: str, arguments: str = "", call_id: str = "c") -> dict[str, Any]:
    return {"type": "function_call", "name": name, "call_id": call_id, "arguments": arguments}


def content(chunks: list[Chunk]) -> str:
    return "".join(c.delta.content for chunk in chunks for c in chunk.choices if c.delta.content is not UNSET)


def test_nothing_is_said_before_the_answer_begins() -> None:
    automaton = stream()
    assert push(automaton, {"type": "response.created", "response": {}}, {"type": "keepalive"}, added(REASONING)) == []
    assert not automaton.begun
    push(automaton, delta("output_text", "hi"))
    assert automaton.begun


def test_the_first_chunk_carries_the_role_and_nothing_follows_the_end() -> None:
    automaton = stream()
    chunks = push(automaton, delta("output_text", "hi"), COMPLETED)
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", UNSET, UNSET]
    assert push(automaton, delta("output_text", "more"), COMPLETED) == []


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "m"}}},
        {"type": "response.failed", "response": {}},
        {"type": "error", "code": "server_error", "message": "m"},
        {"type": "error", "error": {"code": "server_error", "message": "m"}},
        {"type": "response.cancelled", "response": {}},
    ],
)
def test_every_kind_of_failure_ends_the_answer_without_a_finish_reason(event: dict[str, Any]) -> None:
    automaton = stream()
    chunks = push(automaton, delta("output_text", "hi"), event, COMPLETED)
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
    assert automaton.error is not None
    assert automaton.error.status == 502
    assert not automaton.done


def test_the_end_of_the_stream_without_a_terminal_event_is_a_failure() -> None:
    automaton = stream()
    push(automaton, delta("output_text", "hi"))
    automaton.eof()
    assert automaton.error is not None
    assert automaton.error.error.code == "upstream_stream_ended"
    finished = stream()
    push(finished, delta("output_text", "hi"), COMPLETED)
    finished.eof()
    assert finished.error is None


def test_an_answer_that_is_only_in_the_final_event_is_found_there() -> None:
    automaton = stream()
    final = {"type": "response.completed", "response": {"output": [REASONING, message("hi"), call("f", "{}")]}}
    folded = fold(push(automaton, final))
    assert folded.choices[0].message.content == "hi"
    assert folded.choices[0].finish_reason == "tool_calls"


def test_an_item_is_not_said_twice() -> None:
    automaton = stream()
    final = {"type": "response.completed", "response": {"output": [message("hello")]}}
    chunks = push(automaton, delta("output_text", "hel"), done(message("hello")), done(message("hello")), final)
    assert content(chunks) == "hello"


def test_a_call_without_an_announcement_comes_whole() -> None:
    automaton = stream()
    early = delta("function_call_arguments", '{"a"')
    folded = fold(push(automaton, early, done(call("f", '{"a":1}')), COMPLETED))
    assert folded.choices[0].message.tool_calls[0].function.arguments == '{"a":1}'  # type: ignore[index]


def test_a_phase_that_comes_late_does_not_repeat_the_text() -> None:
    automaton = stream()
    chunks = push(automaton, delta("output_text", "hi"), done(message("hi", phase="commentary")), COMPLETED)
    assert content(chunks) == "hi"


def test_commentary_without_deltas_is_reasoning() -> None:
    automaton = stream()
    folded = fold(push(automaton, done(message("look", phase="commentary")), done(message("hi"), 1), COMPLETED))
    assert (folded.choices[0].message.content, folded.choices[0].message.reasoning_content) == ("hi", "look")


def test_raw_reasoning_and_empty_deltas() -> None:
    automaton = stream()
    events = [
        delta("reasoning_text", "a"),
        delta("reasoning_text", ""),
        delta("reasoning_text", "b"),
        delta("refusal", ""),
    ]
    folded = fold(push(automaton, *events, delta("output_text", ""), delta("output_text", "x"), COMPLETED))
    assert folded.choices[0].message.reasoning_content == "ab"


def test_reasoning_that_comes_whole_is_said_once() -> None:
    automaton = stream()
    whole = {**REASONING, "summary": None, "content": [{"type": "reasoning_text", "text": "a"}]}
    chunks = push(automaton, done(whole), done(message("x"), 1), COMPLETED)
    assert fold(chunks).choices[0].message.reasoning_content == "a"
    again = stream()
    chunks = push(again, delta("reasoning_summary_text", "a"), done({**REASONING, "summary": [{"text": "a"}]}))
    assert len(chunks) == 2


def test_other_items_begin_the_answer_without_text() -> None:
    automaton = stream()
    chunks = push(automaton, done({"type": "web_search_call"}), added(call("f"), 1), added(call("f"), 1), COMPLETED)
    assert fold(chunks).choices[0].finish_reason == "tool_calls"


def test_usage_comes_only_when_asked_and_known() -> None:
    usage = {"input_tokens": 3, "output_tokens": 4, "input_tokens_details": None}
    final = {"type": "response.completed", "response": {"usage": usage}}
    asked = push(stream(include_usage=True), delta("output_text", "x"), final)
    assert asked[-1].choices == []
    assert asked[-1].usage.total_tokens == 7  # type: ignore[union-attr]
    assert asked[0].usage is None
    assert all(chunk.usage is UNSET for chunk in push(stream(), delta("output_text", "x"), final))
    assert fold(push(stream(include_usage=True), delta("output_text", "x"), COMPLETED)).usage is UNSET


def test_an_unknown_reason_for_being_incomplete_is_a_length() -> None:
    chunks = push(stream(), delta("output_text", "x"), {"type": "response.incomplete", "response": {}})
    assert chunks[-1].choices[0].finish_reason == "length"


def test_what_cannot_be_read_is_another_event() -> None:
    for data in (b"[DONE]", b"\xff", b"7", b'{"type": 7}', b'{"type":"response.completed"}'):
        assert isinstance(decode_event(data), Other)
    assert decode_event(b'{"type":"brand.new"}') == Other(type="brand.new")


def test_a_stream_without_an_end_has_no_completion() -> None:
    with pytest.raises(ValueError, match="without an end"):
        fold([])
    with pytest.raises(ValueError, match="without an end"):
        fold(push(stream(), delta("output_text", "x")))


# --- laws

EVENTS = st.one_of(
    st.builds(delta, st.sampled_from(["output_text", "refusal", "reasoning_summary_text", "function_call_arguments"]),
              st.text(max_size=3), st.integers(0, 3)),
    st.builds(added, st.sampled_from([REASONING, message(""), call("f"), message("", phase="commentary")]), st.integers(0, 3)),
    st.builds(done, st.sampled_from([REASONING, message("abc"), call("f", "{}"), {"type": "new"}]), st.integers(0, 3)),
    st.sampled_from([COMPLETED, {"type": "keepalive"}, {"type": "error"}, {"type": "response.incomplete", "response": {}}]),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=15))
def test_any_sequence_of_events_ends_in_one_finish_reason_or_one_error(events: list[dict[str, Any]]) -> None:
    automaton = stream()
    chunks = push(automaton, *events)
    automaton.eof()
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == (automaton.error is None) == automaton.done
    if chunks:
        assert chunks[0].choices[0].delta.role == "assistant"
        assert automaton.begun


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[list[str], list[dict[str, Any]]]:
    """Several calls whose argument deltas arrive in any interleaving, and what they add up to."""
    arguments = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4))
    queues = [
        [added(call(f"f{index}", call_id=f"c{index}"), index)]
        + [delta("function_call_arguments", letter, index) for letter in text]
        + [done(call(f"f{index}", text, f"c{index}"), index)]
        for index, text in enumerate(arguments)
    ]
    order = draw(st.permutations([index for index, queue in enumerate(queues) for _ in queue]))
    return arguments, [queues[index].pop(0) for index in order]


@given(interleaved())
def test_arguments_add_up_to_the_upstreams_under_any_interleaving(case: tuple[list[str], list[dict[str, Any]]]) -> None:
    arguments, events = case
    chunks = push(stream(), *events, COMPLETED)
    starts = [c for chunk in chunks for ch in chunk.choices for c in ch.delta.tool_calls or () if c.id is not UNSET]
    assert sorted(start.index for start in starts) == list(range(len(arguments)))
    calls = fold(chunks).choices[0].message.tool_calls
    assert {c.id: c.function.arguments for c in calls or ()} == {f"c{i}": text for i, text in enumerate(arguments)}


def test_reasoning_alone_is_no_answer() -> None:
    automaton = stream()
    push(automaton, delta("reasoning_summary_text", "hm"), COMPLETED)
    assert automaton.error is not None
    assert automaton.error.error.code == "upstream_empty_answer"


@pytest.mark.parametrize(
    ("event", "status", "code", "wait"),
    [
        ({"type": "response.failed", "response": {"error": {"code": 17, "message": "m"}}}, 502, "17", None),
        (
            {"type": "error", "error": {"type": "usage_limit_reached", "message": "m", "resets_in_seconds": 9}},
            429,
            "usage_limit_reached",
            9,
        ),
        ({"type": "response.failed", "response": "?"}, 502, "upstream_failed", None),
        ({"type": "error", "message": ["?"]}, 502, "upstream_failed", None),
    ],
)
def test_a_failure_in_an_odd_shape_keeps_what_can_be_read(
    event: dict[str, Any], status: int, code: str, wait: int | None
) -> None:
    automaton = stream()
    push(automaton, event)
    assert automaton.error is not None
    assert (automaton.error.status, automaton.error.error.code, automaton.error.retry_after) == (status, code, wait)


def test_usage_with_nulls_is_usage() -> None:
    usage = {"input_tokens": None, "output_tokens": 4, "total_tokens": None}
    chunks = push(
        stream(include_usage=True),
        delta("output_text", "x"),
        {"type": "response.completed", "response": {"usage": usage}},
    )
    assert chunks[-1].usage.total_tokens == 4  # type: ignore[union-attr]

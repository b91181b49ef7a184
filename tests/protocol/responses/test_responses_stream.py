import weakref
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from codexd.protocol import sse
from codexd.protocol.responses.stream import ResponsesStream


def push(stream: ResponsesStream, *events: Any) -> list[Any]:
    """Push events; what came out, decoded."""
    out = b"".join(stream.push(e if isinstance(e, bytes) else msgspec.json.encode(e)) for e in events)
    return [msgspec.json.decode(event) for event in sse.EventDecoder().feed(out)]


TEXT = {"type": "response.output_text.delta", "output_index": 0, "delta": "x", "sequence_number": 1}
ITEM = {"type": "response.output_item.done", "output_index": 0, "item": {"type": "message", "id": "m"}}


def completed(**response: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": {"id": "r", **response}}


def test_numbers_never_repeat_also_after_a_keepalive() -> None:
    stream = ResponsesStream({})
    assert push(stream, TEXT)[0]["sequence_number"] == 1
    assert b'event: keepalive\ndata: {"type":"keepalive","sequence_number":2}' in stream.keepalive()
    later = push(
        stream, TEXT | {"sequence_number": 2}, TEXT | {"sequence_number": 9}, {k: TEXT[k] for k in ("type", "delta")}
    )
    assert [event["sequence_number"] for event in later] == [3, 9, 10]


def test_who_waits_for_the_end_is_told_once_and_forgotten() -> None:
    class Waiting:
        def end(self, document: bytes) -> None:
            documents.append(document)

    documents: list[bytes] = []
    waiting = Waiting()
    kept, stream = weakref.ref(waiting), ResponsesStream({}, on_done=waiting.end)
    del waiting
    push(stream, TEXT, ITEM, completed())
    assert (len(documents), kept()) == (1, None)


def test_noise_is_skipped_and_nothing_follows_the_end() -> None:
    stream = ResponsesStream({})
    noise = [
        b"[DONE]",
        b"\xff",
        b"{}",
        {"type": "keepalive"},
        {"type": "codex.rate_limits"},
        {"type": "response.metadata"},
    ]
    assert push(stream, *noise) == []
    assert not stream.begun
    assert [event["type"] for event in push(stream, ITEM, completed(), TEXT)] == [
        "response.output_item.done",
        "response.completed",
    ]
    assert stream.done


def test_the_beginning_of_reasoning_says_nothing_yet() -> None:
    stream = ResponsesStream({})
    push(stream, {"type": "response.created", "response": {}}, {**ITEM, "item": {"type": "reasoning"}})
    assert not stream.begun
    push(stream, TEXT)
    assert stream.begun


def test_the_response_is_complete_and_echoes_the_client() -> None:
    stream = ResponsesStream({"instructions": Raw(b'"mine"')})
    push(stream, ITEM, completed(instructions="ours", tools=[1], temperature=None, usage=None, user=None))
    response = msgspec.json.decode(stream.document())
    assert (response["instructions"], response["tools"], response["temperature"]) == ("mine", [], 1.0)
    assert response["output"] == [{"type": "message", "id": "m"}]
    assert (response["status"], response["usage"]) == ("completed", None)
    assert "user" not in response


def test_an_output_that_the_final_event_has_is_kept() -> None:
    stream = ResponsesStream({})
    push(stream, completed(output=[{"type": "message"}], status="completed"))
    assert msgspec.json.decode(stream.document())["output"] == [{"type": "message"}]


@pytest.mark.parametrize("output", [[], None])
def test_an_empty_success_is_a_failure(output: Any) -> None:
    stream = ResponsesStream({})
    assert push(stream, completed(output=output)) == []
    assert stream.error is not None
    assert stream.error.error.code == "upstream_empty_answer"
    assert ResponsesStream({}).push(msgspec.json.encode({"type": "response.incomplete", "response": {}}))


def test_arguments_that_are_done_get_their_functions_name() -> None:
    stream = ResponsesStream({})
    finished = {"type": "response.function_call_arguments.done", "output_index": 1, "arguments": "{}"}
    call = {"type": "response.output_item.added", "output_index": 1, "item": {"type": "function_call", "name": "f"}}
    unannounced, _, named, already = push(stream, finished, call, finished, {**finished, "name": "g"})
    assert "name" not in unannounced
    assert (named["name"], already["name"]) == ("f", "g")


def test_somebody_elses_namespace_stays() -> None:
    stream = ResponsesStream({})
    item = {"type": "function_call", "namespace": "clock", "name": "namespace"}
    assert push(stream, {**ITEM, "item": item})[0]["item"] == item


@pytest.mark.parametrize("event", [{"type": "response.completed", "response": 7}, completed(usage="x")])
def test_a_last_event_that_cannot_be_read_is_a_failure(event: dict[str, Any]) -> None:
    stream = ResponsesStream({})
    push(stream, ITEM, event)
    assert stream.error is not None
    assert not stream.done


def test_an_event_on_the_way_that_cannot_be_read_is_left_out() -> None:
    stream = ResponsesStream({})
    assert (
        push(
            stream,
            {"type": "response.output_item.done", "output_index": "x", "item": {}},
            {"type": "response.created", "response": 7},
        )
        == []
    )
    assert stream.error is None


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"type": "response.failed", "response": {"error": {"code": "context_length_exceeded", "message": "m"}}}, 400),
        ({"type": "response.failed", "response": "?"}, 502),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "m"}, 429),
        ({"type": "response.cancelled"}, 502),
    ],
)
def test_failures_are_kept_for_the_one_frame_that_ends_the_stream(event: dict[str, Any], status: int) -> None:
    stream = ResponsesStream({})
    push(stream, TEXT)
    assert push(stream, event) == []
    assert stream.error is not None
    assert stream.error.status == status
    frame = stream.failure(stream.error)
    (data,) = sse.EventDecoder().feed(frame)
    decoded = msgspec.json.decode(data)
    assert decoded["sequence_number"] == 2
    if status == 400:
        assert (decoded["type"], decoded["response"]["error"]["code"]) == ("response.failed", "context_length_exceeded")
    else:
        assert (frame.startswith(b"event: error\n"), decoded["type"]) == (True, "error")
        assert set(decoded["error"]) == {"message", "type", "param", "code"}


def test_keepalives_before_the_first_event_are_comments() -> None:
    stream = ResponsesStream({})
    assert stream.keepalive() == b": keepalive\n\n"  # the first event must be response.created
    with pytest.raises(ValueError, match="without an end"):
        stream.document()

"""Answers as real backends give them, in every dialect, streamed and not: nothing is lost and nothing made up."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.protocol.codex.events import join_halves
from support.answers import DIALECTS, Answer, Json, answer

CREATED: Json = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}
COMPLETED: Json = {"type": "response.completed", "response": {"id": "resp_1", "status": "completed", "output": []}}

pytestmark = pytest.mark.parametrize("dialect", DIALECTS)
forms = pytest.mark.parametrize("streamed", [True, False])


def added(index: int = 0, **fields: Any) -> Json:
    item = {"id": f"msg_{index}", "type": "message", "role": "assistant", "content": [], **fields}
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def delta(text: str, index: int = 0) -> Json:
    return {"type": "response.output_text.delta", "output_index": index, "item_id": f"msg_{index}", "content_index": 0,
            "delta": text}  # fmt: skip


def done(text: str, index: int = 0, annotations: Any = (), **fields: Any) -> Json:
    part = {"type": "output_text", "text": text, "annotations": list(annotations)}
    item = {
        "id": f"msg_{index}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
        **fields,
    }
    return {"type": "response.output_item.done", "output_index": index, "item": item}


# --- the end in other words


@forms
@pytest.mark.parametrize("status", ["completed", None, "in_progress"])
def test_done_ends_an_answer(dialect: str, streamed: bool, status: str | None) -> None:
    end = {"type": "response.done", "response": {"id": "resp_1", "status": status, "output": []}}
    assert answer([CREATED, added(), delta("Hello"), done("Hello"), end], dialect, streamed=streamed).text == "Hello"


@forms
def test_done_may_say_that_it_failed(dialect: str, streamed: bool) -> None:
    failed = {
        "type": "response.done",
        "response": {"status": "failed", "error": {"code": "server_error", "message": "x"}},
    }
    assert answer([CREATED, failed], dialect, streamed=streamed).error is not None
    incomplete = {"type": "response.done", "response": {"status": "incomplete", "output": [],
                  "incomplete_details": {"reason": "max_output_tokens"}}}  # fmt: skip
    found = answer([CREATED, added(), delta("Hel"), done("Hel"), incomplete], dialect, streamed=streamed)
    assert found.text == "Hel"
    said = msgspec.json.encode(found.events or found.document)
    assert any(word in said for word in (b'"length"', b'"max_tokens"', b'"incomplete"'))


ODD = [
    lambda text: {"content": [{"type": "output_text", "text": text}]},
    lambda text: {"delta": {"content": [{"type": "output_text", "text": text}]}, "output_index": 0},
    lambda text: {"item": {"content": [{"type": "output_text", "text": text}]}},
    lambda text: {"delta": text, "sequence_number": 7},
]


@forms
@pytest.mark.parametrize("shape", range(len(ODD)))
@pytest.mark.parametrize("end", ["response.done", "response.completed"])
def test_the_odd_delta_is_text(dialect: str, streamed: bool, shape: int, end: str) -> None:
    odd = [{"type": "response.output_item.add.delta", **ODD[shape](text)} for text in ("Hel", "lo")]
    found = answer([CREATED, *odd, {"type": end, "response": {}}], dialect, streamed=streamed)
    assert found.text == "Hello"
    if dialect == "responses" and streamed:
        kinds = [event["type"].removeprefix("response.") for event in found.events]
        assert kinds == ["created", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
                         "output_text.done", "content_part.done", "output_item.done", "completed"]  # fmt: skip
        assert found.events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"
        assert [event["sequence_number"] for event in found.events] == sorted(
            {e["sequence_number"] for e in found.events}
        )


@forms
def test_an_odd_delta_within_an_item_belongs_to_it(dialect: str, streamed: bool) -> None:
    odd = {"type": "response.output_item.add.delta", "item_id": "msg_0", **ODD[0]("Hello")}
    found = answer([CREATED, added(), odd, done("Hello"), COMPLETED], dialect, streamed=streamed)
    assert found.text == "Hello"
    broken = {"type": "response.output_item.add.delta", "content": 7}
    if dialect != "responses" or not streamed:
        assert answer([CREATED, added(), broken, done("Hello"), COMPLETED], dialect, streamed=streamed).text == "Hello"


# --- nothing, and almost nothing


@forms
def test_an_empty_answer_is_an_answer(dialect: str, streamed: bool) -> None:
    found = answer([CREATED, added(), done(""), COMPLETED], dialect, streamed=streamed)
    assert (found.error, found.text) == (None, "")


@forms
def test_no_item_at_all_is_a_failure(dialect: str, streamed: bool) -> None:
    error = answer([CREATED, COMPLETED], dialect, streamed=streamed).error
    assert error is not None
    assert error.status == 502


@forms
def test_commentary_alone_is_the_answer(dialect: str, streamed: bool) -> None:
    working = [added(phase="commentary"), delta("Working."), done("Working.", phase="commentary")]
    assert answer([CREATED, *working, COMPLETED], dialect, streamed=streamed).text == "Working."
    both = answer([CREATED, *working, added(1), done("Done.", 1), COMPLETED], dialect, streamed=streamed)
    if dialect != "responses":
        assert both.text == "Done."


# --- texts


def escaped(data: Json) -> bytes:
    """The event as ASCII, with the halves of characters as they came."""
    import json

    return json.dumps(data).encode()


@forms
def test_halves_of_a_character_are_joined(dialect: str, streamed: bool) -> None:
    whole = "Hi 😀 there"
    pieces = ["Hi ", "\ud83d", "\ude00", " there"]
    events = [escaped(delta(piece)) for piece in pieces]
    found = answer([CREATED, added(), *events, done(whole), COMPLETED], dialect, streamed=streamed)
    assert found.text == whole
    inside = [escaped(delta(piece)) for piece in ("Hi \ud83d", "\ude00 there")]
    assert answer([CREATED, added(), *inside, done(whole), COMPLETED], dialect, streamed=streamed).text == whole


@pytest.mark.parametrize("pieces", [["Hi \ud83d", " there"], ["Hi \ude00", " there"], ["Hi \ud83d"]])
def test_a_half_that_stays_alone_makes_nothing_up(dialect: str, pieces: list[str]) -> None:
    events = [CREATED, added(), *(escaped(delta(piece)) for piece in pieces), done("Hi 😀 there"), COMPLETED]
    assert answer(events, dialect, streamed=False).text == "Hi 😀 there"
    if dialect != "responses":
        found = answer(events, dialect, streamed=True).text
        assert found.startswith("Hi ") and "theree" not in found


PIECES = st.lists(st.text(alphabet="ab 😀漢", max_size=4), max_size=6)


@given(PIECES, st.data())
def test_what_is_sent_is_how_the_finished_item_begins(dialect: str, pieces: list[str], data: Any) -> None:
    """Whatever deltas come before it: all, some, none. Without streaming it is the finished item, whatever they say."""
    whole = "".join(pieces)
    events = [CREATED, added(), *map(delta, pieces[: data.draw(st.integers(0, len(pieces)))]), done(whole), COMPLETED]
    for streamed in (True, False):
        if dialect != "responses" or not streamed:
            assert answer(events, dialect, streamed=streamed).text == whole
    other = [CREATED, added(), *map(delta, pieces), done("something else"), COMPLETED]
    assert answer(other, dialect, streamed=False).text == "something else"
    if not "something else".startswith(whole):
        assert answer(other, dialect, streamed=True).text == whole


@forms
def test_an_item_of_which_only_deltas_came(dialect: str, streamed: bool) -> None:
    found = answer([CREATED, added(), delta("Hel"), delta("lo"), COMPLETED], dialect, streamed=streamed)
    if dialect == "responses":
        return
    assert found.text == "Hello"


@given(st.text(max_size=8))
def test_pairs_are_joined_wherever_they_are_cut(dialect: str, text: str) -> None:
    units = text.encode("utf-16-le")
    out, rest = "", ""
    for at in range(0, len(units), 2):
        whole, rest = join_halves(rest + units[at : at + 2].decode("utf-16-le", "surrogatepass"))
        out += whole
    assert (out, rest) == (text, "")


# --- calls


@forms
def test_a_call_without_parameters_has_an_empty_object(dialect: str, streamed: bool) -> None:
    item = {"id": "fc_0", "type": "function_call", "call_id": "c", "name": "f", "arguments": ""}
    events = [CREATED, added(0, **item), {"type": "response.function_call_arguments.done", "output_index": 0,
              "arguments": "", "item_id": "fc_0"}, {"type": "response.output_item.done", "output_index": 0, "item": item},
              COMPLETED]  # fmt: skip
    assert arguments(answer(events, dialect, streamed=streamed), dialect, streamed=streamed) in ("{}", {})


def arguments(found: Answer, dialect: str, *, streamed: bool) -> Any:
    match dialect, streamed:
        case "chat", True:
            calls = [call for event in found.events for call in event["choices"][0]["delta"].get("tool_calls", ())]
            return "".join(call["function"]["arguments"] for call in calls)
        case "chat", False:
            return found.document["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
        case "messages", True:
            deltas = [event["delta"] for event in found.events if event["type"] == "content_block_delta"]
            return "".join(each["partial_json"] for each in deltas)
        case "messages", False:
            return found.document["content"][0]["input"]
        case _, True:
            assert {event["arguments"] for event in found.events if "arguments" in event} == {"{}"}
            return found.events[-1]["response"]["output"][0]["arguments"]
        case _:
            return found.document["output"][0]["arguments"]


# --- images and citations


@forms
def test_an_image_is_an_answer(dialect: str, streamed: bool) -> None:
    item = {
        "id": "ig_0",
        "type": "image_generation_call",
        "status": "completed",
        "result": "AA==",
        "output_format": "webp",
    }
    events = [
        CREATED,
        added(0, **item),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        COMPLETED,
    ]
    found = answer(events, dialect, streamed=streamed)
    assert found.error is None
    said = msgspec.json.encode(found.events or found.document)
    if dialect == "chat":
        image = {"type": "image_url", "image_url": {"url": "data:image/webp;base64,AA=="}}
        if streamed:
            images = [each for event in found.events for each in event["choices"][0]["delta"].get("images", ())]
        else:
            images = found.document["choices"][0]["message"]["images"]
        assert images == [image]
    elif dialect == "messages":
        assert "image/webp" in found.text and "/v1/responses" in found.text
    else:
        assert b"AA==" in said


@forms
def test_an_image_may_be_in_the_text_of_chat(dialect: str, streamed: bool) -> None:
    item = {"id": "ig_0", "type": "image_generation_call", "status": "completed", "result": "AA=="}
    events = [CREATED, {"type": "response.output_item.done", "output_index": 0, "item": item}, COMPLETED]
    found = answer(events, dialect, streamed=streamed, image_format="markdown")
    if dialect == "chat":
        assert found.text == "![image](data:image/png;base64,AA==)\n"


@forms
def test_citations_keep_their_place(dialect: str, streamed: bool) -> None:
    cite = {"type": "url_citation", "url": "https://a", "title": "A", "start_index": 1, "end_index": 3}
    file = {"type": "file_citation", "file_id": "f"}
    events = [CREATED, added(0), delta("One."), done("One."), added(1), delta("Two!", 1), done("Two!", 1, [cite, file]),
              COMPLETED]  # fmt: skip
    found = answer(events, dialect, streamed=streamed)
    if dialect == "chat":
        placed = {
            "type": "url_citation",
            "url_citation": {"url": "https://a", "title": "A", "start_index": 5, "end_index": 7},
        }
        if streamed:
            cited = [each for event in found.events for each in event["choices"][0]["delta"].get("annotations", ())]
        else:
            cited = found.document["choices"][0]["message"]["annotations"]
        assert cited == [placed]
    elif dialect == "messages":
        if streamed:
            deltas = [event["delta"] for event in found.events if event["type"] == "content_block_delta"]
            cited = [each["citation"] for each in deltas if each["type"] == "citations_delta"]
        else:
            cited = [each for block in found.document["content"] for each in block.get("citations", ())]
        assert [(each["type"], each["url"]) for each in cited] == [("web_search_result_location", "https://a")]
    else:
        assert b'"https://a"' in msgspec.json.encode(found.events or found.document)


@forms
def test_citations_of_a_text_that_is_closed_are_left_out(dialect: str, streamed: bool) -> None:
    cite = {"type": "url_citation", "url": "https://a", "title": "A", "start_index": 0, "end_index": 1}
    call = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    events = [CREATED, added(0), delta("One."), added(1, **call), done("One.", 0, [cite]),
              {"type": "response.output_item.done", "output_index": 1, "item": call}, COMPLETED]  # fmt: skip
    assert answer(events, dialect, streamed=streamed).text == "One."


@forms
def test_an_odd_delta_and_then_the_item(dialect: str, streamed: bool) -> None:
    odd = {"type": "response.output_item.add.delta", **ODD[0]("Hello")}
    found = answer([CREATED, odd, done("Hello"), COMPLETED], dialect, streamed=streamed)
    assert found.text == "Hello"


@forms
@pytest.mark.parametrize("data", [b'{"type":"response.output_text.delta","delta":"\\ud83d"', b'{"type":"x","delta":"\\ud83d"}',
                                  b'{"type":"response.output_text.delta","delta":7,"x":"\\ud83d"}', b'["\\ud83d"]'])  # fmt: skip
def test_other_events_with_halves_are_skipped(dialect: str, streamed: bool, data: bytes) -> None:
    found = answer([CREATED, added(), data, delta("Hi"), done("Hi"), COMPLETED], dialect, streamed=streamed)
    assert found.text == "Hi"


@forms
def test_a_delta_of_which_nothing_fits(dialect: str, streamed: bool) -> None:
    name = {"chat": "max_tokens", "messages": "max_tokens", "responses": "max_output_tokens"}[dialect]
    events = [CREATED, added(), delta("one"), delta(" two"), delta(" three"), done("one two three"), COMPLETED]
    assert answer(events, dialect, streamed=streamed, **{name: 1}).text == "one"


@forms
def test_an_odd_mark_does_not_cost_the_text(dialect: str, streamed: bool) -> None:
    marks = [{"type": "url_citation", "url": "https://a", "title": None, "start_index": None}, {"type": 7}, {"url": 7}]
    found = answer([CREATED, added(), done("Hello", 0, marks), COMPLETED], dialect, streamed=streamed)
    if dialect != "responses" or not streamed:
        assert found.text == "Hello"

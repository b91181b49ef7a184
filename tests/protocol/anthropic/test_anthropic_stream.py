"""What the transcripts of the Messages API do not show."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from codexd.errors import ApiError
from codexd.protocol import sse
from codexd.protocol.anthropic import wire as anthropic
from codexd.protocol.anthropic.convert import AsChat, as_chat
from codexd.protocol.anthropic.failures import failure_document
from codexd.protocol.anthropic.stream import MessagesConverter
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.conversion import Conversion
from codexd.protocol.members import split
from codexd.protocol.reasoning import of_call, of_text
from codexd.protocol.stops import Cutoff, limits_of
from support.adjusted import told
from support.upstream import COMPLETED, CREATED, Json


def make(*, streamed: bool, searches: bool = True) -> Any:
    cut = Cutoff(limits_of(None, ("max_tokens", 1000)))
    stream = ChatStream(id="msg_1", model="m", created=0, include_usage=False, cut=cut)
    dialect = MessagesConverter(
        stream,
        id="msg_1",
        model="m",
        streamed=streamed,
        thinking=True,
        cut=cut,
        prompt_tokens=lambda: 1,
        searches=searches,
    )
    return Conversion(dialect, b"")


def feed(events: list[Json], *, streamed: bool, searches: bool = True) -> Any:
    """The message that the client has in the end."""
    converter = make(streamed=streamed, searches=searches)
    out = converter.feed([msgspec.json.encode(event) for event in events])
    assert converter.state.done
    if not streamed:
        assert out == b""
        return msgspec.json.decode(converter.document())
    return gathered([msgspec.json.decode(event) for event in sse.EventDecoder().feed(out)])


def gathered(events: list[Json]) -> Json:
    """What a client makes of the events; one block is open at a time."""
    message: Json = {}
    open_at: int | None = None
    for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert open_at is None
                open_at = event["index"]
                assert open_at == len(message["content"])
                message["content"].append(event["content_block"] | {"json": ""})
            case "content_block_delta":
                assert event["index"] == open_at
                block, delta = message["content"][open_at], event["delta"]
                for kind, key in (
                    ("text", "text"),
                    ("thinking", "thinking"),
                    ("signature", "signature"),
                    ("partial_json", "json"),
                ):
                    block[key] = block.get(key, "") + delta.get(kind, "")
            case "content_block_stop":
                assert event["index"] == open_at
                block = message["content"][open_at]
                if (json := block.pop("json")) and block["type"] in ("tool_use", "server_tool_use"):
                    block["input"] = msgspec.json.decode(json)
                open_at = None
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
    for block in message["content"]:
        allowed = {
            "text": ("text", "citations"),
            "thinking": ("thinking", "signature"),
            "tool_use": ("id", "name", "input", "caller"),
            "server_tool_use": ("id", "name", "input"),
            "web_search_tool_result": ("tool_use_id", "content"),
        }
        for key in set(block) - {"type", "data", *allowed.get(block["type"], ())}:
            assert block.pop(key) == ""
    return message


def item(index: int, kind: str, step: str, **fields: Any) -> Json:
    return {"type": f"response.output_item.{step}", "output_index": index, "item": {"type": kind, **fields}}


def call(index: int, name: str, arguments: str) -> list[Json]:
    fields = {"call_id": f"call_{index}", "name": name}
    delta = {"type": "response.function_call_arguments.delta", "output_index": index}
    middle = len(arguments) // 2
    return [
        item(index, "function_call", "added", **fields, arguments=""),
        delta | {"delta": arguments[:middle]},
        delta | {"delta": arguments[middle:]},
        item(index, "function_call", "done", **fields, arguments=arguments),
    ]


def said(index: int, text: str) -> list[Json]:
    part = {"type": "output_text", "text": text}
    return [
        item(index, "message", "added", content=[]),
        {"type": "response.output_text.delta", "output_index": index, "delta": text},
        item(index, "message", "done", content=[part]),
    ]


def reasoned(index: int, summary: str, encrypted: str) -> list[Json]:
    parts = [{"type": "summary_text", "text": summary}] if summary else []
    return [
        item(index, "reasoning", "added", summary=[]),
        item(index, "reasoning", "done", summary=parts, encrypted_content=encrypted),
    ]


def searched(index: int, **fields: Any) -> list[Json]:
    action = {"type": "search", "query": f"q{index}"}
    return [
        item(index, "web_search_call", "added", status="in_progress"),
        item(index, "web_search_call", "done", **({"action": action, "status": "completed"} | fields)),
    ]


def interleave(draw: Any, items: list[list[Json]]) -> list[Json]:
    """The events of all items, each item's in their order."""
    waiting, mixed = [list(events) for events in items], []
    while any(waiting):
        chosen = draw(st.sampled_from([events for events in waiting if events]))
        mixed.append(chosen.pop(0))
    return mixed


@st.composite
def answers(draw: Any) -> list[Json]:
    """Reasoning and text one after the other, calls at the end, in whatever order their events come."""
    kinds = draw(st.lists(st.sampled_from(["text", "reasoning", "hidden", "search"]), max_size=4))
    makers = {"text": lambda i: said(i, f"text {i}"), "reasoning": lambda i: reasoned(i, f"thought {i}", f"gA{i}"),
              "hidden": lambda i: reasoned(i, "", f"gB{i}"),
              "search": lambda i: searched(i, results=[{"url": f"https://{i}", "title": "t"}])}  # fmt: skip
    events = [event for index, kind in enumerate(kinds) for event in makers[kind](index)]
    count = draw(st.integers(min_value=0 if "text" in kinds else 1, max_value=3))
    calls = [call(len(kinds) + number, f"f{number}", '{"a":[1,"x"]}') for number in range(count)]
    return [CREATED, *events, *interleave(draw, calls), COMPLETED]


@given(answers())
def test_the_stream_and_the_document_are_the_same_message(events: list[Json]) -> None:
    whole, streamed = feed(events, streamed=False), feed(events, streamed=True)
    assert streamed == whole
    calls = [block for block in whole["content"] if block["type"] == "tool_use"]
    assert all(block["input"] == {"a": [1, "x"]} for block in calls)
    wanted = sum(e["type"].endswith("added") and e["item"]["type"] == "function_call" for e in events[1:-1])
    assert len(calls) == wanted


def test_a_call_streams_before_the_next_one_begins() -> None:
    converter = make(streamed=True)
    seen = []
    for event in [CREATED, *call(0, "f", '{"a":1}'), *call(1, "g", '{"b":2}')]:
        out = converter.feed([msgspec.json.encode(event)])
        seen.append([msgspec.json.decode(each)["type"] for each in sse.EventDecoder().feed(out)])
    assert seen[1:5] == [
        ["message_start", "content_block_start"], ["content_block_delta"], ["content_block_delta"],
        ["content_block_stop"],
    ]  # fmt: skip
    assert seen[5] == ["content_block_start"]


def carried(*turns: list[Json]) -> AsChat:
    messages = [{"role": "assistant", "content": blocks} for blocks in turns]
    return as_chat(anthropic.REQUEST.decode(split(msgspec.json.encode({"model": "m", "messages": messages}))))


def thinking(signature: str | None) -> Json:
    return {"type": "thinking", "thinking": "t", "signature": signature}


def says(text: str) -> Json:
    return {"type": "text", "text": text}


def recalled(found: AsChat, key: str) -> list[str]:
    return [msgspec.json.decode(item["encrypted_content"]) for item in found.recall(key)]


def test_all_thinking_before_the_text_of_a_turn_belongs_to_it() -> None:
    found = carried([thinking("A"), says("a"), thinking(None), thinking("B"), says("b")])
    assert recalled(found, of_text("ab")) == ["A", "B"]
    assert found.request.messages[-1].content == "ab"  # type: ignore[union-attr]


def test_turns_of_the_same_words_keep_their_own_thinking() -> None:
    found = carried([thinking("A"), says("Done.")], [says("Done.")], [thinking("B"), says("Done.")])
    assert [recalled(found, of_text("Done.")) for _ in range(4)] == [["A"], [], ["B"], []]


def test_an_empty_text_takes_no_thinking_away_from_a_call() -> None:
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    assert recalled(carried([thinking("A"), says(""), call]), of_call("c")) == ["A"]


def test_what_anthropics_own_tools_left_behind_is_left_out() -> None:
    found = carried([{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                     {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}, says("It is so.")])  # fmt: skip
    assert [message.content for message in found.request.messages] == ["It is so."]
    assert told(found.adjusted) == ["web_search=left out", "prefill=ignored"]


def test_the_line_for_anthropics_billing_stays_here() -> None:
    """It differs with every request, and nothing behind it would be cached."""
    texts = [says("x-anthropic-billing-header: cch=1;"), says("Be brief.")]
    asked = {"model": "m", "system": texts, "messages": [{"role": "user", "content": "x"}]}
    request = as_chat(anthropic.REQUEST.decode(split(msgspec.json.encode(asked)))).request
    assert request.messages[0].content == "Be brief."


def test_a_conversation_that_is_too_long_is_said_in_the_words_that_clients_know() -> None:
    error = ApiError(400, "Your input exceeds the context window.", code="context_length_exceeded")
    assert b"prompt is too long: Your input" in failure_document(error)


def test_a_turn_of_thinking_alone_is_no_turn() -> None:
    thought = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "gA"}]}
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}, thought]}
    assert len(as_chat(anthropic.REQUEST.decode(split(msgspec.json.encode(body)))).request.messages) == 1


def test_an_answer_without_any_block_has_a_beginning_and_an_end() -> None:
    incomplete = COMPLETED | {"type": "response.incomplete"}
    for streamed in (True, False):
        message = feed([CREATED, incomplete], streamed=streamed)
        assert (message["content"], message["stop_reason"]) == ([], "max_tokens")


def test_a_search_is_a_call_and_its_result() -> None:
    page = {"url": "https://a", "title": "A"}
    events = [CREATED, *searched(0, results=[page, "odd"]), *said(1, "See A."), COMPLETED]
    for streamed in (True, False):
        use, result, text = feed(events, streamed=streamed)["content"]
        assert (use["type"], use["name"], use["input"]) == ("server_tool_use", "web_search", {"query": "q0"})
        assert result["content"] == [{"type": "web_search_result", **page, "encrypted_content": "", "page_age": None}]
        assert result["tool_use_id"] == use["id"] and text["text"] == "See A."
        usage = feed(events, streamed=streamed)["usage"]
        assert usage["server_tool_use"] == {"web_search_requests": 1, "web_fetch_requests": 0}
        assert [block["type"] for block in feed(events, streamed=streamed, searches=False)["content"]] == ["text"]


def test_a_search_of_an_odd_shape_costs_nothing() -> None:
    for fields, content in (
        ({"results": 7, "action": 7}, []),
        ({"error": "unavailable"}, {"type": "web_search_tool_result_error", "error_code": "unavailable"}),
    ):
        found = feed([CREATED, *searched(0, **fields), *said(1, "x"), COMPLETED], streamed=True)
        assert found["content"][1]["content"] == content
    opened = searched(0, action={"type": "open_page", "url": "https://a"})
    assert len(feed([CREATED, *opened, *said(1, "x"), COMPLETED], streamed=True)["content"]) == 1


def test_anthropics_search_becomes_the_backends() -> None:
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2, "allowed_domains": ["a"],
            "blocked_domains": [], "user_location": {"type": "approximate", "city": "Bern"}}  # fmt: skip
    choice = {"type": "tool", "name": "web_search"}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [tool], "tool_choice": choice}
    request = as_chat(anthropic.REQUEST.decode(split(msgspec.json.encode(body)))).request
    assert [msgspec.json.decode(each) for each in request.tools or ()] == [
        {"type": "web_search", "filters": {"allowed_domains": ["a"]}, "user_location": tool["user_location"]}
    ]
    assert request.max_tool_calls == 2 and getattr(request.tool_choice, "type", None) == "web_search"
    plain = body | {"tools": [{"type": "web_search_20260209", "name": "s"}], "tool_choice": {"type": "auto"}}
    request = as_chat(anthropic.REQUEST.decode(split(msgspec.json.encode(plain)))).request
    assert (request.max_tool_calls, request.tool_choice) == (None, "auto")


def test_other_tools_of_anthropics_leave_their_word() -> None:
    found = carried([{"type": "server_tool_use", "id": "s", "name": "code_execution", "input": {}}, says("So.")])
    assert told(found.adjusted) == ["server_tools=dropped", "prefill=ignored"]

"""Several answers of the backend as one, in which codexd ran the hosted tools."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.protocol.codex.request import UpstreamRequest
from codexd.protocol.hosted.pages import Page
from codexd.protocol.hosted.rounds import Call, Outcome, Rounds, arguments_of, query_of
from support.converted import responses_request

Json = dict[str, Any]
TOOLS = [{"type": "web_search"}, {"type": "image_generation"}]
FOUND = Outcome("found", "x", (Page("https://a.example", "A"),))


def rounds(limit: int | None = None, *, tools: Sequence[Json] = TOOLS, **fields: Any) -> tuple[Rounds, UpstreamRequest]:
    converted = responses_request("gpt-6-sol", tools=tools, max_tool_calls=limit, **fields)
    assert converted.hosted is not None
    return Rounds(converted.hosted, converted.request), converted.request


def encode(kind: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"type": kind, **fields})


def created(name: str) -> bytes:
    return encode("response.created", response={"id": name, "created_at": 1})


def completed(name: str, tokens: int = 10, **more: Any) -> bytes:
    usage = {"input_tokens": tokens, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": 1, "odd": None}
    return encode("response.completed", response={"id": name, "created_at": 2, "usage": usage, **more})


def call(
    index: int = 0, name: str = "web_search", arguments: str = '{"query":"x"}', space: str = "hosted"
) -> list[bytes]:
    item = {"id": f"fc_{index}", "type": "function_call", "call_id": f"call_{index}", "name": name, "namespace": space,
            "arguments": arguments, "status": "completed"}  # fmt: skip
    return [
        encode("response.output_item.added", output_index=index, item=item | {"arguments": ""}),
        encode("response.function_call_arguments.delta", output_index=index, delta=arguments),
        encode("response.output_item.done", output_index=index, item=item),
    ]


def says(text: str, index: int = 0) -> list[bytes]:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "msg", "type": "message", "role": "assistant", "content": [part]}
    return [
        encode("response.output_item.added", output_index=index, item=item | {"content": []}),
        encode("response.output_text.delta", output_index=index, item_id="msg", content_index=0, delta=text),
        encode("response.output_text.done", output_index=index, item_id="msg", content_index=0, text=text),
        encode("response.content_part.done", output_index=index, item_id="msg", content_index=0, part=part),
        encode("response.output_item.done", output_index=index, item=item),
    ]


REASONING = encode("response.output_item.done", output_index=0,
                   item={"id": "rs", "type": "reasoning", "summary": [], "encrypted_content": "gAAAA"})  # fmt: skip


def decoded(events: Sequence[bytes]) -> list[Json]:
    return [msgspec.json.decode(event) for event in events]


def run(automaton: Rounds, outcome: Outcome = FOUND) -> list[Json]:
    """The client's events of the calls of a round that is over."""
    assert automaton.over
    return decoded(
        [e for each in automaton.calls for e in (*automaton.started(each), *automaton.finished(each, outcome))]
    )


def follow(automaton: Rounds, outcome: Outcome = FOUND) -> UpstreamRequest:
    return automaton.next_request({each.id: outcome for each in automaton.calls})


def test_an_answer_without_calls_is_as_it_came() -> None:
    events = [created("a"), REASONING, *says("Hello", 1), encode("codex.rate_limits"), b"not JSON", completed("a")]
    automaton, _ = rounds()
    assert automaton.feed(events) == events
    assert not automaton.over


def test_two_rounds_are_one_answer() -> None:
    automaton, request = rounds()
    out = decoded(automaton.feed([created("a"), REASONING, *call(1), completed("a")]))
    assert [event["type"] for event in out] == ["response.created", "response.output_item.done"]
    out += run(automaton)
    assert out[-1]["item"] == {
        "id": "ws_0_1_1", "type": "web_search_call", "status": "completed",
        "action": {"type": "search", "query": "x", "queries": ["x"], "sources": [{"type": "url", "url": "https://a.example"}]},
        "results": [{"url": "https://a.example", "title": "A"}],
    }  # fmt: skip
    following = follow(automaton)
    sent = msgspec.json.decode(msgspec.json.encode(following.input[len(request.input) :]))
    assert [item["type"] for item in sent] == ["reasoning", "function_call", "function_call_output"]
    assert all("id" not in item and "status" not in item for item in sent)
    assert (sent[2]["call_id"], sent[2]["output"]) == ("call_1", "found")
    out += decoded(automaton.feed([created("b"), *says("See [A](https://a.example)."), completed("b")]))
    assert sum(event["type"] == "response.created" for event in out) == 1
    assert {event["output_index"] for event in out if "output_index" in event} == {0, 1, 2}
    marks = [event for event in out if event["type"] == "response.output_text.annotation.added"]
    assert [mark["annotation"]["url"] for mark in marks] == ["https://a.example"]
    assert out[-2]["item"]["content"][0]["annotations"] == [mark["annotation"] for mark in marks]
    last = out[-1]["response"]
    assert (last["id"], last["created_at"], last["output"]) == ("a", 1, [])
    assert last["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 2,
        "odd": None,
    }


def test_reasoning_that_cannot_be_sent_back_is_not() -> None:
    automaton, request = rounds()
    bare = encode("response.output_item.done", output_index=0, item={"id": "rs", "type": "reasoning", "summary": []})
    usage = encode("response.completed", response={"usage": {"a": 1, "b": "x", "c": {"d": 1}, "e": None}})
    automaton.feed([created("a"), bare, *call(1), usage])
    run(automaton)
    assert [type(item).__name__ for item in follow(automaton).input[len(request.input) :]] == [
        "dict",
        "FunctionCallOutput",
    ]
    out = decoded(
        automaton.feed(
            [*says("Hi"), encode("response.completed", response={"usage": {"a": 2, "b": "y", "c": 7, "e": 5}})]
        )
    )
    assert out[-1]["response"]["usage"] == {"a": 3, "b": "x", "c": {"d": 1}, "e": 5}


def test_citations_come_with_the_item_where_nothing_came_before() -> None:
    automaton, _ = rounds()
    automaton.feed([created("a"), *call(), completed("a")])
    run(automaton)
    follow(automaton)
    out = decoded(automaton.feed([created("b"), says("https://a.example")[-1]]))
    assert [event["type"] for event in out] == ["response.output_text.annotation.added", "response.output_item.done"]
    cited = msgspec.json.decode(says("https://a.example")[-1])
    cited["item"]["content"][0]["annotations"] = [{"type": "url_citation"}]
    cited["output_index"] = 1
    other = encode("response.output_item.done", output_index=2, item={"type": "message", "content": "odd"})
    out = decoded(automaton.feed([msgspec.json.encode(cited), other]))
    assert len(out) == 2 and out[0]["item"] == cited["item"], "the backend's own stay"


def test_a_call_beside_a_clients_call_is_left_out() -> None:
    automaton, _ = rounds()
    out = decoded(automaton.feed([created("a"), *call(0), *call(1, "mine", space="functions"), completed("a")]))
    assert not automaton.over
    assert [event.get("output_index") for event in out] == [None, 1, 1, 1, None]
    assert out[-1]["response"]["output"] == []


def test_an_answer_that_ends_otherwise_ends() -> None:
    for kind in ("response.incomplete", "response.failed"):
        automaton, _ = rounds()
        automaton.feed([created("a"), *call(0)])
        (last,) = decoded(automaton.feed([encode(kind, response={"id": "a"})]))
        assert (last["type"], automaton.over) == (kind, False)


def test_items_that_come_only_at_the_end_are_items() -> None:
    automaton, _ = rounds()
    item = msgspec.json.decode(call()[-1])["item"]
    assert decoded(automaton.feed([created("a"), completed("a", output=[item])])) == decoded([created("a")])
    assert automaton.over and automaton.calls[0].name == "web_search"
    run(automaton)
    follow(automaton)
    message = msgspec.json.decode(says("Hi")[-1])["item"]
    out = decoded(automaton.feed([created("b"), completed("b", output=[message])]))
    assert [event["type"] for event in out] == ["response.output_item.done", "response.completed"]
    assert rounds()[0].feed([completed("a", output=7)]) == [completed("a", output=7)]


def test_calls_are_bounded() -> None:
    automaton, request = rounds(2)
    automaton.feed([created("a"), *call(0), *call(1), *call(2), completed("a")])
    done: dict[str, Outcome] = {}
    for each in automaton.calls:
        if not automaton.spent:
            automaton.started(each)
            done[each.id] = FOUND
    assert list(done) == ["ws_0_0_0", "ws_0_1_1"]
    following = automaton.next_request(done)
    outputs = [item.output for item in following.input if type(item).__name__ == "FunctionCallOutput"]
    assert outputs[:2] == ["found", "found"] and "No more calls" in str(outputs[2])
    assert [b'"name":"hosted"' in msgspec.json.encode(each.input) for each in (request, following)] == [True, False]
    out = decoded(automaton.feed([created("b"), *call(0), completed("b")]))
    assert not automaton.over and out[-1]["type"] == "response.completed"


def test_a_round_may_be_tried_again_until_something_came() -> None:
    automaton, _ = rounds()
    automaton.feed([created("a"), *call(), completed("a")])
    run(automaton)
    follow(automaton)
    automaton.feed([created("b"), *call()])
    assert not automaton.progressed
    automaton.restart()
    out = decoded(automaton.feed([created("c"), *says("Hi"), completed("c")]))
    assert automaton.progressed and not automaton.over and out[-1]["response"]["id"] == "a"


def test_an_image_is_drawn_and_may_be_changed() -> None:
    automaton, _ = rounds(
        input=[{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}]
    )
    assert automaton.last_image() == "data:image/png;base64,AA=="
    automaton.feed([created("a"), *call(0, "image_generation", '{"prompt":"a dot"}'), completed("a")])
    out = run(automaton, Outcome("drawn", "a dot", image={"result": "BB==", "output_format": "webp"}))
    assert [event["type"].rpartition(".")[2] for event in out] == [
        "added",
        "in_progress",
        "generating",
        "completed",
        "done",
    ]
    assert out[-1]["item"] == {"id": "ig_0_0_0", "type": "image_generation_call", "status": "completed", "result": "BB==",
                               "output_format": "webp", "revised_prompt": "a dot"}  # fmt: skip
    assert automaton.last_image() == "data:image/webp;base64,BB=="
    assert rounds(input="x")[0].last_image() is None
    assert (
        rounds(input=[{"role": "user", "content": "x"}, {"type": "reasoning", "encrypted_content": "x"}])[
            0
        ].last_image()
        is None
    )


def test_an_image_of_an_earlier_answer_is_one_of_the_conversation() -> None:
    drawn = {"type": "image_generation_call", "result": "BB==", "output_format": "webp"}
    items = [
        {"role": "user", "content": "x"},
        drawn,
        {"type": "web_search_call", "action": {}},
        {"type": "image_generation_call"},
    ]
    automaton, request = rounds(input=items)
    assert automaton.last_image() == "data:image/webp;base64,BB=="
    assert b"_call" not in msgspec.json.encode(request.input)


def test_a_failure_is_an_item_that_failed() -> None:
    automaton, _ = rounds()
    automaton.feed([created("a"), *call(), completed("a")])
    out = run(automaton, Outcome("The tool failed: x", "x", failed="unavailable"))
    assert out[-1]["item"]["status"] == "failed" and out[-1]["item"]["error"] == "unavailable"
    assert "completed" not in out[-2]["type"]


def test_arguments_that_can_be_used() -> None:
    found = arguments_of(Call(0, "ws", "call", "web_search", '{"query":"x","recency":3,"domains":["a"]}'))
    assert (found.wanted, found.recency, found.domains) == ("x", 3, ["a"])
    nulls = '{"query":"x","recency":null,"domains":null,"prompt":null,"change_last_image":null}'
    assert arguments_of(Call(0, "ws", "call", "web_search", nulls)).wanted == "x"


def test_an_end_in_other_words_is_an_end() -> None:
    automaton, _ = rounds()
    automaton.feed([created("a"), *call(), encode("response.done", response={"id": "a", "status": "completed"})])
    assert automaton.over


def test_calls_with_the_same_id_are_two() -> None:
    automaton, _ = rounds()
    first, second = call(0), [event.replace(b'"output_index":0', b'"output_index":1') for event in call(0)]
    automaton.feed([created("a"), *first, *second, completed("a")])
    assert len({each.id for each in automaton.calls}) == 2


@pytest.mark.parametrize("arguments", ["", "{}", "[]", "{", '{"query": 7}', '{"query": " "}'])
def test_arguments_that_cannot_be_used(arguments: str) -> None:
    found = Call(0, "ws", "call", "web_search", arguments)
    with pytest.raises(ValueError):
        arguments_of(found)
    assert query_of(found).strip() == ""


PIECES: list[list[bytes]] = [[created("a")], [REASONING], call(1), call(2, "mine", space="functions"), says("Hi", 3), [completed("a")],
          [encode("response.output_item.done", output_index=1, item=7)], [encode("response.output_item.done", output_index="x")],
          [encode("response.completed")], [encode("response.completed", response=7)], [b"[]"], [b"{"], [b'{"type":"response.x","output_index":5}']]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_whatever_comes_it_goes_on(pieces: list[list[bytes]]) -> None:
    """Odd events pass, no event of a hosted call reaches the client, and every round that is over can go on."""
    automaton, _ = rounds()

    def feed() -> Iterator[bytes]:
        for piece in pieces:
            yield from automaton.feed(piece)
            if automaton.over:
                yield from (event for each in automaton.calls for event in automaton.started(each))
                follow(automaton)

    out = list(feed())
    assert not any(b'"namespace":"hosted"' in event for event in out)

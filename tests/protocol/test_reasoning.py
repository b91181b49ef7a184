"""Reasoning that is kept for a chat client's next turn, and where its summary goes."""

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from codexd.protocol.chat import wire as chat
from codexd.protocol.chat.convert import from_chat
from codexd.protocol.chat.converter import ChatConverter
from codexd.protocol.chat.stream import ChatStream, ReasoningFormat
from codexd.protocol.conversion import Conversion
from codexd.protocol.convert import Settings, without_reasoning
from codexd.protocol.members import split
from codexd.protocol.raw import RawObject
from codexd.protocol.reasoning import OVERHEAD, ReasoningMemory, Turn, nothing, of_call, of_text
from codexd.protocol.stops import Cutoff, StopLimits
from support.converted import CATALOGUE, chat_request, responses_request, up


def item(content: str = "gAAAA", size: int = 0) -> RawObject:
    fields = {"type": "reasoning", "summary": [], "encrypted_content": content + "A" * size}
    return {key: Raw(msgspec.json.encode(value)) for key, value in fields.items()}


def test_what_is_kept_is_found_by_its_model_and_key_for_its_time() -> None:
    memory = ReasoningMemory(10_000, 60)
    memory.remember("m", "a", [item()], now=0)
    assert memory.recall("m", "a", now=60) == (item(),)
    assert memory.recall("m", "a", now=61) == ()
    assert memory.recall("n", "a", now=0) == ()
    assert memory.recall("m", "b", now=0) == ()


def test_the_oldest_goes_first_and_all_of_it_is_bounded() -> None:
    memory = ReasoningMemory(4 * (200 + 2 * OVERHEAD) + 400, 60)
    for number in range(10):
        memory.remember("m", str(number), [item(size=200)], now=number)
    kept = [number for number in range(10) if memory.recall("m", str(number), now=10)]
    assert kept == [6, 7, 8, 9]
    memory.remember("m", "big", [item(size=9000)], now=11)
    assert memory.recall("m", "big", now=11) == ()
    assert memory.recall("m", "9", now=11)
    memory.remember("m", "9", [item("new")], now=12)
    assert memory.recall("m", "9", now=12) == (item("new"),)
    memory.remember("m", "late", [item()], now=100)
    size = 2 * OVERHEAD + sum(len(bytes(value)) for value in item().values())
    assert repr(memory) == f"<ReasoningMemory 1 answers, {size} bytes>"
    memory.configure(0, 60)
    assert memory.recall("m", "late", now=100) == ()
    memory.remember("m", "x", [item()], now=100)
    assert memory.recall("m", "x", now=100) == ()


# --- from an answer into the next request


def reasoning(number: int, content: str | None) -> dict[str, Any]:
    whole = {
        "id": f"rs_{number}",
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "encrypted_content": content,
    }
    return {"type": "response.output_item.done", "output_index": number, "item": whole}


def done(number: int, **fields: Any) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": number, "item": fields}


def call(number: int, call_id: str) -> dict[str, Any]:
    return done(number, type="function_call", call_id=call_id, name="f", arguments="{}")


def message(number: int, text: str, **fields: Any) -> dict[str, Any]:
    return done(number, type="message", content=[{"type": "output_text", "text": text}], **fields)


COMPLETED = {"type": "response.completed", "response": {"output": []}}


def answer(*events: dict[str, Any]) -> dict[str, list[str]]:
    kept: dict[str, list[str]] = {}

    def keep(key: str, items: Any) -> None:
        kept[key] = [msgspec.json.decode(each["encrypted_content"]) for each in items]
        assert all(set(each) == {"type", "summary", "encrypted_content"} for each in items)

    stream = ChatStream(id="i", model="m", created=1, include_usage=False)
    conversion = Conversion(ChatConverter(stream, streamed=True, turn=Turn(keep)))
    for event in events:
        conversion.feed([msgspec.json.encode(event)])
    return kept


def test_each_call_and_text_gets_what_led_to_it() -> None:
    kept = answer(
        reasoning(0, "one"), reasoning(1, "two"), message(2, "Working on it.", phase="commentary"), call(3, "a"),
        call(4, "b"), reasoning(5, "three"), message(6, "Done."), reasoning(7, "last"), COMPLETED,
    )  # fmt: skip
    assert kept == {of_call("a"): ["one", "two"], of_text("Done."): ["three"]}


def test_what_is_incomplete_or_cannot_be_sent_back_is_not_kept() -> None:
    assert answer(reasoning(0, "one"), call(1, "a")) == {}
    assert answer(reasoning(0, None), reasoning(1, ""), call(2, "a"), COMPLETED) == {}
    assert answer(call(0, "a"), COMPLETED) == {}


def test_an_answer_that_was_cut_is_not_kept() -> None:
    kept: list[str] = []
    stream = ChatStream(id="i", model="m", created=1, include_usage=False, cut=Cutoff(StopLimits(max_tokens=1)))
    conversion = Conversion(ChatConverter(stream, streamed=True, turn=Turn(lambda key, _: kept.append(key))))
    for event in (reasoning(0, "one"), call(1, "a"), message(2, "far too long"), COMPLETED):
        conversion.feed([msgspec.json.encode(event)])
    assert (stream.cut_short, kept) == (True, [])


def test_it_comes_back_before_what_it_led_to() -> None:
    known = {of_call("a"): (item("one"),), of_text("Hm."): (item("zero"),)}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "Hm.", "tool_calls": [
            {"id": "a", "function": {"name": "f"}}, {"id": "b", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
    ]  # fmt: skip
    body = msgspec.json.encode({"model": "gpt-5.5", "messages": messages})
    for model in ("gpt-5.5", "gpt-6-sol"):
        converted = from_chat(
            chat.REQUEST.decode(split(body)),
            CATALOGUE.resolve(model),
            Settings(prompt="P"),
            lambda key: known.get(key, ()),
        )
        kinds = [(each["type"], each.get("encrypted_content")) for each in up(converted)["input"]]
        order = [kind for kind, _ in kinds if kind != "message"]
        assert order == ["reasoning", "reasoning", "function_call", "function_call", *["function_call_output"] * 2]
        assert [content for kind, content in kinds if kind == "reasoning"] == ["zero", "one"]
        # What the backend cannot decrypt can be left out, and nothing else is.
        rest = without_reasoning(converted.request)
        assert rest is not None
        left = [each["type"] for each in msgspec.json.decode(msgspec.json.encode(rest))["input"]]
        assert left == [kind for kind, _ in kinds if kind != "reasoning"]
        assert without_reasoning(rest) is None
    assert nothing("x") == ()


def test_a_client_that_carries_reasoning_itself_can_be_tried_without() -> None:
    items = [{"role": "user", "content": "x"}, {"type": "reasoning", "encrypted_content": "gA", "summary": []}]
    rest = without_reasoning(responses_request(input=items).request)
    assert rest is not None
    assert len(rest.input) == 1


# --- where its summary goes


def said(form: ReasoningFormat, *events: dict[str, Any], streamed: bool = False) -> Any:
    stream = ChatStream(id="i", model="m", created=1, include_usage=False, reasoning=form)
    conversion = Conversion(ChatConverter(stream, streamed=streamed))
    out = b"".join(conversion.feed([msgspec.json.encode(event)]) for event in events)
    assert stream.done, stream.error
    return out if streamed else msgspec.json.decode(conversion.document())["choices"][0]["message"]


THOUGHT = {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "Hm."}
AGAIN = THOUGHT | {"summary_index": 1, "delta": "Ah."}


@pytest.mark.parametrize(
    ("form", "content", "fields"),
    [
        ("reasoning_content", "Yes.", {"reasoning_content": "Hm.\n\nAh."}),
        ("reasoning", "Yes.", {"reasoning": "Hm.\n\nAh."}),
        ("think-tags", "<think>Hm.\n\nAh.</think>\n\nYes.", {}),
        ("none", "Yes.", {}),
    ],
)
def test_a_summary_goes_where_it_is_wanted(form: ReasoningFormat, content: str, fields: dict[str, str]) -> None:
    found = said(form, THOUGHT, AGAIN, message(1, "Yes."), COMPLETED)
    assert found["content"] == content
    assert {key: found[key] for key in ("reasoning", "reasoning_content") if key in found} == fields


def test_thinking_ends_before_a_call_and_at_the_end() -> None:
    found = said("think-tags", THOUGHT, call(1, "a"), COMPLETED)
    assert (found["content"], found["tool_calls"][0]["id"]) == ("<think>Hm.</think>\n\n", "a")
    incomplete = {"type": "response.incomplete", "response": {"incomplete_details": {"reason": "max_output_tokens"}}}
    assert said("think-tags", THOUGHT, incomplete)["content"] == "<think>Hm.</think>\n\n"


def test_commentary_alone_is_the_answer() -> None:
    assert said("none", message(0, "Working.", phase="commentary"), COMPLETED)["content"] == "Working."
    assert said("none", message(0, "Working.", phase="commentary"), call(1, "a"), COMPLETED)["content"] is None


def test_reasoning_in_tags_does_not_go_back_as_text() -> None:
    answer = said("think-tags", THOUGHT, message(1, "Yes."), COMPLETED)["content"]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "?"},
    ]
    sent = up(chat_request(messages=messages, settings=Settings(prompt="P", think_tags=True)))["input"]
    assert sent[1]["content"] == [{"type": "output_text", "text": "Yes."}]
    as_it_is = up(chat_request(messages=messages))["input"]
    assert as_it_is[1]["content"][0]["text"] == answer

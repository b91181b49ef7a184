"""Call ids on the way up: unique, short, the same in call and result, and the same in each turn."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from codexd.errors import ApiError
from codexd.protocol.codex import ids
from codexd.protocol.codex.request import FunctionCall, FunctionCallOutput, InputItem, InputText, Message
from codexd.protocol.convert import Settings
from support.converted import chat_request, responses_request, up

OWN = ["", "shell:0", "call_1", "x" * 64, "x" * 65, "é" * 70]


def called(own: str, *, raw: bool = False) -> InputItem:
    call = FunctionCall(call_id=own, name="f", arguments="{}")
    return msgspec.json.decode(msgspec.json.encode(call), type=dict[str, Raw]) if raw else call


def result(own: str, *, raw: bool = False) -> InputItem:
    output = FunctionCallOutput(call_id=own, output="done")
    return msgspec.json.decode(msgspec.json.encode(output), type=dict[str, Raw]) if raw else output


turns = st.lists(st.tuples(st.lists(st.sampled_from(OWN), min_size=1, max_size=3), st.booleans()), max_size=5)


@given(turns)
def test_calls_are_unique_and_results_follow_them(history: list[tuple[list[str], bool]]) -> None:
    items: list[InputItem] = []
    for own, raw in history:
        items += [Message(role="user", content=[InputText(text="go")])]
        items += [called(each, raw=raw) for each in own] + [result(each, raw=raw) for each in own]
    found, _ = ids.unique(items)
    names = [ids.call_id_of(item) for item in found]
    start = 0
    seen: list[str | None] = []
    for own, _ in history:
        calls = names[start + 1 : start + 1 + len(own)]
        assert names[start + 1 + len(own) : start + 1 + 2 * len(own)] == calls
        seen += calls
        start += 1 + 2 * len(own)
    assert len(set(seen)) == len(seen)
    assert all(name is None or 0 < len(name) <= ids.MAX_ID for name in names)
    firsts = dict(reversed([*zip([each for own, _ in history for each in own], seen, strict=True)]))
    assert all(firsts[own] == own for own in firsts if 0 < len(own) <= ids.MAX_ID)
    # What was sent in a turn stays what it was, so the backend's cache and the connection go on holding it.
    earlier, _ = ids.unique(items[: start - 1 - 2 * len(history[-1][0])] if history else [])
    assert list(found[: len(earlier)]) == list(earlier)


def test_good_ones_are_not_touched() -> None:
    items = [called("a"), result("a"), called("b", raw=True), result("b")]
    found, adjusted = ids.unique(items)
    assert found is items
    assert adjusted == ()


def test_a_long_one_alone_is_replaced() -> None:
    found, adjusted = ids.unique([called("x" * 65), result("x" * 65)])
    first, second = map(ids.call_id_of, found)
    assert first == second != "x" * 65
    assert [each.param for each in adjusted] == ["call_ids"]


def test_an_id_that_looks_like_a_replacement_is_none() -> None:
    made = ids.call_id_of(ids.unique([called("a"), called("a")])[0][1])
    assert made is not None
    found, _ = ids.unique([called(made), called("a"), called("a")])
    assert len({ids.call_id_of(item) for item in found}) == 3


def test_a_second_result_and_one_without_a_call() -> None:
    found, _ = ids.unique([called("a"), result("a"), called("a"), result("a"), result("a"), result("y" * 70)])
    names = [ids.call_id_of(item) for item in found]
    assert names[0:2] == ["a", "a"]
    assert names[2] == names[3] == names[4] != "a"
    assert len(names[5] or "") == 37


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-6-sol"])
def test_in_every_shape(model: str) -> None:
    long = "c" * 70
    history: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    items: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    for own in ("shell:0", "shell:0", long):
        history += [
            {"role": "assistant", "tool_calls": [{"id": own, "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": own, "content": "x"},
        ]
        items += [
            {"type": "function_call", "call_id": own, "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": own, "output": "x"},
        ]
    for converted in (chat_request(model, messages=history), responses_request(model, input=items)):
        names = [item["call_id"] for item in up(converted)["input"] if "call_id" in item]
        assert names[0::2] == names[1::2]
        assert names[0] == "shell:0" != names[2]
        assert len(set(names)) == 3 and max(map(len, names)) <= 64
        assert any(each.param == "call_ids" for each in converted.adjusted)


CALLED_TWICE = [
    {"role": "user", "content": "a"},
    {"type": "function_call", "call_id": "t:0", "name": "f", "arguments": "{}"},
    {"role": "user", "content": "b"},
    {"type": "function_call", "call_id": "t:0", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "t:0", "output": "second"},
]


def test_a_result_belongs_to_the_latest_turn() -> None:
    sent = up(responses_request(input=CALLED_TWICE, settings=Settings(prompt="P", repair_history=True)))["input"]
    results = {item["call_id"]: item["output"] for item in sent if item["type"] == "function_call_output"}
    calls = [item["call_id"] for item in sent if item["type"] == "function_call"]
    assert [results[call] for call in calls] == ["[no output]", "second"]
    with pytest.raises(ApiError) as caught:
        responses_request(input=CALLED_TWICE)
    assert caught.value.error.param == "input[1]"


def test_a_result_before_its_call_is_another_calls() -> None:
    items = [
        {"role": "user", "content": "a"},
        {"type": "function_call_output", "call_id": "t:0", "output": "lost"},
        {"type": "function_call", "call_id": "t:0", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t:0", "output": "own"},
    ]
    sent = up(responses_request(input=items, settings=Settings(prompt="P", repair_history=True)))["input"]
    assert [item["output"] for item in sent if item["type"] == "function_call_output"] == ["own"]
    with pytest.raises(ApiError) as caught:
        responses_request(input=items)
    assert caught.value.error.param == "input[1]"


def test_a_custom_call_and_a_function_call_may_share_an_id() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
    for call in ({"custom": {"name": "c", "input": "x"}}, {"function": {"name": "f", "arguments": "{}"}}):
        messages += [{"role": "assistant", "tool_calls": [{"id": "t:0", **call}]},
                     {"role": "tool", "tool_call_id": "t:0", "content": "r"}]  # fmt: skip
    kinds = [item["type"] for item in up(chat_request(messages=messages))["input"]]
    assert kinds[1:] == ["custom_tool_call", "custom_tool_call_output", "function_call", "function_call_output"]

"""Tools, their names, and calls with their results."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from codexd.errors import ApiError
from codexd.protocol import client_tools as chat_tools
from codexd.protocol.codex import tools
from codexd.protocol.codex.request import FunctionTool
from codexd.protocol.convert import Settings
from support.adjusted import told
from support.converted import chat_request, refusal, responses_request, up

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "f", "parameters": {}}},
        {"type": "function", "name": "f", "parameters": {}},
        {"function": {"name": "f", "parameters": {}}},
        {"name": "f", "parameters": {}},
    ],
)
def test_a_function_in_every_shape_is_one(tool: Any) -> None:
    assert chat_tools.from_chat(raw(tool), "tools[0]") == FunctionTool(name="f", parameters=Raw(b"{}"))


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ({"type": "function"}, 'tools[3]: missing required field "name"'),
        ({"type": "function", "function": {"name": 7}}, "tools[3].function.name: expected a string, got an integer"),
        ({"type": "custom"}, 'tools[3]: missing required field "name"'),
        (
            {"type": "custom", "custom": {"name": "x", "format": {"type": "grammar", "grammar": {}}}},
            'tools[3].custom.format.grammar: missing required field "definition"',
        ),
        (7, "tools[3]: expected an object"),
    ],
)
def test_a_tool_that_is_none_is_refused_with_its_place(tool: Any, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat_tools.from_chat(raw(tool), "tools[3]")
    assert said in str(caught.value)
    assert caught.value.error.param == said.partition(":")[0]


def test_allowed_tools_leave_the_others_out() -> None:
    three = [{"type": "function", "function": {"name": name}} for name in "abc"]
    allowed = [{"type": "function", "function": {"name": "a"}}, {"type": "function", "name": "c"}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}}
    body = up(chat_request(tools=three, tool_choice=choice))
    assert [tool["name"] for tool in body["tools"]] == ["a", "c"]
    assert body["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("always", "must be none, auto, required or name a tool"),
        ({"type": "function"}, "does not name a tool"),
        ({"type": "function", "function": {"name": "g"}}, 'names "g", which is not among the tools'),
    ],
)
def test_a_choice_that_is_none_is_refused(choice: Any, said: str) -> None:
    error = refusal(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice=choice)
    assert (error.error.param, said in str(error)) == ("tool_choice", True)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("required", "at least one of the tools"),
        ({"type": "function", "name": "f"}, "the tool f now"),
        ({"type": "custom", "name": "g"}, "the tool g now"),
        ({"type": "file_search"}, None),
    ],
)
def test_a_forced_choice_is_put_into_words_for_lite(choice: Any, words: str | None) -> None:
    converted = responses_request("gpt-6-sol", tools=[{"type": "function", "name": "f"}], tool_choice=choice)
    body = up(converted)
    assert body["tool_choice"] == "auto"
    assert told(converted.adjusted) == [f"tool_choice={'auto' if words is None else 'instruction'}"]
    last = body["input"][-1]
    assert (last["role"] == "developer" and words in last["content"][0]["text"]) if words else last["role"] == "user"


# --- names


@given(st.text(min_size=1, max_size=200))
def test_every_name_becomes_one_that_the_backend_takes(name: str) -> None:
    wire = tools.wire_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", wire)
    assert tools.wire_name(wire) == wire


@given(st.sets(st.text(alphabet="ab./ ", min_size=60, max_size=80), max_size=30))
def test_names_stay_apart(names: set[str]) -> None:
    assert len({tools.wire_name(name) for name in names}) == len(names)


def test_an_odd_choice_is_carried_and_renamed() -> None:
    named = tools.name([], [], raw({"type": "function", "name": "a.b"}))
    assert msgspec.json.decode(named.choice)["name"] == tools.wire_name("a.b")  # type: ignore[arg-type]
    assert tools.name([], [], raw({"type": "mcp"})).choice == raw({"type": "mcp"})
    assert tools.name([{"type": raw("x"), "name": raw(7)}], [], "auto").names == {}


# --- calls and results


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "assistant", "tool_calls": [CALL]}], "messages[0]"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "c1", "content": ""}], "messages[1]"),
        ([{"role": "function", "name": "f", "content": ""}], "messages[0]"),
        ([{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}], "messages[0]"),
        (
            [{"role": "assistant", "function_call": {"name": "f"}}, {"role": "function", "name": "g"}],
            "messages[0]",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused_with_its_place(messages: Any, param: str) -> None:
    error = refusal(messages=messages)
    assert (error.status, error.error.param) == (400, param)
    assert "codex.repair_history" in str(error)


@pytest.mark.parametrize("repair", [False, True])
def test_the_same_for_input_items(repair: bool) -> None:
    items = [
        {"role": "user", "content": "x"},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": ""},
        {"type": "other"},
    ]
    if not repair:
        with pytest.raises(ApiError) as caught:
            responses_request(input=items)
        assert caught.value.error.param == "input[1]"
        return
    converted = responses_request(settings=Settings(prompt="P", repair_history=True), input=items)
    kinds = [item["type"] for item in up(converted)["input"]]
    assert kinds == ["message", "function_call", "function_call_output", "other"]
    assert told(converted.adjusted) == ["tool_result=added", "tool_result=dropped"]


def test_a_call_that_is_none_is_refused() -> None:
    error = refusal(messages=[{"role": "assistant", "tool_calls": [{"id": "a"}]}])
    assert error.error.param == "messages[0].tool_calls[0]"


def test_two_calls_of_one_function_get_their_own_results() -> None:
    turn = [{"role": "assistant", "function_call": {"name": "f", "arguments": "1"}}, {"role": "function", "name": "f", "content": "one"}]  # fmt: skip
    again = [{"role": "assistant", "function_call": {"name": "f", "arguments": "2"}}, {"role": "function", "name": "f", "content": "two"}]  # fmt: skip
    items = up(chat_request(messages=turn + again))["input"]
    assert [item["call_id"] for item in items] == ["call_function_1"] * 2 + ["call_function_2"] * 2


def test_functions_beside_tools_are_ignored() -> None:
    function = {"name": "old"}
    converted = chat_request(tools=[{"type": "function", "name": "new"}], functions=[function])
    assert ([tool["name"] for tool in up(converted)["tools"]], converted.legacy) == (["new"], False)
    for call, wanted in (("none", "none"), ("auto", "auto"), ({"name": "old"}, {"type": "function", "name": "old"})):
        converted = chat_request(functions=[function], function_call=call)
        assert (up(converted)["tool_choice"], converted.legacy) == (wanted, True)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.PDF", "application/pdf"), ("a.txt", "text/plain"), (None, "text/plain")]
)
def test_a_file_without_its_kind_gets_one(name: str | None, kind: str) -> None:
    file = {"file_data": "QQ==", **({"filename": name} if name else {})}
    body = up(chat_request(messages=[{"role": "user", "content": [{"type": "file", "file": file}]}]))
    assert body["input"][0]["content"][0]["file_data"] == f"data:{kind};base64,QQ=="


def test_json_is_spoken_of_once() -> None:
    for messages, said in (
        ([{"role": "user", "content": "x"}], 1),
        ([{"role": "user", "content": "as Json"}], 0),
    ):
        body = up(chat_request(messages=messages, response_format={"type": "json_object"}))
        assert len(body["input"]) == 1 + said


def test_a_custom_tool_may_be_bare_and_nothing_is_said_of_a_free_choice() -> None:
    assert chat_tools.from_chat(raw({"type": "custom", "name": "x"}), "t") == {"type": raw("custom"), "name": raw("x")}
    assert [tools.instruction(choice) for choice in ("auto", "none", Raw(b'"auto"'))] == [None] * 3  # type: ignore[arg-type]

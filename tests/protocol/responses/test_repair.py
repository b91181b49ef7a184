"""Responses requests in other APIs' words: what they become, and what is refused with its place."""

from typing import Any

import pytest

from codexd.errors import ApiError
from support.converted import responses_request, up

USER = {"role": "user", "content": "hi"}
DATA = "data:image/png;base64,AA=="
MODELS = ("gpt-5.5", "gpt-6-sol")


def sent(*items: Any, model: str = "gpt-5.5") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = up(responses_request(model, input=[USER, *items]))["input"]
    return found[1:] if model == "gpt-5.5" else found[2:]


def message(role: str, *parts: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": list(parts)}


SAID = {"type": "output_text", "text": "a"}
ASKED = {"type": "input_text", "text": "a"}
IMAGE = {"type": "input_image", "image_url": DATA}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": ""}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("item", "becomes"),
    [
        ({"role": "assistant", "content": [ASKED]}, message("assistant", SAID)),
        ({"role": "assistant", "content": [{"type": "text", "text": "a"}]}, message("assistant", SAID)),
        ({"role": "assistant", "content": ["a"]}, message("assistant", SAID)),
        ({"role": "assistant", "content": SAID}, message("assistant", SAID)),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "a"}]},
         message("assistant", {"type": "refusal", "refusal": "a"})),
        ({"role": "user", "content": [SAID]}, message("user", ASKED)),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, None]}, message("user", ASKED)),
        ({"role": "user", "content": [{"text": "a"}]}, message("user", ASKED)),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "a"}]}, message("user", ASKED)),
        ({"role": "system", "content": [{"type": "text", "text": "a"}]}, message("developer", ASKED)),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA}}]}, message("user", IMAGE)),
        ({"role": "user", "content": [{"type": "image_url", "image_url": DATA}]}, message("user", IMAGE)),
        ({"type": None, "role": "user", "content": "a"}, message("user", ASKED)),
        ({"role": "user", "type": "message", "content": "a"}, message("user", ASKED)),
        ({"type": "other", "content": {"detail": 1}}, {"type": "other", "content": {"detail": 1}}),
        ({"role": "user", "content": [{"type": "input_image", "image_url": {"url": DATA}}]}, message("user", IMAGE)),
        ({"role": "user", "content": [{"type": "input_image", "image_url": DATA, "file_id": None}]},
         message("user", IMAGE | {"file_id": None})),
        ({"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}]},
         message("user", IMAGE)),
        ({"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": DATA}}]}, message("user", IMAGE)),
        ({"role": "user", "content": [{"type": "file", "file": {"filename": "a", "file_data": DATA, "file_id": None}}]},
         message("user", {"type": "input_file", "filename": "a", "file_data": DATA})),
        ({"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]},
         message("user", {"type": "input_file", "file_url": "https://x"})),
        ({"role": "user", "content": [{"type": "new_part", "x": 1}]}, message("user", {"type": "new_part", "x": 1})),
        ({"type": "input_text", "text": "a"}, message("user", ASKED)),
        ({"type": "image_url", "image_url": {"url": DATA}}, message("user", IMAGE)),
        ({"type": "reasoning", "encrypted_content": "e"}, {"type": "reasoning", "encrypted_content": "e", "summary": []}),
        ({"type": "compaction", "encrypted_content": "e"}, {"type": "compaction", "encrypted_content": "e"}),
    ],
)  # fmt: skip
def test_what_an_item_becomes(item: Any, becomes: Any, model: str) -> None:
    assert sent(item, model=model) == [becomes]


@pytest.mark.parametrize(
    ("call", "becomes"),
    [
        ({"type": "function_call", "call_id": "c", "name": "f"}, CALL),
        (CALL | {"arguments": None}, CALL),
        (CALL | {"arguments": ""}, CALL),
        (CALL | {"arguments": {"a": [1, 2.5]}}, CALL | {"arguments": '{"a":[1,2.5]}'}),
        ({"type": "function_call", "id": "c", "name": "f", "arguments": "{}"}, CALL),
        ({"type": "custom_tool_call", "call_id": "c", "name": "f"}, CALL | {"type": "custom_tool_call", "input": ""}),
    ],
)
def test_what_a_call_becomes(call: Any, becomes: Any) -> None:
    result = RESULT | {"type": f"{call['type']}_output"}
    found = sent(call, result)[0]
    assert found == {key: value for key, value in becomes.items() if key in found}
    assert found.keys() & {"arguments", "input"}


@pytest.mark.parametrize(
    ("output", "becomes"),
    [
        (None, ""),
        ("", ""),
        ({"a": 1}, '{"a":1}'),
        ([1, "x"], '[1,"x"]'),
        ([{"id": 1}], '[{"id":1}]'),
        (7, "7"),
        (True, "true"),
        ([], []),
        ([ASKED], [ASKED]),
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": DATA}}], [ASKED, IMAGE]),
    ],
)
def test_what_a_result_becomes(output: Any, becomes: Any) -> None:
    assert sent(CALL, RESULT | {"output": output})[1]["output"] == becomes
    assert sent(CALL, {"role": "tool", "tool_call_id": "c", "content": output})[1]["output"] == becomes
    given = {"type": "function_call_output", "tool_call_id": "c", "output": output}
    assert sent(CALL, given)[1]["output"] == becomes


def test_calls_in_a_message_of_the_chat_api() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    silent = {"role": "assistant", "content": None, "tool_calls": [call]}
    for said, before in ((silent, []), (silent | {"content": "a"}, [message("assistant", SAID)])):
        found = sent(said, RESULT)
        assert [item["type"] for item in found] == [*(item["type"] for item in before), "function_call", RESULT["type"]]
        assert found[-2]["arguments"] == '{"a":1}'
    assert sent(silent | {"content": []}, RESULT)[0]["type"] == "function_call"


def test_a_message_without_content_is_left_out() -> None:
    converted = responses_request(input=[USER, {"role": "assistant", "content": None}, {"role": "assistant"}])
    assert len(up(converted)["input"]) == 1
    assert any(each.param == "input" for each in converted.adjusted)
    assert sent({"role": "user", "content": [None]}) == []


def test_what_is_right_is_not_said_to_be_repaired() -> None:
    items = [USER, message("assistant", SAID), message("user", ASKED, IMAGE), CALL, RESULT]
    assert responses_request(input=items).adjusted == ()


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"content": "x"}, "input[1].role"),
        ({"type": 7, "role": "user", "content": "x"}, "input[1].type"),
        ({"type": ["message"], "role": "user", "content": "x"}, "input[1].type"),
        ({"role": "user", "content": [{"type": "input_text", "text": 7}]}, "input[1].content[0]"),
        ({"role": "assistant", "content": [{"type": "output_text", "text": {}}]}, "input[1].content[0]"),
        ({"role": "robot", "content": "x"}, "input[1].role"),
        ({"role": "user", "content": 7}, "input[1].content"),
        ({"role": "user", "content": [7]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "input[1].content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"x": 1}}]}, "input[1].content[0].image_url"),
        ({"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input[1].content[0]"),
        ({"role": "tool", "content": "x"}, "input[1].tool_call_id"),
        ({"role": "assistant", "tool_calls": 7}, "input[1].tool_calls"),
        ({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_text", "text": None}]}, "input[1].content[0]"),
        ({"role": "assistant", "tool_calls": [7]}, "input[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]}, "input[1].tool_calls[0].name"),
        ({"type": "function_call", "name": "f"}, "input[1].call_id"),
        ({"type": "function_call", "call_id": "c"}, "input[1].name"),
        ({"type": "function_call_output", "output": ""}, "input[1].call_id"),
    ],
)
def test_what_means_nothing_is_refused_with_its_place(item: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        sent(item)
    assert (caught.value.status, caught.value.error.param) == (400, param)


# --- tools and choice

FLAT = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}
NESTED = {"type": "function", "function": {"name": "f", "parameters": FLAT["parameters"]}}
OTHER = FLAT | {"name": "g" * 70}
SEARCH = {"type": "web_search"}


@pytest.mark.parametrize(
    ("tool", "becomes"),
    [
        (FLAT, FLAT),
        (NESTED, FLAT),
        ({"name": "f", "parameters": FLAT["parameters"]}, FLAT),
        ({"name": "f", "input_schema": FLAT["parameters"], "cache_control": {"type": "ephemeral"}}, FLAT),
        ({"type": "custom", "name": "f", "input_schema": FLAT["parameters"]}, FLAT),
        ({"type": "custom", "custom": {"name": "x"}}, {"type": "custom", "name": "x"}),
        ({"type": "web_search_preview", "search_context_size": "low"}, SEARCH | {"search_context_size": "low"}),
        ({"type": "web_search_preview_2025_03_11"}, SEARCH),
        ({"type": "web_search_2025_08_26"}, SEARCH),
    ],
)
def test_what_a_tool_becomes(tool: Any, becomes: Any) -> None:
    converted = responses_request(tools=[tool])
    assert up(converted)["tools"] == [becomes]
    assert any(each.param == "tools" for each in converted.adjusted) is (tool != becomes)


def test_a_function_without_a_name_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        responses_request(tools=[{"type": "function"}])
    assert caught.value.error.param == "tools[0].name"


@pytest.mark.parametrize(
    ("choice", "becomes"),
    [
        ("auto", "auto"),
        ("any", "required"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "function", "name": "f"}, {"type": "function", "name": "f"}),
        ({"type": "function", "function": {"name": "f"}}, {"type": "function", "name": "f"}),
        ({"type": "tool", "name": "f"}, {"type": "function", "name": "f"}),
        ({"type": "custom", "custom": {"name": "x"}}, {"type": "custom", "name": "x"}),
        ({"type": "web_search_preview"}, SEARCH),
        ({"type": "image_generation"}, {"type": "image_generation"}),
        (None, "auto"),
    ],
)
def test_what_a_choice_becomes(choice: Any, becomes: Any) -> None:
    tools = [FLAT, {"type": "custom", "name": "x"}, SEARCH]
    assert up(responses_request(tools=tools, tool_choice=choice))["tool_choice"] == becomes


@pytest.mark.parametrize("choice", ["sometimes", 7, {"type": "tool", "name": "nobody"}, {"type": 7},
                                    {"type": "allowed_tools", "mode": "x", "tools": []}])  # fmt: skip
def test_a_choice_of_nothing_is_refused(choice: Any) -> None:
    with pytest.raises(ApiError) as caught:
        responses_request(tools=[FLAT], tool_choice=choice)
    assert caught.value.status == 400
    assert (caught.value.error.param or "").startswith("tool_choice")


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_allowed_tools_are_the_tools(model: str, nested: bool) -> None:
    named = [{"type": "function", "name": OTHER["name"]}, {"type": "web_search_preview"}]
    if nested:
        choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named[0], SEARCH]}}
    else:
        choice = {"type": "allowed_tools", "mode": "required", "tools": named}
    converted = responses_request(model, tools=[FLAT, OTHER, SEARCH, {"type": "image_generation"}], tool_choice=choice)
    body = up(converted)
    if model == "gpt-5.5":
        assert body["tool_choice"] == "required"
        found = body["tools"]
    else:
        space, *rest = body["input"][0]["tools"]
        found = [*space["tools"], *rest]
        assert "at least one of the tools" in body["input"][-1]["content"][0]["text"]
    assert [tool["type"] for tool in found] == ["function", "web_search" if model == "gpt-5.5" else "namespace"]
    assert converted.names[found[0]["name"]] == OTHER["name"]


def test_the_detail_of_an_image_stays_where_the_model_takes_it() -> None:
    nested = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA, "detail": "low"}}]}
    assert sent(nested) == [message("user", IMAGE | {"detail": "low"})]
    assert sent(nested, model="gpt-6-sol") == [message("user", IMAGE)]


def test_a_format_in_a_shape_of_its_own_is_the_backends_to_refuse() -> None:
    assert up(responses_request(text={"format": "json"}))["text"]["format"] == "json"


def test_members_of_chats_messages_do_not_go_up() -> None:
    said = {"role": "assistant", "content": "a", "tool_calls": None, "refusal": None, "function_call": None,
            "reasoning_content": "z", "name": "n", "annotations": []}  # fmt: skip
    assert sent(said) == [message("assistant", SAID)]
    assert sent({"role": "assistant", "content": None, "refusal": "no"}) == [
        message("assistant", {"type": "refusal", "refusal": "no"})
    ]
    assert any(each.param == "input" for each in responses_request(input=[USER, said]).adjusted)


def test_numbers_and_custom_calls() -> None:
    custom = {"role": "assistant", "tool_calls": [{"id": 5, "type": "custom", "custom": {"name": "x", "input": "y"}}]}
    found = sent(custom, {"type": "custom_tool_call_output", "call_id": 5, "output": "z"})
    assert [(item["type"], item["call_id"]) for item in found] == [
        ("custom_tool_call", "5"),
        ("custom_tool_call_output", "5"),
    ]

"""Chat requests in other APIs' words: what they become, and that what is unknown is still refused with its place."""

from typing import Any

import pytest

from codexd.errors import ApiError
from support.converted import chat_request, up

DATA = "data:image/png;base64,AA=="
USER = {"role": "user", "content": "hi"}


def sent(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = up(chat_request(messages=[USER, *messages], **fields))["input"]
    return found[1:]


def parts(*content: Any) -> Any:
    [message] = sent({"role": "user", "content": list(content)})
    return message["content"]


TEXT, IMAGE = {"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": DATA}


@pytest.mark.parametrize(
    ("part", "becomes"),
    [
        ({"type": "input_text", "text": "a"}, TEXT),
        ({"type": "output_text", "text": "a"}, TEXT),
        ("a", TEXT),
        ({"text": "a"}, TEXT),
        ({"type": "text", "text": {"a": 1}}, TEXT | {"text": '{"a":1}'}),
        ({"type": "input_image", "image_url": DATA}, IMAGE),
        ({"type": "input_image", "image_url": {"url": DATA}, "detail": "low"}, IMAGE | {"detail": "low"}),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}, IMAGE),
        ({"type": "image", "source": {"type": "url", "url": DATA}}, IMAGE),
        ({"type": "input_file", "filename": "a", "file_data": DATA},
         {"type": "input_file", "filename": "a", "file_data": DATA}),
        ({"type": "document", "source": {"type": "text", "data": "a"}}, TEXT),
        ({"type": "document", "title": "a", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
         {"type": "input_file", "filename": "a", "file_data": DATA}),
    ],
)  # fmt: skip
def test_what_a_part_becomes(part: Any, becomes: Any) -> None:
    assert parts(part) == [becomes]
    converted = chat_request(messages=[{"role": "user", "content": [part]}])
    assert any(each.param == "messages" for each in converted.adjusted)


def test_a_single_part_and_odd_content() -> None:
    assert sent({"role": "user", "content": {"type": "text", "text": "a"}})[0]["content"] == [TEXT]
    assert sent({"role": "system", "content": [TEXT]}) == [{"type": "message", "role": "developer", "content": [TEXT]}]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("arguments", "becomes"), [({"a": 1}, '{"a":1}'), ([], "[]"), (None, "{}"), ("", "{}"), ('{"a":1}', '{"a":1}')]
)
def test_arguments(arguments: Any, becomes: str) -> None:
    call = {"id": 7, "function": {"name": "f", "arguments": arguments}}
    found = sent({"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": 7, "content": "x"})
    assert (found[0]["call_id"], found[0]["arguments"]) == ("7", becomes)
    legacy = {"role": "assistant", "function_call": {"name": "f", "arguments": arguments}}
    assert sent(legacy, {"role": "function", "name": "f", "content": "x"})[0]["arguments"] == becomes


@pytest.mark.parametrize(
    ("content", "becomes"),
    [
        ({"a": 1}, '{"a":1}'),
        ([{"id": 1}], '[{"id":1}]'),
        ([{"type": "input_text", "text": "a"}], [TEXT]),
        ([{"type": "image", "source": {"type": "url", "url": DATA}}], [IMAGE]),
        (7, "7"),
        (None, ""),
        ([{"text": "row", "score": 1}], '[{"text":"row","score":1}]'),
        (["a"], [TEXT]),
    ],
)
def test_results(content: Any, becomes: Any) -> None:
    assert sent({"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c", "content": content})[
        1
    ]["output"] == becomes  # fmt: skip


def test_blocks_of_messages() -> None:
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "done"}]}
    found = sent(
        {"role": "assistant", "content": [thought, {"type": "text", "text": "a"}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "next"}]},
    )
    assert [item["type"] for item in found] == ["message", "function_call", "function_call_output", "message"]
    assert found[1]["arguments"] == '{"a":1}'
    assert found[2]["output"] == [{"type": "input_text", "text": "done"}]
    only = sent({"role": "assistant", "content": [use]}, {"role": "user", "content": [result]})
    assert [item["type"] for item in only] == ["function_call", "function_call_output"]


def test_a_body_of_the_responses_api() -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "encrypted_content": "e"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": {"a": 1}},
        {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "y"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
    ]
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {}}}
    body = {"instructions": "I", "input": items, "reasoning": {"effort": "low"}, "max_output_tokens": 9, "tools": [
        {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}],
        "text": {"format": form, "verbosity": "high"}}  # fmt: skip
    converted = chat_request(messages=[], **body)
    sent = up(converted)
    kinds = [item["type"] for item in sent["input"]]
    assert kinds == ["message", "message", "function_call", "function_call_output", "custom_tool_call",
                     "custom_tool_call_output", "message"]  # fmt: skip
    assert sent["reasoning"]["effort"] == "low"
    assert (sent["text"]["verbosity"], sent["text"]["format"]["name"]) == ("high", "n")
    assert any(each.param == "input" for each in converted.adjusted)
    assert up(chat_request(messages=None, input="hi"))["input"] == up(chat_request())["input"]
    assert up(chat_request(messages=[], input="hi", text={"format": {"type": "text"}}))["input"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, {"role": "user", "content": [{"type": "video"}]}], "messages[1].content[0]"),
        ([USER, {"role": "user", "content": [{"type": "tool_use", "id": "c", "name": "f"}]}], "messages[1].content[0]"),
        ([USER, {"role": "robot", "content": "x"}], "messages[1]"),
        ([USER, 7], "messages[1]"),
        ([USER, {"role": "user", "content": 7}], "messages[1].content"),
        ([USER, {"role": "user", "content": [7]}], "messages[1].content[0]"),
        ([USER, {"role": "assistant", "tool_calls": [7]}], "messages[1].tool_calls[0]"),
        ([USER, {"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}], "messages[1].content[0]"),
        (7, "messages"),
    ],
)
def test_what_means_nothing_is_refused_with_its_place(messages: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat_request(messages=messages)
    assert caught.value.status == 400
    assert (caught.value.error.param or "").startswith(param)


def test_items_that_are_none() -> None:
    with pytest.raises(ApiError):
        chat_request(messages=[], input=[7])
    with pytest.raises(ApiError):
        chat_request(messages=[], input=[{"type": "web_search_call"}])


def test_a_failed_result_says_so_and_odd_calls_are_refused() -> None:
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "boom", "is_error": True}
    found = sent({"role": "assistant", "content": [use]}, {"role": "user", "content": [result]})
    assert found[1]["output"] == "The tool failed. boom"
    with pytest.raises(ApiError):
        sent({"role": "assistant", "tool_calls": 5, "content": [use]})

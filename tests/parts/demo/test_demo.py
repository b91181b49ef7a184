"""The simulated backend refuses what the real one refuses, in the real one's words."""

from typing import Any

import msgspec
import pytest

from codexd.demo import judge, script
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.codex.events import decode_event
from codexd.protocol.codex.models import BUILT_IN, Catalogue
from codexd.protocol.convert import Settings
from codexd.protocol.members import split
from codexd.protocol.responses.convert import from_responses
from codexd.protocol.responses.wire import REQUEST

MODELS = {model.slug: model for model in BUILT_IN}
OBJECT = {"type": "object", "properties": {}}
FUNCTION = {"type": "function", "name": "f", "parameters": OBJECT}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
LITE = {judge.LITE_HEADER: "true"}


def body(model: str) -> dict[str, Any]:
    asked = REQUEST.decode(
        split(msgspec.json.encode({"model": model, "input": "hi", "tools": [{"type": "function", "name": "f"}]}))
    )
    converted = from_responses(asked, Catalogue({}).resolve(model), Settings(prompt="P"))
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(converted.request))
    return decoded


@pytest.mark.parametrize(("model", "headers"), [("gpt-5.5", {}), ("gpt-6-sol", LITE)])
def test_what_codexd_sends_is_accepted(model: str, headers: dict[str, str]) -> None:
    assert judge.refuse(body(model), headers, MODELS) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_output_tokens": 1}, "Unsupported parameter: max_output_tokens"),
        ({"store": True}, "Store must be set to false"),
        ({"stream": False}, "Stream must be set to true"),
        ({"model": "gpt-5"}, "not supported when using Codex"),
        ({"service_tier": "flex"}, "Unsupported service_tier: flex"),
        ({"instructions": ""}, "Instructions are required"),
        ({"input": "hi"}, "Input must be a list"),
        ({"input": [{"role": "system", "content": "x"}]}, "System messages are not allowed"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "Item with id 'i' not found"),
        ({"input": [{"type": "reasoning", "id": "r"}]}, "Item with id 'r' not found"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}, "No tool call found"),
        ({"reasoning": {"effort": "none"}}, "Unsupported value: 'none'"),
        ({"prompt_cache_key": "x" * 65}, "string too long"),
        ({"prompt_cache_key": "mine"}, "Model not found"),
        ({"tools": [FUNCTION | {"name": "a.b"}]}, "does not match"),
        ({"tools": [{"type": "web_search_preview"}]}, "Unsupported tool type"),
        ({"tools": [{"type": "function", "name": "f"}]}, "is not a schema"),
        ({"tools": [FUNCTION | {"parameters": {}}]}, "got 'type"),
        ({"tools": [FUNCTION | {"parameters": OBJECT | {"anyOf": []}}]}, "not have 'oneOf'"),
        ({"tools": [FUNCTION | {"parameters": {"type": "object"}}]}, "missing properties"),
        ({"tools": [FUNCTION | {"parameters": OBJECT | {"properties": {"a": {"type": None}}}}]}, "not valid under any"),
        ({"tools": [FUNCTION | {"parameters": OBJECT | {"$defs": {"a": {"type": "array"}}}}]}, "missing items"),
        ({"tools": [FUNCTION | {"parameters": OBJECT | {"properties": {"a": {"anyOf": [7]}}}}]}, "is not a schema"),
        ({"tools": [FUNCTION | {"strict": True}]}, "'additionalProperties' is required"),
        ({"text": {"format": {"type": "json_schema", "name": "a b"}}}, "Invalid 'text.format.name'"),
        (
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "a",
                        "strict": True,
                        "schema": OBJECT | {"additionalProperties": False, "properties": {"a": {"items": True}}},
                    }
                }
            },
            "'required' is required",
        ),
        ({"input": [CALL | {"call_id": "x" * 65}]}, "call_id': string too long"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": [CALL, CALL]}, "Duplicate call_id"),
        ({"input": [CALL, {"type": "function_call_output", "call_id": "c", "output": {}}]}, "input[1].output"),
        ({"input": [{"role": "user", "content": "x"}]}, "input[0].content"),
        ({"input": [{"role": "assistant", "content": [{"type": "input_text", "text": "x"}]}]}, "Invalid value"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content"),
    ],
)
def test_refusals_of_the_classic_shape(changes: dict[str, Any], said: str) -> None:
    refusal = judge.refuse(body("gpt-5.5") | changes, {}, MODELS)
    assert refusal is not None
    assert said in msgspec.json.encode(refusal[1]).decode()


@pytest.mark.parametrize(
    ("changes", "headers", "said"),
    [
        ({}, {}, "needs responses-lite"),
        ({"parallel_tool_calls": True}, LITE, "parallel_tool_calls must be false"),
        ({"reasoning": {}}, LITE, "reasoning.context must be all_turns"),
        ({"tool_choice": "required"}, LITE, "not found in 'tools'"),
        ({"tools": []}, LITE, "travel in the input"),
        (
            {"input": [{"type": "additional_tools", "tools": [{"type": "function", "name": "f"}]}]},
            LITE,
            "grouped in a namespace",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "detail": "low"}]}]}, LITE, "image detail"),
        ({"model": "gpt-5.5"}, LITE, "cannot be used with responses-lite"),
    ],
)
def test_refusals_of_the_lite_shape(changes: dict[str, Any], headers: dict[str, str], said: str) -> None:
    refusal = judge.refuse(body("gpt-6-sol") | changes, headers, MODELS)
    assert refusal is not None
    assert said in msgspec.json.encode(refusal[1]).decode()
    assert judge.refuse([], headers, MODELS) is not None


def test_every_answer_is_one_that_the_automaton_can_read() -> None:
    events = list(script.events(body("gpt-6-sol"), "resp_1", 1))
    automaton = ChatStream(id="i", model="m", created=1, include_usage=True)
    chunks = [chunk for event in events for chunk in automaton.push(decode_event(msgspec.json.encode(event)))]
    assert automaton.done
    assert chunks


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer", "minimum": 3}}},
            {"a": "t", "b": 3},
        ),
        ({"type": "array", "items": {"type": "boolean"}}, [True]),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": ["null", "string"]}}}, None),
        ({"anyOf": [{"const": 7}, {"type": "string"}]}, 7),
        ({"enum": ["x", "y"]}, "x"),
        ({"type": "number"}, 1.5),
        ({}, "t"),
    ],
)
def test_a_schema_is_filled(schema: dict[str, Any], value: Any) -> None:
    assert script.sample(schema, "t") == value

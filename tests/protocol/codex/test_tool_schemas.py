"""Every schema goes up in a form that keeps the backend's rules; one that keeps them already stays byte for byte."""

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from codexd.errors import ApiError
from codexd.protocol.codex import schemas, tools
from codexd.protocol.codex.request import FunctionTool
from support.converted import chat_request, responses_request, up

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def below(node: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """The schemas inside a schema; None where there should be some and are none."""
    for key in ("properties", "$defs", "definitions", "patternProperties"):
        inside = node.get(key, {})
        yield from [(value, key) for value in inside.values()] if isinstance(inside, dict) else [(None, key)]
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        inside = node.get(key)
        if key in node:
            yield from [(value, key) for value in inside] if isinstance(inside, list) and inside else [(None, key)]
    yield from [
        (node[key], key) for key in ("items", "additionalProperties", "not", "if", "then", "else") if key in node
    ]


def faults(node: Any, where: str = "#", *, root: bool = False) -> list[str]:
    """What a validator with OpenAI's rules has against a schema. Written without the code that fits it."""
    if isinstance(node, bool) and not root:
        return []
    if not isinstance(node, dict):
        return [f"{where} is no schema"]
    found = []
    kinds = node.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not all(kind in TYPES for kind in kinds) or ("type" in node and not kinds):
        found.append(f"{where} has the type {kinds}")
    if root and (node.get("type") != "object" or not isinstance(node.get("properties"), dict)):
        found.append("the root is no object with properties")
    if root and (odd := node.keys() & {"anyOf", "oneOf", "allOf", "enum", "const", "not"}):
        found.append(f"the root has {odd}")
    if "array" in kinds and not isinstance(node.get("items"), dict | bool):
        found.append(f"{where} is an array without items")
    found += [each for value, place in below(node) for each in faults(value, f"{where}/{place}")]
    if not isinstance(node.get("required", []), list) or not isinstance(node.get("enum", [1]), list):
        found.append(f"{where} has a list that is none")
    return found


def fitted(schema: Any) -> Any:
    raw = Raw(msgspec.json.encode(schema))
    return msgspec.json.decode(schemas.check(raw).parameters or raw)


names = st.sampled_from(["a", "b", "type", "items", "properties"])
scalars = st.sampled_from([None, True, False, 0, 1.5, "x", ""])


def nodes(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some, lists = st.dictionaries(names, inside, max_size=3), st.lists(inside, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(st.sampled_from([*TYPES, "STRING", "int", "any"]), st.lists(st.sampled_from(TYPES)), scalars),
            "properties": st.one_of(some, scalars),
            "items": st.one_of(inside, lists, scalars),
            "required": st.one_of(st.lists(names), scalars),
            "additionalProperties": st.one_of(inside, scalars),
            "anyOf": st.one_of(lists, scalars),
            "oneOf": lists,
            "allOf": lists,
            "not": inside,
            "enum": st.one_of(st.lists(scalars), scalars),
            "const": scalars,
            "default": scalars,
            "description": scalars,
            "$ref": st.one_of(st.sampled_from(["#/$defs/a", "#/$defs/b", "#", "#/definitions/a", "other.json"]), scalars),
            "$defs": some,
            "definitions": some,
        },
    )  # fmt: skip


anything = st.recursive(st.one_of(st.just({}), st.booleans(), scalars), nodes, max_leaves=12)


@given(anything)
def test_whatever_json_schema_allows_goes_up_in_a_form_that_is_accepted(schema: Any) -> None:
    found = fitted(schema)
    assert faults(found, root=True) == []
    assert fitted(found) == found
    if faults(schema, root=True) == [] and schema == found:
        assert schemas.check(Raw(msgspec.json.encode(schema))).parameters is None


GOOD = [
    {"type": "object", "properties": {}},
    {"properties": {"type": {"type": "string"}}, "type": "object", "required": ["type"], "$schema": "x", "title": "T"},
    {"type": "object", "properties": {"a": {"anyOf": [{"type": "array", "items": {}}, {"type": "null"}], "default": None}}},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "object", "properties": {}}}},
    {"type": "object", "properties": {"m": {"type": "object", "additionalProperties": {"type": "string"}}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", GOOD)
def test_a_good_schema_stays_as_it_is(schema: Any) -> None:
    text = Raw(msgspec.json.format(msgspec.json.encode(schema)))
    assert schemas.check(text) == (None, None, False)
    found, adjusted = tools.fit([FunctionTool(name="f", parameters=text)])
    assert (found[0].parameters, adjusted) == (text, ())  # type: ignore[union-attr]


EMPTY: dict[str, Any] = {"type": "object", "properties": {}}


def wrapped(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"value": schema}, "required": ["value"]}


@pytest.mark.parametrize(
    ("schema", "becomes"),
    [
        ({"type": "object"}, EMPTY),
        ({}, EMPTY),
        (True, EMPTY),
        (None, EMPTY),
        ({"type": None}, EMPTY),
        ({"$ref": "other.json"}, EMPTY),
        ({"type": ["object", "null"]}, EMPTY),
        ({"type": "OBJECT"}, EMPTY),
        ({"type": "object", "properties": None, "required": None, "description": None}, EMPTY),
        ({"type": "string"}, wrapped({"type": "string"})),
        ({"type": "array"}, wrapped({"type": "array", "items": {}})),
        ({"enum": ["a"]}, wrapped({"enum": ["a"]})),
        (
            {"type": "array", "items": {"$ref": "#/$defs/A"}, "$defs": {"A": {"type": "array"}}},
            wrapped({"type": "array", "items": {"$ref": "#/$defs/A"}}) | {"$defs": {"A": {"type": "array", "items": {}}}},
        ),
        (
            {"type": "object", "properties": {"a": {"type": "array"}, "b": {"type": ["array", "null"]}}},
            {"type": "object", "properties": {
                "a": {"type": "array", "items": {}}, "b": {"type": ["array", "null"], "items": {}}}},
        ),
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": [{"type": "str"}]}}},
            {"type": "object", "properties": {
                "a": {"type": "array", "prefixItems": [{"type": "string"}], "items": {}}}},
        ),
        (
            {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"x": {"type": "int"}}}}},
            {"type": "object", "properties": {"x": {"type": "integer"}},
             "$defs": {"A": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
        ),
        (
            {"anyOf": [
                {"type": "object", "properties": {"a": {"type": "string"}, "c": {}}, "required": ["a", "c"]},
                {"type": "object", "properties": {"b": {"type": "string"}, "c": {"type": "null"}}, "required": ["c"]}]},
            {"type": "object", "properties": {
                "a": {"type": "string"}, "c": {"anyOf": [{}, {"type": "null"}]}, "b": {"type": "string"}},
             "required": ["c"]},
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "allOf": [{"required": ["a"]}],
             "not": {"required": ["b"]}},
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
        ),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]},
         wrapped({"anyOf": [{"type": "string"}, {"type": "object", "properties": {}}]})),
        ({"type": "object", "properties": {"a": {"type": "object"}}},
         {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}),
    ],
)  # fmt: skip
def test_what_becomes_of_the_others(schema: Any, becomes: Any) -> None:
    assert fitted(schema) == becomes


A, B = {"type": "string"}, {"type": "integer", "minimum": 1}
STRICT = {"type": "object", "properties": {"a": A, "b": B}, "required": ["a", "b"], "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        STRICT,
        STRICT | {"properties": {"a": STRICT, "b": {"type": "array", "items": STRICT}}},
        STRICT | {"properties": {"a": {"anyOf": [A, {"type": "null"}]}, "b": {"$ref": "#/$defs/B"}}, "$defs": {"B": B}},
    ],
)
def test_a_schema_for_strict(schema: Any) -> None:
    assert schemas.check(Raw(msgspec.json.encode(schema))).strict


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        STRICT | {"required": ["a"]},
        STRICT | {"required": "a"},
        STRICT | {"required": ["a", "a"]},
        STRICT | {"additionalProperties": {}},
        {key: value for key, value in STRICT.items() if key != "additionalProperties"},
        STRICT | {"properties": {"a": STRICT | {"required": []}, "b": B}},
        STRICT | {"properties": {"a": {"type": "array", "items": STRICT | {"required": []}}, "b": B}},
        STRICT | {"properties": {"a": {"anyOf": [A, STRICT | {"required": []}]}, "b": B}},
        STRICT | {"properties": {"a": A | {"minLength": 1}, "b": B}},
        STRICT | {"properties": {"a": A | {"default": "x"}, "b": B}},
        STRICT | {"properties": {"a": {}, "b": B}},
        STRICT | {"properties": {"a": {"type": "array"}, "b": B}},
        STRICT | {"properties": {"a": {"anyOf": 1}, "b": B}},
        STRICT | {"properties": []},
        STRICT | {"$defs": {"X": {"oneOf": [A]}}},
        STRICT | {"anyOf": [STRICT]},
    ],
)
def test_a_schema_that_strict_cannot_have(schema: Any) -> None:
    assert not schemas.check(Raw(msgspec.json.encode(schema))).strict


def test_schemas_are_remembered_up_to_a_number() -> None:
    schemas._known.clear()
    for number in range(schemas.MAX_KNOWN + 5):
        schemas.check(Raw(b'{"title":"%d"}' % number))
    assert len(schemas._known) == schemas.MAX_KNOWN


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-6-sol"])
def test_in_every_shape_the_tools_are_fitted(model: str) -> None:
    chat = chat_request(
        model, tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    )
    flat = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    space = {"type": "namespace", "name": "mcp.x", "tools": [flat, {"type": "custom", "name": "a b"}]}
    responses = responses_request(model, tools=[flat, {"type": "function", "name": "g"}, space, {"type": "web_search"}])
    for converted in (chat, responses):
        assert any(each.param == "tool_schemas" for each in converted.adjusted)
    sent = up(responses)
    found = sent["tools"] if model == "gpt-5.5" else [
        *sent["input"][0]["tools"][0]["tools"], *sent["input"][0]["tools"][1:]
    ]  # fmt: skip
    assert found[0] == {"type": "function", "name": "f", "parameters": EMPTY, "strict": False}
    assert found[1]["parameters"] == EMPTY
    assert found[2]["tools"][0] == found[0]
    assert found[2]["name"].startswith("mcp_x_") and found[2]["tools"][1]["name"].startswith("a_b_")
    assert responses.names[found[2]["name"]] == "mcp.x"
    assert found[3] == {"type": "web_search"} or (found[3]["type"], found[3]["name"]) == ("namespace", "hosted")


def test_tools_in_a_shape_of_their_own_are_passed_on() -> None:
    odd = {"type": "namespace", "name": "n", "tools": 7}
    assert up(responses_request(tools=[odd]))["tools"] == [odd]
    good = {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f", "parameters": EMPTY}]}
    assert up(responses_request(tools=[good]))["tools"] == [good]


def test_a_format_is_strict_only_where_it_can_be() -> None:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "an answer", "strict": True, "schema": STRICT | {"required": []}},
    }
    converted = chat_request(response_format=form)
    sent = up(converted)["text"]["format"]
    assert sent["strict"] is False
    assert sent["name"].startswith("an_answer_")
    assert any(each.param == "strict" for each in converted.adjusted)
    flat = {"type": "json_schema", "name": "answer", "strict": True, "schema": STRICT}
    assert up(responses_request(text={"format": flat}))["text"]["format"] == flat
    loose = {
        "type": "json_schema",
        "name": "answer",
        "schema": {"type": "object", "properties": {"a": {"type": "array"}}},
    }
    assert up(responses_request(text={"format": loose}))["text"]["format"]["schema"]["properties"]["a"]["items"] == {}
    assert up(responses_request(text={"format": {"type": "json_schema", "name": "n"}}))["text"]["format"]["name"] == "n"


@pytest.mark.parametrize("key", ["parameters", "format"])
def test_a_schema_that_is_too_deep_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(schema: Raw) -> None:
        raise RecursionError

    monkeypatch.setattr(schemas, "check", deep)
    with pytest.raises(ApiError, match="nested too deeply"):
        if key == "format":
            responses_request(text={"format": {"type": "json_schema", "name": "n", "schema": {}}})
        else:
            responses_request(tools=[{"type": "function", "name": "f", "parameters": {}}])


@pytest.mark.parametrize("schema", [5, "x", []])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(ApiError) as caught:
        chat_request(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])
    assert (caught.value.status, caught.value.error.param) == (400, "tools[0].parameters")


def test_namespaces_of_calls_are_those_of_the_tools() -> None:
    tool = {"type": "function", "name": "f", "parameters": EMPTY}
    call = {"type": "function_call", "call_id": "c", "name": "f", "namespace": "mcp.x", "arguments": "{}"}
    items = [{"role": "user", "content": "hi"}, call, {"type": "function_call_output", "call_id": "c", "output": ""}]
    for model in ("gpt-5.5", "gpt-6-sol"):
        converted = responses_request(
            model, input=items, tools=[{"type": "namespace", "name": "mcp.x", "tools": [tool]}]
        )
        body = up(converted)
        sent = next(item for item in body["input"] if item["type"] == "function_call")
        spaces = body["tools"] if model == "gpt-5.5" else body["input"][0]["tools"]
        assert sent["namespace"] == spaces[0]["name"] != "mcp.x"
        assert converted.names[sent["namespace"]] == "mcp.x"


def dangling(schema: Any) -> list[str]:
    """The local references that name nothing."""
    found: list[str] = []

    def look(node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                look(each)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref" and isinstance(value, str) and value.startswith("#/"):
                    target: Any = schema
                    for step in unquote(value[2:]).split("/"):
                        step = step.replace("~1", "/").replace("~0", "~")
                        target = target[int(step)] if isinstance(target, list) else target.get(step)
                        if target is None:
                            found.append(value)
                            break
                else:
                    look(value)

    look(schema)
    return found


X = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": X}}, ["x"]),
        ({"$ref": "#/$defs/Foo%3Cstring%3E", "$defs": {"Foo<string>": X}}, ["x"]),
        ({"$ref": "#/$defs/a~0b", "$defs": {"a~b": X}}, ["x"]),
        ({"type": "object", "$ref": "#/$defs/A", "properties": {"z": {}}, "$defs": {"A": X}}, ["x", "z"]),
        ({"anyOf": [{"type": "object", "properties": {"a": {}, "n": {"$ref": "#/anyOf/0"}}}]}, ["a", "n"]),
        ({"type": "array", "items": {"$ref": "#"}}, ["value"]),
        ({"anyOf": [{"oneOf": [X, {"type": "object", "properties": {"y": {}}}, True]}]}, ["x", "y"]),
        ({"anyOf": [X, {"$ref": "#/anyOf/0"}, {"$ref": "#/anyOf/9"}, {"$ref": "#/anyOf/x"}]}, ["x"]),
        ({"type": "array", "items": {"anyOf": [{"type": "string"}, {"$ref": "#/items"}]}}, ["value"]),
        ({"anyOf": [X, {"type": "object", "properties": {"y": {"$ref": "#"}}}]}, ["x", "y"]),
        ({"$ref": "#/$defs/A", "$defs": {"A": {**X, "properties": {"x": {"$ref": "#"}}}}}, ["x"]),
        ({"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"y": {}}}], "$defs": {"A": X}}, ["x", "y"]),
    ],
)
def test_no_property_and_no_reference_is_lost(schema: Any, names: list[str]) -> None:
    found = fitted(schema)
    assert faults(found, root=True) == []
    assert sorted(found["properties"]) == names
    assert dangling(found) == []


def test_many_variants_stay_flat() -> None:
    variants = [{"type": "object", "properties": {"kind": {"const": number}}} for number in range(900)]
    found = fitted({"oneOf": variants})
    assert [each["const"] for each in found["properties"]["kind"]["anyOf"]] == list(range(900))


def test_a_large_schema_is_checked_in_time() -> None:
    names = [f"p{number}" for number in range(20_000)]
    schema = {"type": "object", "properties": dict.fromkeys(names, A), "required": names, "additionalProperties": False}
    begun = time.process_time()
    assert schemas.check(Raw(msgspec.json.encode(schema))).strict
    assert time.process_time() - begun < 1


def test_a_number_that_python_has_not_is_passed_on() -> None:
    raw = Raw(b'{"type":"object","properties":{"a":{"maximum":1e400}}}')
    assert schemas.check(raw) == (None, None, False)


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_a_tool_in_anthropics_shape_keeps_its_schema(dialect: str) -> None:
    tool = {"name": "f", "description": "d", "input_schema": X}
    converted = chat_request(tools=[tool]) if dialect == "chat" else responses_request(tools=[tool])
    [sent] = up(converted)["tools"]
    assert (sent["name"], sent["description"], sent["parameters"]) == ("f", "d", X)


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-6-sol"])
def test_an_earlier_search_is_the_search_in_every_dialect(model: str) -> None:
    tools = [{"type": "web_search_preview", "search_context_size": "low"}]
    for converted in (chat_request(model, tools=tools), responses_request(model, tools=tools)):
        body = up(converted)
        sent = body["tools"] if model == "gpt-5.5" else body["input"][0]["tools"]
        if model == "gpt-5.5":
            assert sent == [{"type": "web_search", "search_context_size": "low"}]
            assert any(each.param == "tools" for each in converted.adjusted)
        else:
            assert [tool["name"] for tool in sent] == ["hosted"]
            assert converted.hosted is not None and converted.hosted.search is not None
            assert converted.hosted.search.search_context_size == "low"


@pytest.mark.parametrize(
    ("choice", "becomes"), [({"type": "any"}, "required"), ({"type": "auto"}, "auto"), ("any", "required")]
)
def test_choices_of_anthropics_api_in_chat(choice: Any, becomes: str) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert up(chat_request(tools=tools, tool_choice=choice))["tool_choice"] == becomes
